"""``sojourn check`` on real hosts: what is provoked is found and refused, what passes migrates well."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab.errors import LabFailed
from lab.host import Host, within
from tests.lab.site import Site, left_behind

pytestmark = pytest.mark.lab

PROVOKE = "/opt/sojourn/src/tests/lab/provoke.py"
PYTHON = "/usr/bin/python3"

Finding = tuple[str, str, str]


@dataclass(frozen=True)
class Provoked:
    """A process that uses something; ``uses`` is what the kernel let it have."""

    pid: int
    uses: frozenset[str]


@pytest.fixture
def alpha(site: Site) -> Iterator[Host]:
    """Return the host on which the processes start."""
    host = site.host("alpha")
    yield host
    host.run(["pkill", "-KILL", "-f", PROVOKE], check=False)


@pytest.fixture
def beta(site: Site) -> Iterator[Host]:
    """Return the host to which they shall go."""
    host = site.host("beta")
    yield host
    host.run(["pkill", "-KILL", "-f", PROVOKE], check=False)


def provoke(host: Host, *things: str, inside: tuple[str, ...] = ()) -> Provoked:
    """Start a process that uses these things, perhaps by way of another command, and return when it does."""
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


def check(site: Site, pid: int, *options: str, source: str = "alpha", destination: str = "beta") -> dict[str, Any]:
    """Return what ``sojourn check --json`` says."""
    ended = site.sojourn("check", str(pid), "--from", source, "--to", destination, "--json", *options)
    said: dict[str, Any] = json.loads(ended.stdout)
    assert "findings" in said, said
    assert ended.returncode == (0 if said["migratable"] else 10)
    return said


def stopping(said: dict[str, Any]) -> list[Finding]:
    """Return what stops the migration: code, verdict and sentence."""
    return [(each["code"], each["verdict"], each["sentence"]) for each in said["findings"] if each["verdict"] != "ok"]


def codes(said: dict[str, Any]) -> set[str]:
    """Return the codes of what stops the migration."""
    return {code for code, _, _ in stopping(said)}


#: What the source finds: the thing, its code, and what the sentence names. Those of one list are provoked at once.
ON_THE_SOURCE = {
    "objects": [
        ("io_uring", "IO_URING", "anon_inode:[io_uring] (descriptor"),
        ("perf", "FILE_UNSUPPORTED", "anon_inode:[perf_event] (descriptor"),
        ("bpf_prog", "FILE_UNSUPPORTED", "anon_inode:bpf-prog (descriptor"),
        ("bpf_map", "FILE_UNSUPPORTED", "anon_inode:bpf-map (descriptor"),
        ("userfaultfd", "FILE_UNSUPPORTED", "anon_inode:[userfaultfd] (descriptor"),
        ("inotify=/opt", "INOTIFY", "watches a file that CRIU can not find again"),
        ("sysv_shm", "SYSV_SHM", "/SYSV00000000, in the host's IPC namespace"),
        ("pidfd=1", "PIDFD_OUTSIDE", "of process 1, outside of the tree"),
        ("device=/dev/net/tun", "DEVICE", "/dev/net/tun (descriptor"),
        ("namespace=0x04000000", "NAMESPACE", "a uts namespace of its own inside the tree"),
    ],
    "files and sockets": [
        ("deleted=1500000", "GHOST_TOO_LARGE", "was deleted and has 1503232 bytes"),
        ("linked_elsewhere", "FILE_DELETED", "/file (descriptor"),
        ("flock=/srv/flocked", "FILE_LOCKS", "Files are locked: /srv/flocked"),
        ("mptcp", "SOCKET_UNSUPPORTED", "A socket of type MPTCP"),
        ("vsock", "SOCKET_UNSUPPORTED", "A socket of type AF_VSOCK"),
        ("connected", "TCP_ESTABLISHED", "127.0.0.1:7788"),
        ("in_flight", "TCP_IN_FLIGHT", "tcp 127.0.0.1:7787 waits"),
        ("unix_stream=/run/outside.sock", "UNIX_PEER_OUTSIDE", "is connected to /run/outside.sock"),
        ("terminal_of_other=/run/outside.tty", "SHELL_JOB", "belongs to a program outside of the tree"),
        ("traced", "TRACED", "is traced by process"),
    ],
}


@pytest.mark.parametrize("group", ON_THE_SOURCE)
def test_what_is_provoked_on_the_source(site: Site, alpha: Host, beta: Host, group: str) -> None:
    """Everything is found at once, each thing named; the migration is refused, and nothing was touched."""
    beta.run(["touch", "/srv/flocked"])
    others = provoke(alpha, "unix_server=/run/outside.sock", "holder_of_terminal=/run/outside.tty")
    guilty = provoke(alpha, *(thing for thing, _, _ in ON_THE_SOURCE[group]))
    found = stopping(check(site, guilty.pid))
    expected = [row for row in ON_THE_SOURCE[group] if row[0].split("=")[0] in guilty.uses]
    assert len(expected) >= 7
    for thing, code, words in expected:
        assert [each for each in found if each[0] == code and words in each[2]], (thing, found)
    assert {each[0] for each in found} == {code for _, code, _ in expected}
    ended = site.migrate(guilty.pid, "alpha", "beta")
    assert (ended.code, ended.said["state"], ended.said["owner"]) == (10, "refused", "alpha")
    assert ended.said["failure"]["code"] == found[0][0]
    assert f"And {len(found) - 1} more on alpha: see `sojourn check {guilty.pid}" in ended.said["failure"]["message"]
    assert left_behind(alpha) == left_behind(beta) == []
    assert alpha.run(["ps", "-o", "stat=", "-p", str(guilty.pid)]).stdout.startswith("S")
    del others


def child_of(host: Host, pid: int) -> int:
    """Return the child of a process."""
    return int(host.run(["pgrep", "-P", str(pid)]).stdout.split()[0])


def test_processes_that_can_not_move(site: Site, alpha: Host) -> None:
    """A thread, a zombie, a traced one, one that nothing interrupts, one that is gone: each by its own PID."""
    tree = provoke(alpha, "zombie", "growing=/shared/threaded")
    thread = int(alpha.run(["ls", f"/proc/{tree.pid}/task"]).stdout.split()[1])
    assert codes(check(site, thread)) == {"THREAD"}
    assert codes(check(site, child_of(alpha, tree.pid))) == {"ZOMBIE"}
    assert codes(check(site, child_of(alpha, provoke(alpha, "traced").pid))) == {"TRACED"}
    waits = alpha.launch([PYTHON, PROVOKE, "vfork"])
    assert within(10, lambda: alpha.run(["ps", "-o", "stat=", "-p", str(waits)]).stdout.startswith("D"))
    assert "UNINTERRUPTIBLE" in codes(check(site, waits))
    alpha.run(["pkill", "-KILL", "-P", str(waits)])
    assert codes(check(site, 9_999)) == {"PROCESS_GONE"}


def test_namespaces(site: Site, alpha: Host) -> None:
    """Mounts of its own can not be rebuilt; PID, IPC and UTS namespaces of the whole tree can."""
    assert codes(check(site, provoke(alpha, "plain", inside=("unshare", "--mount")).pid)) == {"NAMESPACE"}
    apart = provoke(alpha, "sysv_shm", inside=("unshare", "--ipc", "--uts", "--fork", "--pid", "setsid"))
    first = child_of(alpha, apart.pid)
    said = check(site, first)
    assert stopping(said) == []
    ended = site.migrate(first, "alpha", "beta")
    assert ended.code == 0, ended.said["failure"]


def test_what_moves_well_is_let_pass(site: Site, alpha: Host, beta: Host) -> None:
    """None of these is in the way: not at the check, and not in the migration; its facts stay small."""
    guiltless = provoke(
        alpha,
        *("events", "unix_pair", "netlink", "packet", "raw", "tcp_unbound", "tcp_bound", "listen=0.0.0.0:7001"),
        *("listen_both=7002", "udp=0.0.0.0:7003", "unix_server=/run/inside.sock", "unix_server=inside"),
        *("deleted=1000", "deleted_mapped=100000", "renamed", "pidfd_own", "shm_unlinked=/dev/shm/unlinked"),
        *("device=/dev/null", "device_read=/dev/urandom", "terminal_own", "zombie", "groups", "inotify=/run"),
        *("inotify=/etc/passwd", "opened_for_appending=/shared/appended", "growing=/shared/growing"),
        *("open_file=/proc/self/maps", "chdir=/var/lib"),
    )
    assert len(guiltless.uses) >= 22
    for _ in range(3):
        said = check(site, guiltless.pid)
        assert stopping(said) == []
    assert said["estimate"][0]["move_bytes"] > 10**6
    ended = site.migrate(guiltless.pid, "alpha", "beta")
    assert ended.code == 0, ended.said["failure"]
    assert beta.run(["ps", "-o", "stat=", "-p", str(guiltless.pid)]).stdout[0] in "SR"
    assert "needs" not in [name for name, value in _facts(beta, ended.said["id"]).items() if value is not None]
    assert check(site, guiltless.pid, source="beta", destination="alpha")["estimate"]


def _facts(host: Host, migration: str) -> dict[str, Any]:
    """Return what a host's journal holds of a migration."""
    query = (
        "import sqlite3, sys; journal = sqlite3.connect('/var/lib/sojourn/journal.db'); "
        "print(journal.execute('SELECT facts FROM migration WHERE id = ?', sys.argv[1:]).fetchone()[0])"
    )
    facts: dict[str, Any] = json.loads(host.run([PYTHON, "-c", query, migration]).stdout)
    return facts


