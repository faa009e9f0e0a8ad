"""A process that runs before its memory is in place: every page is right, whoever dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from lab.host import Host, within
from tests.lab.scrambled import (
    INSTANTS,
    assert_right,
    is_damaged,
    kill,
    kill_both,
    pair,
    started,
)
from tests.lab.site import Ended, Site, left_behind


@pytest.fixture
def pid(alpha: Host, beta: Host) -> Iterator[int]:
    """Start the program on alpha; return its PID."""
    with started(alpha, beta) as found:
        yield found


def test_it_runs_at_once_and_nothing_is_missing(
    site: Site, alpha: Host, beta: Host, pid: int
) -> None:
    """There and back, while it changes its mappings all the time."""
    rounds = assert_right(alpha, pid)
    for source, destination in ((alpha, beta), (beta, alpha)):
        ended = site.migrate(pid, source.name, destination.name)
        assert ended.code == 0, ended.answer
        assert ended.answer["settled_ms"] > 0
        settle = next(step for step in ended.answer["steps"] if step["name"] == "settle")
        assert "all memory is in place" in settle["outcome"]
        now = assert_right(destination, pid)
        assert now > rounds
        rounds = now
        assert pair(destination) == []
    assert [left_behind(host) for host in (alpha, beta)] == [[], []]


def titles(host: Host, pid: int) -> list[str]:
    """Return the arguments and the environment of a process, as `/proc` has them."""
    return host.run(["cat", f"/proc/{pid}/cmdline", f"/proc/{pid}/environ"]).stdout.split("\0")


@pytest.mark.parametrize("mode", ["stop-and-copy", "post-copy"])
def test_it_has_its_name_at_once(site: Site, alpha: Host, beta: Host, pid: int, mode: str) -> None:
    """Who looks for a program by its arguments finds it before any other page is in place."""
    before = titles(alpha, pid)
    assert before[-2:] != ["", ""]
    found: list[list[str]] = []
    act = (beta, "fill.begin"), lambda: found.append(titles(beta, pid))
    ended = site.migrate_meanwhile(pid, *act, "--mode", mode)
    assert ended.code == 0, ended.answer
    assert found == [before]
    assert_right(beta, pid)


@pytest.mark.parametrize("instant", INSTANTS)
@pytest.mark.parametrize("which", [0, 1], ids=["pager", "guard"])
def test_one_of_the_two_is_killed(
    site: Site, beta: Host, pid: int, instant: str, which: int
) -> None:
    """The other one goes on; no page is lost."""
    ended = site.migrate_meanwhile(pid, (beta, instant), lambda: kill(beta, which))
    assert ended.code == 0, ended.answer
    assert_right(beta, pid)
    assert left_behind(beta) == []


@pytest.mark.parametrize("instant", INSTANTS[:2])
def test_both_are_killed(site: Site, alpha: Host, beta: Host, pid: int, instant: str) -> None:
    """The process is ended, and reported as lost; it never goes on with zeros."""
    ended = site.migrate_meanwhile(pid, (beta, instant), lambda: kill_both(beta))
    assert (ended.code, ended.answer["state"]) == (13, "lost"), ended.answer
    assert ended.answer["failure"]["code"] == "MEMORY_LOST"
    assert ended.answer["owner"] is None
    for host in (alpha, beta):
        assert host.run(["kill", "-0", str(pid)], check=False).returncode != 0
        assert left_behind(host) == []


def test_what_they_are_there_for(site: Site, beta: Host, pid: int) -> None:
    """With no worker to notice that both are gone, the process goes on with zeros, or ends by them.

    So the program of these tests does see a page that is zero in place of its content.
    """

    def act() -> None:
        beta.service("worker", "kill")
        beta.service("worker", "down")
        kill_both(beta)
        assert within(20, lambda: is_damaged(beta, pid))
        beta.service("worker", "up")

    ended = site.migrate_meanwhile(pid, (beta, "fill.begin"), act)
    assert (ended.code, ended.answer["failure"]["code"]) == (13, "MEMORY_LOST"), ended.answer
    assert beta.run(["kill", "-0", str(pid)], check=False).returncode != 0
    assert within(30, lambda: left_behind(beta) == [])
    assert within(20, lambda: site.answers(beta))


@pytest.mark.parametrize("instant", ["restoring.after", "accepted.before"])
def test_both_are_killed_before_the_commit(
    site: Site, alpha: Host, beta: Host, pid: int, instant: str
) -> None:
    """Nothing runs on the destination; the original does."""
    ended = site.migrate_meanwhile(pid, (beta, instant), lambda: kill_both(beta))
    assert (ended.code, ended.answer["failure"]["code"]) == (11, "PAGER_ENDED"), ended.answer
    assert_right(alpha, pid)
    assert [left_behind(host) for host in (alpha, beta)] == [[], []]


def test_a_pager_that_is_stopped(site: Site, beta: Host, pid: int) -> None:
    """The process waits for its memory, and goes on when that comes."""

    def stop() -> None:
        pager = str(pair(beta)[0])
        beta.run(["kill", "-STOP", pager])
        threading.Timer(3, lambda: beta.run(["kill", "-CONT", pager])).start()

    ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), stop)
    assert ended.code == 0, ended.answer
    assert ended.answer["settled_ms"] > 2500
    assert_right(beta, pid)


def test_a_worker_dies_meanwhile(site: Site, beta: Host, pid: int) -> None:
    """Pager and guard go on; the worker's successor finds all in place."""

    def act() -> None:
        beta.run(["sh", "-c", "kill -KILL $(pgrep -f '[s]ojourn worker')"])
        assert within(20, lambda: site.answers(beta))

    ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), act)
    assert ended.code == 0, ended.answer
    assert_right(beta, pid)
    assert within(60, lambda: left_behind(beta) == [])


