"""Real processes move between real hosts: they arrive whole, or they stay and run on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import workload
from lab.host import Host, within
from lab.workload import Workload
from sojourn.model import MAX_BANDWIDTH_MBIT
from tests.lab.site import OCCUPY, Ended, Site, left_behind, runs_on

pytestmark = pytest.mark.lab


def end(workload: Workload, *hosts: Host) -> None:
    """End a workload wherever it is."""
    for host in hosts:
        host.run(["pkill", "-KILL", "-f", str(Path("/shared") / workload.file.name)], check=False)


def assert_stayed(
    ended: Ended, counter: Workload, alpha: Host, beta: Host, cause: str, code: str
) -> None:
    """Check that a failed migration left nothing, names its cause, and the process runs on."""
    assert ended.code == 11, ended.answer
    assert ended.answer["state"] == "rolled back"
    assert ended.answer["owner"] == "alpha"
    assert cause in ended.answer["failure"]["message"], ended.answer["failure"]
    assert ended.answer["failure"]["code"] == code
    assert runs_on(alpha, counter)
    assert not runs_on(beta, counter)
    counter.wait_for_beats()
    assert (left_behind(alpha), left_behind(beta)) == ([], [])


def test_a_process_goes_there_and_back(site: Site, alpha: Host, beta: Host) -> None:
    """PID and memory are unchanged, the counter has no gap, nothing is left on the other host."""
    counter = workload.start(alpha, "counter", mb=32)
    before = counter.wait_for_beats()
    for source, destination in ((alpha, beta), (beta, alpha)):
        ended = site.migrate(counter.pid, source.name, destination.name)
        assert ended.code == 0, ended.answer
        assert ended.answer["owner"] == destination.name
        assert runs_on(destination, counter)
        assert not runs_on(source, counter)
        assert (left_behind(source), left_behind(destination)) == ([], [])
    passes = counter.status().details["passes"]
    after = counter.wait_until(
        lambda status: int(str(status.details["passes"])) > int(str(passes)) + 1
    )
    assert after.hosts == ("alpha", "beta", "alpha")
    assert after.pid == before.pid
    assert after.counter > before.counter
    assert after.details["damaged_slices"] == 0
    assert after.details["sha256"] == before.details["sha256"]
    end(counter, alpha, beta)


def test_the_result_has_the_figures(site: Site, alpha: Host, beta: Host) -> None:
    """Downtime, bytes and steps are in the result; the downtime is what the process felt."""
    counter = workload.start(alpha, "counter", mb=32)
    counter.wait_for_beats()
    answer = site.migrate(counter.pid, "alpha", "beta").answer
    felt = counter.wait_for_beats().arrivals[-1].pause_ms
    assert felt * 0.7 < answer["downtime_ms"] < felt * 1.3 + 20
    assert 0 < answer["frozen_ms"] <= answer["downtime_ms"]
    assert "counter" in answer["command"]
    assert answer["pages_bytes"] > 32e6
    assert 0 < answer["images_bytes"] < 1e6
    # What both hosts do at the end, they do side by side.
    names = [step["name"] for step in answer["steps"]]
    assert names[-6] == "restore"
    assert sorted(names[-5:]) == ["confirm", "release", "release", "retire", "settle"]
    assert answer["settled_ms"] > 0
    listed = site.sojourn("show", answer["id"], "--json")
    assert answer["id"] in listed.stdout
    end(counter, beta)


@pytest.mark.parametrize("facility", ["pipes", "socketpair", "shm", "deleted", "log", "threads"])
def test_a_tree_keeps_what_it_uses(site: Site, alpha: Host, beta: Host, facility: str) -> None:
    """Processes and threads arrive with their pipes, sockets, shared memory and files."""
    tree = workload.start(alpha, "tree", with_=facility)
    tree.wait_for_beats()
    ended = site.migrate(tree.pid, "alpha", "beta")
    assert ended.code == 0, ended.answer
    after = tree.wait_for_beats(50)
    assert after.host == "beta"
    assert after.details["errors"] == {}
    assert set(after.details["verified"]) == {facility}  # type: ignore[call-overload]
    assert left_behind(alpha) == left_behind(beta) == []
    end(tree, beta)


def test_no_room_for_the_memory(site: Site, alpha: Host, beta: Host) -> None:
    """The destination's tmpfs is filled after the checks: the dump fails, the process runs on."""
    counter = workload.start(alpha, "counter", mb=32)
    ended = site.migrate_meanwhile(
        counter.pid, (beta, "page_server.end"), lambda: beta.run(["sh", "-c", _FILL])
    )
    assert_stayed(ended, counter, alpha, beta, "No space left on device", "NO_ROOM")
    end(counter, alpha)