def test_options_that_help(site: Site, alpha: Host, beta: Host) -> None:
    """What needs an option is told with it; with all of them it passes, and migrates."""
    for host in (alpha, beta):
        host.run(["sh", "-c", "for name in locked also-locked; do > /srv/$name; done"])
    shell = alpha.launch(
        [
            "sh",
            "-c",
            f"{PYTHON} {PROVOKE} flock=/srv/locked posix_lock=/srv/also-locked connected > /shared/job; sleep 1000",
        ]
    )
    assert within(20, lambda: "ready" in alpha.run(["cat", "/shared/job"], check=False).stdout)
    job = child_of(alpha, shell)
    lacking = {(code, verdict) for code, verdict, _ in stopping(check(site, job))}
    needed = {"SHELL_JOB", "FILE_LOCKS", "TCP_ESTABLISHED"}
    assert lacking == {(code, "needs option") for code in needed}
    options = ("--shell-job", "--file-locks", "--tcp-established")
    said = check(site, job, *options)
    assert stopping(said) == []
    assert needed <= {each["code"] for each in said["findings"] if "moves it along" in each["sentence"]}
    ended = site.migrate(job, "alpha", "beta", *options)
    assert ended.code == 0, ended.said["failure"]
    alpha.run(["kill", str(shell)])