#: Does on a host, to the migration that was begun last there, what steps do that clear up.
CLEAR_UP = """
from sojourn.migration import settling
from sojourn.migration.context import Migration, this_host
from sojourn.errors import Temporary
from tasks.page_server import stop_page_server
import sqlite3
host = this_host()
rows = sqlite3.connect(host.journal.path).execute("SELECT id FROM migration ORDER BY created DESC")
migration = Migration(host, host.journal.entry(rows.fetchone()[0], "destination"))
print(stop_page_server.work(migration).sentence)
for act in (migration.clear, lambda: settling.end(migration)):
    try:
        act()
    except Temporary as error:
        print(error.message)
"""


def test_nothing_is_cleared_up_meanwhile(site: Site, beta: Host, pid: int) -> None:
    """What ends the programs of a migration and unmounts its tmpfs spares what memory needs.

    These steps run in each settling, too, perhaps while the memory of a tree comes into place that
    the same settling has restored.
    """
    answers: list[str] = []

    def act() -> None:
        before = pair(beta)
        answers.extend(beta.run(["/opt/sojourn/bin/python3", "-c", CLEAR_UP]).stdout.splitlines())
        assert pair(beta) == before

    ended = site.migrate_meanwhile(pid, (beta, "fill.middle"), act)
    assert ended.code == 0, ended.answer
    assert answers[0] == "the page server is gone"
    assert all("still coming into place on beta" in answer for answer in answers[1:])
    assert len(answers) == 3
    assert_right(beta, pid)


def test_it_cannot_move_on_at_once(site: Site, alpha: Host, beta: Host, pid: int) -> None:
    """While its memory is coming, another migration would take half of it along."""
    refused: list[Ended] = []
    ended = site.migrate_meanwhile(
        pid, (beta, "fill.middle"), lambda: refused.append(site.migrate(pid, "beta", "alpha"))
    )
    assert ended.code == 0, ended.answer
    assert (refused[0].code, refused[0].answer["failure"]["code"]) == (10, "MIGRATING")
    assert site.migrate(pid, "beta", "alpha").code == 0
    assert_right(alpha, pid)


@pytest.mark.parametrize("setting", ["before-commit", False])
def test_all_of_it_first(site: Site, alpha: Host, beta: Host, pid: int, setting: object) -> None:
    """The process runs when every page is in place, put there by the pager or by CRIU."""
    site.configure(beta, lazy_restore=setting)
    try:
        ended = site.migrate(pid, "alpha", "beta")
        assert ended.code == 0, ended.answer
        assert ended.answer["settled_ms"] == 0
        assert_right(beta, pid)
        assert pair(beta) == []
    finally:
        site.configure(beta)


#: Has memory that its children share with it, and waits.
FORKED = """
import os, time
memory = bytearray(os.urandom(2**20)) * 100
for _ in range(2):
    if os.fork() == 0:
        break
time.sleep(1000)
"""


def test_a_tree_that_shares_memory_since_a_fork(site: Site, alpha: Host, beta: Host) -> None:
    """It comes with as much as it had, since CRIU puts the pages back that are shared."""
    pid = alpha.launch(["/usr/bin/python3", "-c", FORKED])
    try:
        assert within(10, lambda: len(process_ids(alpha, pid)) == 3)
        time.sleep(0.5)  # the memory is filled
        checked = site.sojourn("check", str(pid), "--from", "alpha", "--to", "beta", "--json")
        notes = [one for one in json.loads(checked.stdout)["findings"] if one["verdict"] == "note"]
        assert [note["code"] for note in notes] == ["LAZY_RESTORE"], notes
        before = resident_kb(alpha, pid)
        ended = site.migrate(pid, "alpha", "beta")
        assert (ended.code, ended.answer["settled_ms"]) == (0, 0), ended.answer
        assert resident_kb(beta, pid) < before * 1.15
    finally:
        for host in (alpha, beta):
            host.run(["pkill", "-KILL", "-f", "2.20.. . 100"], check=False)


def process_ids(host: Host, pid: int) -> list[int]:
    """Return a process and its children."""
    children = host.run(["pgrep", "-P", str(pid)], check=False).stdout.split()
    return [pid, *map(int, children)]


def resident_kb(host: Host, pid: int) -> int:
    """Return how much memory a tree takes, shared pages once."""
    sums = "cat " + " ".join(f"/proc/{one}/smaps_rollup" for one in process_ids(host, pid))
    lines = host.run(["sh", "-c", sums]).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


#: Has a child that has ended, and of which it takes no notice.
ZOMBIE = """
import os, time
memory = bytearray(os.urandom(2**20)) * 8
if os.fork() == 0:
    os._exit(3)
time.sleep(1000)
"""


def test_a_zombie_has_no_memory(site: Site, alpha: Host, beta: Host) -> None:
    """CRIU hands nothing over for it; its parent's memory comes into place all the same."""
    pid = alpha.launch(["/usr/bin/python3", "-c", ZOMBIE])
    try:
        assert within(10, lambda: zombies(alpha, pid) == 1)
        ended = site.migrate(pid, "alpha", "beta")
        assert ended.code == 0, ended.answer
        assert ended.answer["settled_ms"] > 0
        assert zombies(beta, pid) == 1
    finally:
        for host in (alpha, beta):
            host.run(["kill", "-KILL", str(pid)], check=False)


def zombies(host: Host, pid: int) -> int:
    """Return how many children of a process have ended and were not reaped."""
    states = host.run(["ps", "-o", "stat=", "--ppid", str(pid)], check=False).stdout.split()
    return sum(state.startswith("Z") for state in states)
