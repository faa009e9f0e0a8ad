"""``sojourn check`` on real hosts: what is provoked is found and refused, the rest migrates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.errors import LabFailed
from lab.host import Host, within
from tests.lab.site import OCCUPY, Site, left_behind

pytestmark = pytest.mark.lab

PROVOKE = "/opt/sojourn/src/tests/lab/provoke.py"
PYTHON = "/usr/bin/python3"

Finding = tuple[str, str, str]


@pytest.fixture(autouse=True)
def nothing_left(alpha: Host, beta: Host) -> Iterator[None]:
    """End the program on both hosts after each test."""
    yield
    for host in (alpha, beta):
        host.run(["pkill", "-KILL", "-f", PROVOKE], check=False)


@dataclass(frozen=True)
class Provoked:
    """A process that uses something; ``uses`` is what the kernel provided."""

    pid: int
    uses: frozenset[str]


def provoke(host: Host, *things: str, inside: tuple[str, ...] = ()) -> Provoked:
    """Start a process, ``inside`` another command, and return once it uses these things."""
    log = f"/shared/provoke-{abs(hash((things, inside)))}.log"
    host.run(["rm", "-f", log])
    pid = host.launch([*inside, PYTHON, PROVOKE, *things], log=log)
    lines: list[str] = []

    def ready() -> bool:
        lines[:] = host.run(["cat", log]).stdout.splitlines()
        return any(line.startswith("ready") for line in lines)

    if not within(20, ready):
        raise LabFailed(f"{things} was not provoked: {lines}")
    uses = next(line for line in lines if line.startswith("ready")).split()[1:]
    return Provoked(pid, frozenset(uses))


def check(
    site: Site, pid: int, *options: str, source: str = "alpha", destination: str = "beta"
) -> dict[str, Any]:
    """Return what ``sojourn check --json`` prints."""
    ended = site.sojourn(
        "check", str(pid), "--from", source, "--to", destination, "--json", *options
    )
    report: dict[str, Any] = json.loads(ended.stdout)
    assert "findings" in report, report
    assert ended.returncode == (0 if report["migratable"] else 10)
    return report


def stopping(report: dict[str, Any]) -> list[Finding]:
    """Return what stops the migration: code, verdict and sentence."""
    return [
        (finding["code"], finding["verdict"], finding["sentence"])
        for finding in report["findings"]
        if finding["verdict"] not in {"ok", "note"}
    ]


def codes(report: dict[str, Any]) -> set[str]:
    """Return the codes of what stops the migration."""
    return {code for code, _, _ in stopping(report)}


#: What the source finds: the thing, its code, and a part of the sentence. Everything in one list is
#: provoked in the same process.
ON_THE_SOURCE = {
    "objects": [
        ("io_uring", "IO_URING", "anon_inode:[io_uring] (descriptor"),
        ("perf", "FILE_UNSUPPORTED", "anon_inode:[perf_event] (descriptor"),
        ("bpf_prog", "FILE_UNSUPPORTED", "anon_inode:bpf-prog (descriptor"),
        ("bpf_map", "FILE_UNSUPPORTED", "anon_inode:bpf-map (descriptor"),
        ("userfaultfd", "FILE_UNSUPPORTED", "anon_inode:[userfaultfd] (descriptor"),
        ("inotify=/opt", "INOTIFY", "watches a file that CRIU cannot find again"),
        ("sysv_shm", "SYSV_SHM", "/SYSV00000000, of the host's IPC namespace"),
        ("sysv_semaphore", "SYSV_IPC", "uses a System V semaphore (id "),
        ("sysv_queue", "SYSV_IPC", "uses a System V message queue (id "),
        ("pidfd=1", "PIDFD_OUTSIDE", "to process 1, outside the tree"),
        ("shared_code", "SHARED_CODE", "is shared and not writable"),
        ("device=/dev/net/tun", "DEVICE", "/dev/net/tun (descriptor"),
        ("namespace=0x04000000", "NAMESPACE", "a uts namespace of its own inside the tree"),
    ],
    "files and sockets": [
        ("deleted=1500000", "GHOST_TOO_LARGE", "is deleted and has 1503232 bytes"),
        ("linked_elsewhere", "FILE_DELETED", "/file (descriptor"),
        ("flock=/srv/flocked", "FILE_LOCKS", "Files are locked: /srv/flocked"),
        ("mptcp", "SOCKET_UNSUPPORTED", "A socket of type MPTCP"),
        ("vsock", "SOCKET_UNSUPPORTED", "A socket of type AF_VSOCK"),
        ("connected", "TCP_ESTABLISHED", "127.0.0.1:7788"),
        ("in_flight", "TCP_IN_FLIGHT", "tcp 127.0.0.1:7787 is waiting"),
        (
            "unix_stream=/run/outside.sock",
            "UNIX_PEER_OUTSIDE",
            "is connected to /run/outside.sock of process",
        ),
        (
            "terminal_of_other=/run/outside.tty",
            "SHELL_JOB",
            "belongs to a program outside the tree",
        ),
        ("traced", "TRACED", "is traced by process"),
    ],
}


@pytest.mark.parametrize("group", ON_THE_SOURCE)
def test_what_is_provoked_on_the_source(site: Site, alpha: Host, beta: Host, group: str) -> None:
    """Everything is found and named in one go; the migration is refused, nothing was touched."""
    beta.run(["touch", "/srv/flocked"])
    others = provoke(alpha, "unix_server=/run/outside.sock", "holder_of_terminal=/run/outside.tty")
    guilty = provoke(alpha, *(thing for thing, _, _ in ON_THE_SOURCE[group]))
    found = stopping(check(site, guilty.pid))
    expected = [row for row in ON_THE_SOURCE[group] if row[0].split("=")[0] in guilty.uses]
    assert len(expected) >= 7
    for thing, code, part in expected:
        assert [finding for finding in found if finding[0] == code and part in finding[2]], (
            thing,
            found,
        )
    assert {finding[0] for finding in found} == {code for _, code, _ in expected}
    ended = site.migrate(guilty.pid, "alpha", "beta")
    assert (ended.code, ended.answer["state"], ended.answer["owner"]) == (10, "refused", "alpha")
    assert ended.answer["failure"]["code"] == found[0][0]
    assert (
        f"And {len(found) - 1} more on alpha: see `sojourn check {guilty.pid}"
        in ended.answer["failure"]["message"]
    )
    assert left_behind(alpha) == left_behind(beta) == []
    assert alpha.run(["ps", "-o", "stat=", "-p", str(guilty.pid)]).stdout.startswith("S")
    del others


def child_of(host: Host, pid: int) -> int:
    """Return the child of a process."""
    return int(host.run(["pgrep", "-P", str(pid)]).stdout.split()[0])


def test_processes_that_cannot_move(site: Site, alpha: Host) -> None:
    """A thread, a zombie, and a traced, an uninterruptible and a vanished process."""
    tree = provoke(alpha, "zombie", "growing=/shared/threaded")
    thread = int(alpha.run(["ls", f"/proc/{tree.pid}/task"]).stdout.split()[1])
    assert codes(check(site, thread)) == {"THREAD"}
    assert codes(check(site, child_of(alpha, tree.pid))) == {"ZOMBIE"}
    assert codes(check(site, child_of(alpha, provoke(alpha, "traced").pid))) == {"TRACED"}
    waits = alpha.launch([PYTHON, PROVOKE, "vfork"])
    assert within(
        10, lambda: alpha.run(["ps", "-o", "stat=", "-p", str(waits)]).stdout.startswith("D")
    )
    assert "UNINTERRUPTIBLE" in codes(check(site, waits))
    alpha.run(["pkill", "-KILL", "-P", str(waits)])
    assert codes(check(site, 9_999)) == {"PROCESS_GONE"}


def test_namespaces(site: Site, alpha: Host) -> None:
    """Mounts of its own cannot be rebuilt; PID, IPC and UTS namespaces of the whole tree can."""
    assert codes(check(site, provoke(alpha, "plain", inside=("unshare", "--mount")).pid)) == {
        "NAMESPACE"
    }
    apart = provoke(
        alpha,
        *("sysv_shm", "sysv_semaphore", "sysv_queue"),
        inside=("unshare", "--ipc", "--uts", "--fork", "--pid", "setsid"),
    )
    first = child_of(alpha, apart.pid)
    report = check(site, first)
    assert stopping(report) == []
    ended = site.migrate(first, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]


def test_what_can_migrate_passes(site: Site, alpha: Host, beta: Host) -> None:
    """None of these stops the check or the migration; the migration's facts stay small."""
    guiltless = provoke(
        alpha,
        *(
            "groups",  # first: what it leaves outside the tree must share nothing of the others
            "events",
            "unix_pair",
            "netlink",
            "packet",
            "raw",
            "tcp_unbound",
            "tcp_bound",
            "listen=0.0.0.0:7001",
        ),
        *(
            "listen_both=7002",
            "udp=0.0.0.0:7003",
            "unix_server=/run/inside.sock",
            "unix_server=inside",
        ),
        *(
            "deleted=1000",
            "deleted_mapped=100000",
            "renamed",
            "pidfd_own",
            "shm_unlinked=/dev/shm/unlinked",
        ),
        *(
            "device=/dev/null",
            "device_read=/dev/urandom",
            "terminal_own",
            "zombie",
            "inotify=/run",
        ),
        *(
            "inotify=/etc/passwd",
            "opened_for_appending=/shared/appended",
            "growing=/shared/growing",
        ),
        *("open_file=/proc/self/maps", "chdir=/var/lib"),
    )
    assert len(guiltless.uses) >= 22
    for _ in range(3):
        report = check(site, guiltless.pid)
        assert stopping(report) == []
    assert report["estimate"][0]["move_bytes"] > 10**6
    ended = site.migrate(guiltless.pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    assert beta.run(["ps", "-o", "stat=", "-p", str(guiltless.pid)]).stdout[0] in "SR"
    assert "needs" not in [
        name for name, value in _facts(beta, ended.answer["id"]).items() if value is not None
    ]
    assert check(site, guiltless.pid, source="beta", destination="alpha")["estimate"]


def _facts(host: Host, migration: str) -> dict[str, Any]:
    """Return the facts of a migration in a host's journal."""
    query = (
        "import sqlite3, sys; journal = sqlite3.connect('/var/lib/sojourn/journal.db'); "
        "rows = journal.execute('SELECT facts FROM migration WHERE id = ?', sys.argv[1:]); "
        "print(rows.fetchone()[0])"
    )
    facts: dict[str, Any] = json.loads(host.run([PYTHON, "-c", query, migration]).stdout)
    return facts


def test_options_that_help(site: Site, alpha: Host, beta: Host) -> None:
    """What needs an option is reported with it; with all of them it passes, and migrates."""
    for host in (alpha, beta):
        host.run(["sh", "-c", "for name in locked also-locked; do > /srv/$name; done"])
    things = "flock=/srv/locked posix_lock=/srv/also-locked connected"
    shell = alpha.launch(["sh", "-c", f"{PYTHON} {PROVOKE} {things} > /shared/job; sleep 1000"])
    assert within(20, lambda: "ready" in alpha.run(["cat", "/shared/job"], check=False).stdout)
    job = child_of(alpha, shell)
    lacking = {(code, verdict) for code, verdict, _ in stopping(check(site, job))}
    needed = {"SHELL_JOB", "FILE_LOCKS", "TCP_ESTABLISHED"}
    assert lacking == {(code, "needs option") for code in needed}
    options = ("--shell-job", "--file-locks", "--tcp-established")
    report = check(site, job, *options)
    assert stopping(report) == []
    assert needed <= {
        finding["code"]
        for finding in report["findings"]
        if "takes care of it" in finding["sentence"]
    }
    ended = site.migrate(job, "alpha", "beta", *options)
    assert ended.code == 0, ended.answer["failure"]
    alpha.run(["kill", str(shell)])


def test_a_lock_on_shared_storage(site: Site, alpha: Host, beta: Host) -> None:
    """The frozen original would keep its lock, and the restore would never end: no option helps."""
    process = provoke(alpha, "flock=/shared/locked", "posix_lock=/shared/also-locked")
    found = stopping(check(site, process.pid, "--file-locks"))
    assert [(code, verdict) for code, verdict, _ in found] == [("FILE_LOCKS", "blocks")] * 2
    assert site.migrate(process.pid, "alpha", "beta", "--file-locks").code == 10


def test_what_the_destination_lacks(site: Site, alpha: Host, beta: Host) -> None:
    """PIDs, files, ports, addresses, processor features: all found in one go, and named."""
    alpha.run(["mkdir", "-p", "/srv/only-alpha"])
    for host, length, mode in ((alpha, 10, "644"), (beta, 5, "644")):
        host.run(
            ["sh", "-c", f"head -c {length} /dev/zero > /srv/shorter; chmod {mode} /srv/shorter"]
        )
        bits = "600" if host is beta else "644"
        host.run(["sh", "-c", f"head -c 10 /dev/zero > /srv/mode; chmod {bits} /srv/mode"])
    beta.run(["sh", "-c", "echo stale > /dev/shm/posix"])
    provoke(beta, "listen=0.0.0.0:7101", "udp=0.0.0.0:7102", "unix_server=taken")
    process = provoke(
        alpha,
        *(
            "listen=127.0.0.1:7101",
            "udp=0.0.0.0:7102",
            "unix_server=taken",
            f"udp_connected={beta.address}:53",
        ),
        *(
            "open_file=/srv/shorter",
            "open_file=/srv/mode",
            "chdir=/srv/only-alpha",
            "shm=/dev/shm/posix",
        ),
    )
    beta.run([PYTHON, "-c", OCCUPY, str(process.pid)])
    beta.run(["sh", "-c", "sed 's/ sse2 / /' /proc/cpuinfo > /tmp/cpuinfo"])
    beta.run(["mount", "--bind", "/tmp/cpuinfo", "/proc/cpuinfo"])
    try:
        found = stopping(check(site, process.pid))
    finally:
        beta.run(["umount", "/proc/cpuinfo"])
        beta.run(["kill", str(process.pid)])
    for code, part in (
        ("PID_TAKEN", f"PID {process.pid} is taken by process {process.pid}: sleep 1000."),
        ("FILE_MISSING", "/srv/only-alpha is missing."),
        ("MEMORY_FILE", "/dev/shm/posix is a file in memory that the tree writes, and another"),
        ("FILE_DIFFERS", "/srv/shorter has 5 bytes here and 10 on the source."),
        ("FILE_DIFFERS", "/srv/mode has mode 0100600 here and 0100644 on the source."),
        ("PORT_TAKEN", "tcp 127.0.0.1:7101 is taken by process"),
        ("PORT_TAKEN", "udp 0.0.0.0:7102 is taken by process"),
        ("SOCKET_TAKEN", "The name @taken of a Unix socket is taken by process"),
        ("ADDRESS_MISSING", f"udp {alpha.address} is not an address of this host."),
        ("CPU_FLAGS", "The processor lacks sse2, which the source's processor has."),
    ):
        assert (code, "blocks", part) in found or [
            finding for finding in found if finding[0] == code and part in finding[2]
        ], part
    assert len(found) == 10, found


def test_room_and_versions(site: Site, alpha: Host, beta: Host) -> None:
    """A cap that is too small, and a CRIU whose images differ."""
    beta.run(["sh", "-c", "printf '#!/bin/sh\\necho Version: 4.1.1\\n' > /usr/local/sbin/old-criu"])
    beta.run(["chmod", "+x", "/usr/local/sbin/old-criu"])
    process = provoke(alpha, "plain")
    site.configure(beta, images_bytes=4096, criu="/usr/local/sbin/old-criu")
    try:
        found = stopping(check(site, process.pid))
    finally:
        site.configure(beta)
    assert {finding[0] for finding in found} == {"NO_ROOM", "CRIU_VERSION"}
    assert "The source has CRIU 4.2" in next(
        finding[2] for finding in found if finding[0] == "CRIU_VERSION"
    )


def test_a_refusal_names_both_hosts(site: Site, alpha: Host, beta: Host) -> None:
    """A refusal counts what was found on either host."""
    provoke(beta, "listen=0.0.0.0:7201")
    process = provoke(alpha, "listen=0.0.0.0:7201", "pidfd=1")
    ended = site.migrate(process.pid, "alpha", "beta")
    assert ended.code == 10
    assert ended.answer["failure"]["message"].startswith("On alpha: A pidfd")
    assert "And 1 more on beta: see `sojourn check" in ended.answer["failure"]["message"]


def test_a_migration_is_under_way(site: Site, alpha: Host, beta: Host) -> None:
    """A tree that another migration holds is reported with that migration's id."""
    process = provoke(alpha, "plain")
    found: list[Finding] = []

    def look() -> None:
        found.extend(stopping(check(site, process.pid)))

    ended = site.migrate_meanwhile(process.pid, (alpha, "frozen.before"), look)
    assert ended.code == 0, ended.answer["failure"]
    sentences = [sentence for code, _, sentence in found if code == "MIGRATING"]
    assert any(sentence.endswith(f"by migration {ended.answer['id']}.") for sentence in sentences)


def test_for_people_and_for_nagios(site: Site, alpha: Host, beta: Host) -> None:
    """The rows show what stops it and what passed; Nagios gets one line, and its own codes."""
    good, bad = provoke(alpha, "plain"), provoke(alpha, "pidfd=1")
    route = ("--from", "alpha", "--to", "beta")
    table = site.sojourn("check", str(bad.pid), *route)
    assert table.returncode == 10
    assert "1 finding speaks against it" in table.stdout
    assert "blocks\tPIDFD_OUTSIDE\talpha\tA pidfd" in table.stdout
    assert "every PID is free" in table.stdout
    fine = site.sojourn("check", str(good.pid), *route, "--format", "nagios")
    assert (fine.returncode, fine.stdout[:5]) == (0, "OK - ")
    wrong = site.sojourn("check", str(bad.pid), *route, "--format", "nagios")
    assert (wrong.returncode, wrong.stdout[:11]) == (2, "CRITICAL - ")
    assert wrong.stdout.split(" | ")[1].startswith("blocks=1 needs_option=0 move=")
    nowhere = site.sojourn(
        "check", str(good.pid), "--from", "alpha", "--to", "nowhere", "--format", "nagios"
    )
    assert (nowhere.returncode, nowhere.stdout[:10]) == (3, "UNKNOWN - ")


def test_a_large_tree_is_checked_in_time(site: Site, alpha: Host, beta: Host) -> None:
    """Fifty processes with two thousand files, compared with one process, on the same machine.

    A second for each was usual before most of it was asked once for the whole tree.
    """
    tree, one = provoke(alpha, "many=2000"), alpha.launch(["sleep", "1000"])
    pids = [str(tree.pid), str(one)]
    took = alpha.run(["/opt/sojourn/bin/python3", "-c", ASK, *pids]).stdout.split()
    large, small = (min(map(float, took[number::2])) for number in range(2))
    assert large < MOST_TIMES * small, took


#: How much longer a check of the large tree may take than that of a single process.
MOST_TIMES = 20

#: Takes PIDs: asks for them in turns, and reports how long each answer took, in seconds.
ASK = """
import sys, time
from sojourn.model import Plan
from workflows.check import findings_of
for pid in sys.argv[1:] * 5:
    began = time.monotonic()
    findings, _ = findings_of(Plan(int(pid), "alpha", "beta"))
    print(time.monotonic() - began)
    assert not [finding for finding in findings if finding.stops], findings
"""


#: Names a configuration and a document root, and has neither open.
SERVES = "exec python3 -c 'import time; time.sleep(1000)' --conf=/srv/later/conf root"


def test_what_it_may_open_later(site: Site) -> None:
    """What its command line names is not on beta: a note, which is gone when its hint is followed.

    Before, nothing was reported, and the program would have missed it at its next reload.
    """
    alpha, beta = site.host("alpha"), site.host("beta")
    alpha.run(["sh", "-c", "mkdir -p /srv/later/root; cd /srv/later; touch conf root/page"])
    beta.run(["mkdir", "-p", "/srv/later/root"])
    pid = alpha.launch(["sh", "-c", f"cd /srv/later; {SERVES}"])
    try:
        assert within(10, lambda: "python3" in process_name(alpha, pid))
        (found,) = notes(check(site, pid))
        assert found["code"] == "WANTED_LATER"
        assert "does not have: /srv/later/conf, /srv/later/root." in found["sentence"]
        shown = site.sojourn("check", str(pid), "--from", "alpha", "--to", "beta").stdout
        assert "WANTED_LATER" in shown
        pack, unpack = re.findall("`(tar .*?)`", found["hint"])
        alpha.run(["sh", "-c", pack.replace("FILE", "/shared/later.tar")])
        beta.run(["sh", "-c", unpack.replace("FILE", "/shared/later.tar")])
        assert notes(check(site, pid)) == []
    finally:
        alpha.run(["kill", "-KILL", str(pid)])


def process_name(host: Host, pid: int) -> str:
    """Return the name of a host's process."""
    return host.run(["ps", "-o", "comm=", "-p", str(pid)], check=False).stdout


def notes(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what stops nothing, but should be read."""
    return [finding for finding in report["findings"] if finding["verdict"] == "note"]


def test_what_the_settings_forbid(site: Site, alpha: Host, beta: Host) -> None:
    """Each host refuses by its own settings, and the process runs on untouched."""
    pid = alpha.launch(["sleep", "1000"])
    try:
        for host, code in ((alpha, "MAY_NOT_LEAVE"), (beta, "MAY_NOT_COME")):
            site.configure(host, leave_users="nobody", come_from="gamma")
            refused = site.migrate(pid, "alpha", "beta")
            assert (refused.code, refused.answer["failure"]["code"]) == (10, code)
            assert "in sojourn.toml there" in refused.answer["failure"]["hint"]
            site.configure(host)
        assert alpha.run(["ps", "-o", "stat=", "-p", str(pid)]).stdout.startswith("S")
    finally:
        alpha.run(["kill", str(pid)])
        for host in (alpha, beta):
            site.configure(host)