def test_a_lock_on_shared_storage(site: Site, alpha: Host, beta: Host) -> None:
    """The frozen original would keep its lock from the restore, which would wait for ever: no option helps."""
    process = provoke(alpha, "flock=/shared/locked", "posix_lock=/shared/also-locked")
    found = stopping(check(site, process.pid, "--file-locks"))
    assert [(code, verdict) for code, verdict, _ in found] == [("FILE_LOCKS", "blocks")] * 2
    assert site.migrate(process.pid, "alpha", "beta", "--file-locks").code == 10


def test_what_the_destination_lacks(site: Site, alpha: Host, beta: Host) -> None:
    """PIDs, files, ports, names, addresses, processor features: all found at once, each with its name."""
    alpha.run(["mkdir", "-p", "/srv/only-alpha"])
    for host, length, mode in ((alpha, 10, "644"), (beta, 5, "644")):
        host.run(["sh", "-c", f"head -c {length} /dev/zero > /srv/shorter; chmod {mode} /srv/shorter"])
        host.run(["sh", "-c", f"head -c 10 /dev/zero > /srv/mode; chmod {'600' if host is beta else '644'} /srv/mode"])
    provoke(beta, "listen=0.0.0.0:7101", "udp=0.0.0.0:7102", "unix_server=taken")
    process = provoke(
        alpha,
        *("listen=127.0.0.1:7101", "udp=0.0.0.0:7102", "unix_server=taken", f"udp_connected={beta.address}:53"),
        *("open_file=/srv/shorter", "open_file=/srv/mode", "chdir=/srv/only-alpha", "shm=/dev/shm/posix"),
    )
    beta.run([PYTHON, "-c", OCCUPY, str(process.pid)])
    beta.run(["sh", "-c", "sed 's/ sse2 / /' /proc/cpuinfo > /tmp/cpuinfo; mount --bind /tmp/cpuinfo /proc/cpuinfo"])
    try:
        found = stopping(check(site, process.pid))
    finally:
        beta.run(["umount", "/proc/cpuinfo"])
        beta.run(["kill", str(process.pid)])
    for code, words in (
        ("PID_TAKEN", f"PID {process.pid} is taken by process {process.pid}: sleep 1000."),
        ("FILE_MISSING", "/srv/only-alpha is missing."),
        ("FILE_MISSING", "/dev/shm/posix is missing: /dev/shm is not shared between hosts."),
        ("FILE_DIFFERS", "/srv/shorter has 5 bytes, and 10 on the source."),
        ("FILE_DIFFERS", "/srv/mode has mode 0100600, and 0100644 on the source."),
        ("PORT_TAKEN", "tcp 127.0.0.1:7101 is taken by process"),
        ("PORT_TAKEN", "udp 0.0.0.0:7102 is taken by process"),
        ("SOCKET_TAKEN", "The name @taken of a unix socket is taken."),
        ("ADDRESS_MISSING", f"udp {alpha.address} is no address of this host."),
        ("CPU_FLAGS", "The processor lacks sse2, which the source's has."),
    ):
        assert (code, "blocks", words) in found or [each for each in found if each[0] == code and words in each[2]], (
            words
        )
    assert len(found) == 10, found