def test_the_pid_is_taken(site: Site, alpha: Host, beta: Host) -> None:
    """Another process takes the PID after the checks: it is named; CRIU is not even started."""
    counter = workload.start(alpha, "counter", mb=8)
    occupy = ["python3", "-c", OCCUPY, str(counter.pid)]
    ended = site.migrate_meanwhile(counter.pid, (beta, "page_server.end"), lambda: beta.run(occupy))
    occupant = beta.run(["ps", "-o", "args=", "-p", str(counter.pid)]).stdout
    beta.run(["kill", str(counter.pid)])
    assert "sleep 1000" in occupant
    assert within(5, lambda: not runs_on(beta, counter))
    cause = f"PID {counter.pid} is taken by process {counter.pid}: sleep 1000."
    assert_stayed(ended, counter, alpha, beta, cause, "PID_TAKEN")
    assert "criu" not in ended.answer["failure"]["message"]
    assert (
        beta.run(
            ["test", "-e", f"/run/sojourn/{ended.answer['id']}/work/restore.log"], check=False
        ).returncode
        == 1
    )
    end(counter, alpha)


def on_both(alpha: Host, beta: Host) -> None:
    """Put the program ``only-here`` on both hosts, until a test removes it from one."""
    for host in (alpha, beta):
        host.run(["cp", "--preserve", "/usr/bin/sleep", "/usr/local/bin/only-here"])


def test_a_file_is_missing(site: Site, alpha: Host, beta: Host) -> None:
    """The program's file vanishes from the destination after the checks: the failure names it."""
    on_both(alpha, beta)
    pid = alpha.launch(["/usr/local/bin/only-here", "1000"])
    remove = ["rm", "/usr/local/bin/only-here"]
    ended = site.migrate_meanwhile(pid, (beta, "page_server.end"), lambda: beta.run(remove))
    assert ended.code == 11
    assert (
        "The file /usr/local/bin/only-here does not exist on the destination."
        in ended.answer["failure"]["message"]
    )
    assert "usr/local/bin/only-here: No such file" in ended.answer["failure"]["message"]
    assert ended.answer["failure"]["code"] == "FILE_MISSING"
    assert alpha.run(["ps", "-o", "stat=", "-p", str(pid)]).stdout.strip().startswith("S")
    assert left_behind(alpha) == left_behind(beta) == []
    alpha.run(["kill", str(pid)])


#: What CRIU refuses, begun after the checks: a code, a part of the message, and the program.
REFUSED_BY_CRIU = [
    (
        "FILE_LOCKS",
        "holds a lock",
        "import fcntl; kept = open('/tmp/locked', 'w'); fcntl.flock(kept, fcntl.LOCK_EX)",
    ),
    (
        "GHOST_TOO_LARGE",
        "/var/tmp/ghost, which has 3145728 bytes",
        (
            "import os; kept = open('/var/tmp/ghost', 'wb', 0); "
            "kept.write(bytes(3 << 20)); os.unlink(kept.name)"
        ),
    ),
    ("PIDFD_OUTSIDE", "a pidfd of process 1,", "import os; kept = os.pidfd_open(1)"),
]


