"""Post-copy: the process runs elsewhere while its memory is still in the frozen original."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator

import pytest

from lab.host import Host, within
from sojourn.system.run import Completed
from tasks.settle import ATTEMPT_S
from tests.lab.scrambled import assert_right, kill, kill_both, pair, started
from tests.lab.site import Ended, Site, left_behind

POST_COPY = ("--mode", "post-copy")

#: How soon a process ends when the host of its original answers again, in seconds: far less than
#: ``stall_s``.
PROMPT_S = 8

#: A firewall by which a host calls others and is called by none.
NOBODY_CALLS = """\
table inet nobody {
    chain in {
        type filter hook input priority 0
        tcp flags & (syn | ack) == syn drop
    }
}
"""


@pytest.fixture
def pid(alpha: Host, beta: Host) -> Iterator[int]:
    """Start the program on alpha; return its PID."""
    with started(alpha, beta) as found:
        yield found


def senders(host: Host) -> list[str]:
    """Return the PIDs of what hands out memory on a host."""
    found = host.run(["pgrep", "-f", "[s]ojourn.transfer.sender"], check=False)
    return found.stdout.split()


def newest(host: Host) -> str:
    """Return the migration that was begun last on a host."""
    listing = "basename $(ls -td /run/sojourn/*/ | head -1)"
    return host.run(["sh", "-c", listing]).stdout.strip()


def steps(site: Site, migration: str) -> list[str]:
    """Return the names of the steps of a migration so far."""
    shown = json.loads(site.sojourn("show", migration, "--json").stdout)
    return [step["name"] for step in shown["steps"]]


def is_there(host: Host, pid: int) -> bool:
    """Whether a process has this PID on a host."""
    return host.run(["kill", "-0", str(pid)], check=False).returncode == 0


def seconds_until_gone(host: Host, pid: int) -> float:
    """Wait until a process has ended on a host; return how long that took."""
    began = time.monotonic()
    assert within(60, lambda: not is_there(host, pid))
    return time.monotonic() - began


def assert_moved(ended: Ended, alpha: Host, beta: Host, pid: int) -> None:
    """Check that the process runs on beta alone, with every page, and that nothing is left."""
    assert ended.code == 0, ended.answer
    assert_right(beta, pid)
    assert not is_there(alpha, pid)
    assert within(60, lambda: [*left_behind(alpha), *left_behind(beta), *senders(alpha)] == [])


def assert_lost(ended: Ended, alpha: Host, beta: Host, pid: int, why: str) -> None:
    """Check that the process runs nowhere, that it is reported so, and that nothing is left."""
    assert (ended.code, ended.answer["state"], ended.answer["owner"]) == (13, "lost", None)
    assert ended.answer["failure"]["code"] == "MEMORY_LOST"
    assert why in ended.answer["failure"]["message"]
    assert not any(is_there(host, pid) for host in (alpha, beta))
    assert within(60, lambda: [*left_behind(alpha), *left_behind(beta), *senders(alpha)] == [])


def test_it_runs_at_once_and_nothing_is_missing(
    site: Site, alpha: Host, beta: Host, pid: int
) -> None:
    """There and back, while it changes its mappings all the time."""
    rounds = assert_right(alpha, pid)
    for source, destination in ((alpha, beta), (beta, alpha)):
        ended = site.migrate(pid, source.name, destination.name, *POST_COPY)
        assert_moved(ended, source, destination, pid)
        answer = ended.answer
        assert answer["mode"] == "post-copy"
        assert answer["settled_ms"] > 0
        assert answer["faults"] > 0
        assert answer["wait_median_ms"] <= answer["wait_p99_ms"] <= answer["wait_longest_ms"]
        now = assert_right(destination, pid)
        assert now > rounds
        rounds = now
        assert pair(destination) == []


def test_the_original_is_kept_until_the_last_page(
    site: Site, alpha: Host, beta: Host, pid: int
) -> None:
    """It is frozen meanwhile, and an abort comes too late."""
    aborted: list[Completed] = []

    def abort() -> None:
        aborted.append(site.sojourn("abort", newest(beta)))

    def act() -> None:
        state = alpha.run(["ps", "-o", "stat=", "-p", str(pid)]).stdout
        assert state.startswith("T"), state
        assert is_there(beta, pid)
        threads.append(threading.Thread(target=abort))
        threads[0].start()
        assert within(30, lambda: "reclaim" in steps(site, newest(beta)))
        assert is_there(alpha, pid)

    threads: list[threading.Thread] = []
    ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), act, *POST_COPY)
    threads[0].join()
    assert_moved(ended, alpha, beta, pid)
    assert aborted[0].returncode == 1
    assert "It was too late." in aborted[0].stdout


@pytest.mark.parametrize(
    ("which", "instant"), [(0, "fill.begin"), (1, "fill.begin"), (0, "fill.middle")]
)
def test_one_of_the_two_is_killed(
    site: Site, alpha: Host, beta: Host, pid: int, which: int, instant: str
) -> None:
    """The other one goes on, by connections of its own; no page is lost."""
    act = (beta, instant), lambda: kill(beta, which)
    assert_moved(site.migrate_meanwhile(pid, *act, *POST_COPY), alpha, beta, pid)


def test_both_are_killed(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """Neither the process nor its original goes on: it has run on beta."""
    act = (beta, "fill.middle"), lambda: kill_both(beta)
    assert_lost(site.migrate_meanwhile(pid, *act, *POST_COPY), alpha, beta, pid, "both killed")


@pytest.mark.parametrize("instant", ["fill.begin", "fill.middle"])
def test_the_sender_is_killed(site: Site, alpha: Host, beta: Host, pid: int, instant: str) -> None:
    """The reconciler starts another one, at the same port."""
    act = (beta, instant), lambda: alpha.run(["kill", "-KILL", *senders(alpha)])
    assert_moved(site.migrate_meanwhile(pid, *act, *POST_COPY), alpha, beta, pid)


#: Kills the program that hands out memory, given by its PID, and listens at its port before anybody
#: else can.
TAKE = """
import os, signal, socket, sys
port = int(sys.argv[2])
os.kill(int(sys.argv[1]), signal.SIGKILL)
while True:
    try:
        server = socket.create_server(("", port))
    except OSError:
        continue
    break