def test_room_and_versions(site: Site, alpha: Host, beta: Host) -> None:
    """A cap that is too small, and a CRIU that speaks another language."""
    beta.run(["sh", "-c", "printf '#!/bin/sh\\necho Version: 4.1.1\\n' > /usr/local/sbin/old-criu"])
    beta.run(["chmod", "+x", "/usr/local/sbin/old-criu"])
    process = provoke(alpha, "plain")
    site.configure(beta, images_bytes=4096, criu="/usr/local/sbin/old-criu")
    try:
        found = stopping(check(site, process.pid))
    finally:
        site.configure(beta)
    assert {each[0] for each in found} == {"NO_ROOM", "CRIU_VERSION"}
    assert "The source has CRIU 4.2" in next(each[2] for each in found if each[0] == "CRIU_VERSION")


def test_both_hosts_are_told(site: Site, alpha: Host, beta: Host) -> None:
    """A refusal counts what was found on either host."""
    provoke(beta, "listen=0.0.0.0:7201")
    process = provoke(alpha, "listen=0.0.0.0:7201", "pidfd=1")
    ended = site.migrate(process.pid, "alpha", "beta")
    assert ended.code == 10
    assert ended.said["failure"]["message"].startswith("On alpha: A PID descriptor")
    assert "And 1 more on beta: see `sojourn check" in ended.said["failure"]["message"]


def test_a_migration_is_under_way(site: Site, alpha: Host, beta: Host) -> None:
    """A tree that another migration holds is told with that migration's id."""
    process = provoke(alpha, "plain")
    found: list[Finding] = []
    look: Callable[[], object] = lambda: found.extend(stopping(check(site, process.pid)))  # noqa: E731
    ended = site.migrate_meanwhile(process.pid, (alpha, "frozen.before"), look)
    assert ended.code == 0, ended.said["failure"]
    assert ("MIGRATING", f"by {ended.said['id']}.") in [
        (code, words[-len(ended.said["id"]) - 4 :]) for code, _, words in found
    ]


def test_for_people_and_for_nagios(site: Site, alpha: Host, beta: Host) -> None:
    """The table shows what stops it with hints, and what was well; Nagios gets a line, and codes of its own."""
    good, bad = provoke(alpha, "plain"), provoke(alpha, "pidfd=1")
    route = ("--from", "alpha", "--to", "beta")
    table = site.sojourn("check", str(bad.pid), *route)
    assert table.returncode == 10
    assert "PIDFD_OUTSIDE  alpha  A PID descriptor" in table.stdout
    assert "every PID is free" in table.stdout
    fine = site.sojourn("check", str(good.pid), *route, "--format", "nagios")
    assert (fine.returncode, fine.stdout[:5]) == (0, "OK - ")
    wrong = site.sojourn("check", str(bad.pid), *route, "--format", "nagios")
    assert (wrong.returncode, wrong.stdout[:11]) == (2, "CRITICAL - ")
    assert wrong.stdout.split(" | ")[1].startswith("blocks=1 needs_option=0 move=")
    nowhere = site.sojourn("check", str(good.pid), "--from", "alpha", "--to", "nowhere", "--format", "nagios")
    assert (nowhere.returncode, nowhere.stdout[:10]) == (3, "UNKNOWN - ")


def test_a_large_tree_is_looked_at_in_a_moment(site: Site, alpha: Host, beta: Host) -> None:
    """Fifty processes with two thousand files of their own: asked by a program that has connected already."""
    tree = provoke(alpha, "many=2000")
    took = alpha.run(["/opt/sojourn/bin/python3", "-c", ASK, str(tree.pid)]).stdout.split()
    assert min(map(float, took)) < 1, took


#: Takes a PID: asks five times, and says how long each answer took, in seconds.
ASK = """
import sys, time
from sojourn.model import Plan
from workflows.check import findings_of
plan = Plan(int(sys.argv[1]), "alpha", "beta")
for _ in range(5):
    began = time.monotonic()
    findings, _ = findings_of(plan)
    print(time.monotonic() - began)
assert not [each for each in findings if each.stops], findings
"""

#: Takes a PID: starts a program that has it.
OCCUPY = """
import os, sys
pid = int(sys.argv[1])
open("/proc/sys/kernel/ns_last_pid", "w").write(str(pid - 1))
if os.fork() == 0:
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.execvp("sleep", ["sleep", "1000"])
"""