@pytest.mark.parametrize(("code", "named", "program"), REFUSED_BY_CRIU)
def test_the_cause_has_a_code(
    site: Site, alpha: Host, beta: Host, code: str, named: str, program: str
) -> None:
    """CRIU's error becomes a code and a sentence with the cause; ``logs`` shows CRIU's lines."""
    alpha.run(["rm", "-f", "/tmp/begin", "/tmp/ready"])
    pid = alpha.launch(["python3", "-c", _LATER, program])
    begin = "touch /tmp/begin; until test -e /tmp/ready; do sleep 0.01; done"
    ended = site.migrate_meanwhile(
        pid, (alpha, "dump.begin"), lambda: alpha.run(["sh", "-c", begin])
    )
    alpha.run(["kill", str(pid)])
    assert ended.code == 11
    assert ended.answer["failure"]["code"] == code
    assert named in ended.answer["failure"]["message"]
    shown = site.sojourn("show", ended.answer["id"]).stdout
    assert f"{code} " in shown
    assert f"sojourn logs {ended.answer['id'][:8]}" in shown
    logs = site.sojourn("logs", ended.answer["id"], "--errors")
    assert logs.returncode == 0
    assert f"alpha: /run/sojourn/{ended.answer['id']}/work/dump.log" in logs.stdout
    assert "Error (criu/" in logs.stdout
    assert "beta: no errors" in logs.stdout


def test_the_page_server_is_killed(site: Site, alpha: Host, beta: Host) -> None:
    """The destination's page server dies in the middle of the memory: the process runs on."""
    counter = workload.start(alpha, "counter", mb=512)
    killer = threading.Thread(target=_kill_page_server, args=(beta,))
    killer.start()
    ended = site.migrate(counter.pid, "alpha", "beta")
    killer.join()
    assert_stayed(ended, counter, alpha, beta, "criu dump", "CHANNEL_FAILED")
    end(counter, alpha)


def test_connections_survive_a_rollback(site: Site, alpha: Host, beta: Host) -> None:
    """A server cannot be restored without its address: its client notices only a pause."""
    server = workload.start(alpha, "tcp_server", address=alpha.address)
    client = workload.start(beta, "tcp_client", address=alpha.address)
    client.wait_for_beats()
    # The checks would refuse a missing address, so beta lets programs bind any address meanwhile.
    nonlocal_bind = "/proc/sys/net/ipv4/ip_nonlocal_bind"
    beta.run(["sh", "-c", f"echo 1 > {nonlocal_bind}"])
    lose = ["sh", "-c", f"echo 0 > {nonlocal_bind}"]
    ended = site.migrate_meanwhile(
        server.pid, (beta, "page_server.end"), lambda: beta.run(lose), "--tcp-established"
    )
    assert_stayed(ended, server, alpha, beta, alpha.address, "ADDRESS_MISSING")
    answers = int(str(client.status().details["answers"]))
    after = client.wait_until(lambda status: int(str(status.details["answers"])) > answers + 20)
    assert after.details["error"] == ""
    end(client, beta)
    end(server, alpha)


def test_a_stopped_process_stays_stopped_after_a_rollback(
    site: Site, alpha: Host, beta: Host
) -> None:
    """A process that was stopped before is not continued by a migration that failed."""
    on_both(alpha, beta)
    pid = alpha.launch(["/usr/local/bin/only-here", "1000"])
    alpha.run(["kill", "-STOP", str(pid)])
    remove = ["rm", "/usr/local/bin/only-here"]
    assert (
        site.migrate_meanwhile(pid, (beta, "page_server.end"), lambda: beta.run(remove)).code == 11
    )
    assert alpha.run(["ps", "-o", "stat=", "-p", str(pid)]).stdout.startswith("T")
    alpha.run(["kill", "-KILL", str(pid)])