print("taken", flush=True)
signal.pause()
"""


def test_the_port_of_the_sender_is_taken(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """It is killed, and another program has its port: the next one moves, and the pager follows."""
    log, taker = "/shared/taker.log", []

    def take() -> None:
        (sender,) = senders(alpha)
        sockets = alpha.run(["ss", "-Hltnp"]).stdout
        (port,) = re.findall(rf":(\d+) .*pid={sender},", sockets)
        taker.append(alpha.launch(["/usr/bin/python3", "-c", TAKE, sender, port], log=log))
        assert within(20, lambda: "taken" in alpha.run(["cat", log]).stdout)

    alpha.run(["rm", "-f", log])
    try:
        ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), take, *POST_COPY)
    finally:
        alpha.run(["kill", "-KILL", *map(str, taker)], check=False)
    assert_moved(ended, alpha, beta, pid)
    assert ended.answer["settled_ms"] < 15_000


def test_the_original_is_killed(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """What is missing is nowhere, so the process is ended at once."""
    act = (beta, "fill.begin"), lambda: alpha.run(["kill", "-KILL", str(pid)])
    ended = site.migrate_meanwhile(pid, *act, *POST_COPY)
    assert_lost(ended, alpha, beta, pid, "the original there was gone")


def test_the_network_is_cut(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """Threads wait, the pager connects again, and it goes on."""

    def cut() -> None:
        site.lab.cut("alpha")
        threading.Timer(8, lambda: site.lab.heal("alpha")).start()

    ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), cut, *POST_COPY)
    assert_moved(ended, alpha, beta, pid)
    assert ended.answer["settled_ms"] > 5000
    assert ended.answer["wait_longest_ms"] > 1000
    # Its lanes were deaf for so long that it may not be announced yet.
    assert within(30, lambda: site.answers(alpha))


def test_a_pager_that_is_stopped(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """The process waits for its memory, and goes on when that comes."""

    def stop() -> None:
        stopped = str(pair(beta)[0])
        beta.run(["kill", "-STOP", stopped])
        threading.Timer(3, lambda: beta.run(["kill", "-CONT", stopped])).start()

    ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), stop, *POST_COPY)
    assert_moved(ended, alpha, beta, pid)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_worker_dies_meanwhile(site: Site, alpha: Host, beta: Host, pid: int, name: str) -> None:
    """What hands out and what puts into place goes on; the worker's successor finds it done."""
    host = site.host(name)

    def act() -> None:
        host.run(["sh", "-c", "kill -KILL $(pgrep -f '[s]ojourn worker')"])
        assert within(20, lambda: site.answers(host))

    ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), act, *POST_COPY)
    assert_moved(ended, alpha, beta, pid)