def test_one_process_is_migrated_once_at_a_time(site: Site, alpha: Host, beta: Host) -> None:
    """Of two migrations of one process at the same time one arrives; in the end it exists once."""
    counter = workload.start(alpha, "counter", mb=64)
    results: list[Ended] = []
    both = [
        threading.Thread(target=lambda: results.append(site.migrate(counter.pid, "alpha", "beta")))
        for _ in "12"
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    codes = sorted(result.code for result in results)
    assert codes in ([0, 10], [0, 11]), results
    assert runs_on(beta, counter)
    assert not runs_on(alpha, counter)
    counter.wait_for_beats()
    assert (left_behind(alpha), left_behind(beta)) == ([], [])
    end(counter, beta)


def test_two_processes_pass_each_other(site: Site, alpha: Host, beta: Host) -> None:
    """Migrations in opposite directions at the same time do not block each other."""
    there, back = workload.start(alpha, "counter", mb=32), workload.start(beta, "counter", mb=32)
    results: list[Ended] = []
    routes = [(there.pid, "alpha", "beta"), (back.pid, "beta", "alpha")]
    threads = [
        threading.Thread(target=lambda route=route: results.append(site.migrate(*route)))
        for route in routes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.code for result in results] == [0, 0], results
    assert there.wait_for_beats().host == "beta"
    assert back.wait_for_beats().host == "alpha"
    end(there, beta)
    end(back, alpha)


@pytest.fixture
def trusting(alpha: Host, beta: Host) -> Iterator[None]:
    """Let alpha copy to beta with SSH, without a password."""
    alpha.run(["mkdir", "-p", "-m", "700", "/root/.ssh"])
    generate = "yes | ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"
    alpha.run(["sh", "-c", generate])
    key = alpha.run(["cat", "/root/.ssh/id_ed25519.pub"]).stdout
    beta.run(
        ["sh", "-c", "mkdir -p -m 700 /root/.ssh /run/sshd; cat > /root/.ssh/authorized_keys"],
        stdin=key,
    )
    beta.run(["sh", "-c", "ssh-keygen -A; /usr/sbin/sshd -o PidFile=/run/sshd.pid"])
    alpha.run(["sh", "-c", f"ssh-keyscan {beta.address} > /root/.ssh/known_hosts"])
    yield
    beta.run(["sh", "-c", "kill $(cat /run/sshd.pid)"])


def test_images_by_scp(site: Site, alpha: Host, beta: Host, trusting: None) -> None:
    """Where hosts trust each other's keys, the small images can be copied with scp(1), limited."""
    counter = workload.start(alpha, "counter", mb=16)
    for host in (alpha, beta):
        site.configure(host, copy_images_with="scp")
    try:
        # The largest limit is one that scp knows too.
        ended = site.migrate(counter.pid, "alpha", "beta", "--bandwidth", str(MAX_BANDWIDTH_MBIT))
    finally:
        for host in (alpha, beta):
            site.configure(host)
    assert ended.code == 0, ended.answer
    assert counter.wait_for_beats().host == "beta"
    assert (left_behind(alpha), left_behind(beta)) == ([], [])
    end(counter, beta)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("0", "--from", "alpha", "--to", "beta"), 2, "0 is not a PID"),
        (("1", "--from", "alpha", "--to", "beta"), 2, "PID 1 is the host's init"),
        (("--from", "alpha", "--to", "beta", "--", "-7"), 2, "-7 is not a PID"),
        (("100", "--from", "alpha", "--to", "alpha"), 2, "the same host"),
        (("100", "--from", "alpha", "--to", "nowhere"), 2, "There is no host nowhere"),
        (("4194000", "--from", "alpha", "--to", "beta"), 10, "There is no process 4194000"),
    ],
)
def test_bad_input_is_refused(
    site: Site, alpha: Host, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    """One clear sentence, its exit code, and nothing was touched."""
    ended = site.sojourn("migrate", *arguments)
    assert ended.returncode == code
    assert ended.stderr.startswith("error: ")
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len((ended.stdout + ended.stderr).splitlines()) <= 3
    assert left_behind(alpha) == []


def test_the_worker_does_not_migrate_itself(site: Site, alpha: Host) -> None:
    """Neither the worker, nor a process of its pool, nor its supervisor."""
    worker = int(alpha.run(["cat", "/run/sojourn/worker.pid"]).stdout)
    child = int(alpha.run(["pgrep", "-P", str(worker)]).stdout.split()[0])
    supervisor = int(alpha.run(["ps", "-o", "ppid=", "-p", str(worker)]).stdout)
    for pid in (worker, child, supervisor):
        ended = site.migrate(pid, "alpha", "beta")
        assert ended.code == 10
        assert "Sojourn's worker" in ended.answer["failure"]["message"]


def test_a_host_whose_worker_is_down(site: Site, alpha: Host, beta: Host) -> None:
    """Refused at once with exit code 14, before the registry has noticed; other logs are shown."""
    counter = workload.start(alpha, "counter", mb=8)
    earlier = site.migrate(alpha.launch(["sleep", "1000"]), "alpha", "beta").answer
    beta.run(["kill", str(earlier["pid"])])
    beta.service("worker", "down")
    assert within(30, lambda: beta.service("worker", "status").startswith("down"))
    began = time.monotonic()
    ended = site.sojourn("migrate", str(counter.pid), "--from", "alpha", "--to", "beta")
    assert time.monotonic() - began < 10
    logs = site.sojourn("logs", earlier["id"], "--json")
    beta.service("worker", "up")
    assert ended.returncode == 14
    assert "beta does not answer" in ended.stderr
    assert (logs.returncode, json.loads(logs.stdout)["beta"]) == (14, None)
    assert [Path(log["path"]).name for log in json.loads(logs.stdout)["alpha"]] == ["dump.log"]
    counter.wait_for_beats()
    assert left_behind(alpha) == []
    assert within(20, lambda: site.answers(beta))
    end(counter, alpha)


def test_python_callers_get_a_dict_or_an_error(site: Site, alpha: Host, beta: Host) -> None:
    """``migrate.delay(...).get()`` returns the result or raises MigrationError with the owner."""
    counter = workload.start(alpha, "counter", mb=8)
    answer = alpha.run(
        ["/opt/sojourn/bin/python3", "-c", _CALLER, str(counter.pid)], deadline_s=60
    ).stdout.split()
    assert answer == ["beta", "refused", "alpha"]
    end(counter, beta)


#: Fills the image directory of the migration under way up to the last 8 MB.
_FILL = """
cd /run/sojourn/*/images
fallocate -l $(($(df --output=avail -B1 . | tail -1) - 8000000)) filler
"""

#: Takes a program: runs it once /tmp/begin exists, creates /tmp/ready, and sleeps.
_LATER = """
import os, sys, time
while not os.path.exists("/tmp/begin"):
    time.sleep(0.01)
exec(sys.argv[1])
open("/tmp/ready", "w").close()
time.sleep(1000)
"""

#: A user's program: one migration that arrives, and the same one again, which is refused.
_CALLER = """
import sys
from sojourn.errors import MigrationError
from workflows import migrate
pid = int(sys.argv[1])
print(migrate.delay(pid=pid, source="alpha", destination="beta").get(timeout=50)["owner"])
try:
    migrate.delay(pid=pid, source="alpha", destination="beta").get(timeout=50)
except MigrationError as error:
    print(error.state, error.owner)
"""


def _kill_page_server(host: Host) -> None:
    """Kill CRIU's page server on a host as soon as it has some memory in its images."""
    listing = "ls -s /run/sojourn/*/images/pages-*.img 2>/dev/null"
    script = (
        f"until {listing} | awk '$1 > 20000 {{f=1}} END {{exit !f}}'; do :; done; "
        "pkill -KILL -f 'criu page-server'"
    )
    host.run(["timeout", "60", "sh", "-c", script], check=False)