def test_nobody_asks_for_the_verdict_meanwhile(
    site: Site, alpha: Host, beta: Host, pid: int
) -> None:
    """Who answered would wait for the step that settles, in a place for frozen trees."""
    site.configure(alpha, reconcile_s=0.2, stall_s=2.5)
    try:
        ended = site.migrate(pid, "alpha", "beta", *POST_COPY, "--bandwidth", "100")
    finally:
        site.configure(alpha)
    assert_moved(ended, alpha, beta, pid)
    assert ended.answer["settled_ms"] > 3000
    assert "decide" not in {step["name"] for step in ended.answer["steps"]}


def test_the_source_host_dies(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """The process waits until that is known: here because the host is back without it."""
    took: list[float] = []

    def come_back() -> None:
        site.lab.boot("alpha")
        assert within(30, lambda: site.answers(alpha))
        took.append(seconds_until_gone(beta, pid))

    def act() -> None:
        site.lab.crash("alpha")
        threads.append(threading.Timer(5, come_back))
        threads[0].start()

    threads: list[threading.Timer] = []
    ended = site.migrate_meanwhile(pid, (beta, "fill.begin"), act, *POST_COPY)
    threads[0].join()
    assert_lost(ended, alpha, beta, pid, "the original there was gone")
    assert took[0] < PROMPT_S


def test_the_source_host_is_declared_dead(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """An operator knows it first; the process is ended at once."""
    answers: list[Completed] = []
    took: list[float] = []

    def resolve() -> None:
        # Its last announcement has not expired yet.
        options = ("--source-is-dead", "--force", "--yes")
        answers.append(site.sojourn("resolve", newest(beta), *options))

    def decide() -> None:
        word = threading.Thread(target=resolve)
        word.start()
        took.append(seconds_until_gone(beta, pid))
        word.join()

    def act() -> None:
        site.lab.crash("alpha")
        threads.append(threading.Thread(target=decide))
        threads[0].start()

    threads: list[threading.Thread] = []
    ended = site.migrate_meanwhile(pid, (beta, "fill.begin"), act, *POST_COPY)
    threads[0].join()
    assert answers[0].returncode == 13, answers[0]
    site.lab.boot("alpha")
    assert within(30, lambda: site.answers(alpha))
    assert_lost(ended, alpha, beta, pid, "the original there was gone")
    # The command takes a second or two, and more on a busy machine.
    assert took[0] < ATTEMPT_S - 5


def test_the_pager_cannot_reach_the_source(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """It is found before anything is frozen."""
    alpha.run(["nft", NOBODY_CALLS])
    try:
        ended = site.migrate(pid, "alpha", "beta", *POST_COPY)
    finally:
        alpha.run(["nft", "delete table inet nobody"])
    assert (ended.code, ended.answer["failure"]["step"]) == (11, "connect_pager"), ended.answer
    assert "beta cannot connect to alpha" in ended.answer["failure"]["message"]
    assert ended.answer["frozen_ms"] is None
    assert_right(alpha, pid)
    assert [*left_behind(alpha), *left_behind(beta), *senders(alpha)] == []


def test_the_window_is_shown(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """How much is still to come, and that both hosts are needed until then."""

    def shows(what: str, *words: str) -> bool:
        return what in site.sojourn("show", newest(beta), *words).stdout

    def act() -> None:
        assert within(20, lambda: shows("MB still to come from alpha, so both hosts are needed"))
        assert shows("It runs on beta;")
        assert shows('"owner": "beta"', "--json")

    ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), act, *POST_COPY)
    assert_moved(ended, alpha, beta, pid)
    assert "still to come" not in site.sojourn("show", ended.answer["id"]).stdout


#: Forks children that end at once, from SIGUSR1 on; each of them would miss what it misses. At
#: SIGUSR2 it compares its memory. It writes a line for each ten children, and for the comparison.
FORKING = """
import hashlib, os, signal, time
memory = bytearray(os.urandom(1 << 20)) * 32
before, seen = hashlib.sha256(memory).digest(), set()
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: seen.add(number))
print("ready", flush=True)
children = 0
while True:
    time.sleep(0.001)
    if signal.SIGUSR1 in seen:
        if os.fork() == 0:
            os._exit(0)
        children += os.wait()[1] == 0
        if children % 10 == 0:
            print(children, flush=True)
    if signal.SIGUSR2 in seen:
        seen.clear()
        print(hashlib.sha256(memory).digest() == before, flush=True)
"""


def test_a_program_that_forks_all_the_time(site: Site, alpha: Host, beta: Host) -> None:
    """Its dead children take no descriptors, and nobody asks the source for their memory.

    A pager that takes over half-way does not take one child for another.
    """
    log, opened = "/shared/forking.log", []
    alpha.run(["sh", "-c", f": > {log}"])
    pid = alpha.launch(["/usr/bin/python3", "-W", "ignore", "-c", FORKING], log=log)

    def forked() -> int:
        lines = beta.run(["cat", log]).stdout.split()
        return int(lines[-1]) if lines[-1].isdigit() else 0

    def act() -> None:
        beta.run(["kill", "-USR1", str(pid)])
        threading.Thread(target=watch).start()

    def watch() -> None:
        assert within(30, lambda: forked() >= 200)
        opened.append(len(beta.run(["ls", f"/proc/{pair(beta)[0]}/fd"]).stdout.split()))
        kill(beta, 0)

    try:
        assert within(20, lambda: "ready" in alpha.run(["cat", log]).stdout)
        way = (*POST_COPY, "--bandwidth", "30")
        ended = site.migrate_meanwhile(pid, (beta, "fill.begin"), act, *way)
        assert ended.code == 0, ended.answer
        assert ended.answer["settled_ms"] < 30_000  # the network needs 9 s
        assert opened
        assert opened[0] < 60
        beta.run(["kill", "-USR2", str(pid)])
        assert within(20, lambda: "True" in beta.run(["cat", log]).stdout)
    finally:
        for host in (alpha, beta):
            host.run(["kill", "-KILL", str(pid)], check=False)


#: Compares again and again 80 MB of memory that it shares, which is more than small images take.
SHARING = """
import hashlib, mmap, os, time
area = mmap.mmap(-1, 80 << 20)
area.write(os.urandom(1 << 20) * 80)
before = hashlib.sha256(area).digest()
while True:
    print(hashlib.sha256(area).digest() == before, flush=True)
    time.sleep(0.2)
"""


def test_memory_that_can_never_come_later(site: Site, alpha: Host, beta: Host) -> None:
    """It crosses in the freeze, by a tmpfs of the source that has room for it; check names it."""
    log = "/shared/sharing.log"
    alpha.run(["rm", "-f", log])
    pid = alpha.launch(["/usr/bin/python3", "-c", SHARING], log=log)
    try:
        assert within(20, lambda: "True" in alpha.run(["cat", log]).stdout)
        way = (str(pid), "--from", "alpha", "--to", "beta", *POST_COPY)
        (found,) = re.findall(
            r"with ([0-9.]+) MB that can never come later", site.sojourn("check", *way).stdout
        )
        assert 83 < float(found) < 90
        ended = site.migrate(pid, "alpha", "beta", *POST_COPY)
        assert ended.code == 0, ended.answer
        assert abs(ended.answer["images_bytes"] / 1e6 - float(found)) < 5
        beta.run(["sh", "-c", f": > {log}"])
        assert within(20, lambda: "True" in beta.run(["cat", log]).stdout)
        assert "False" not in beta.run(["cat", log]).stdout
    finally:
        for host in (alpha, beta):
            host.run(["kill", "-KILL", str(pid)], check=False)
