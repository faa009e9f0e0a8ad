"""What the destination checks: PIDs, files, ports, the processor, memory."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sojourn.criu.commands import Criu
from sojourn.model import Plan
from sojourn.preflight import files, lazy_restore, locks, machine, pids, room, sockets
from sojourn.preflight.files import Needed
from sojourn.preflight.finding import Finding, Verdict
from sojourn.preflight.locks import Lock
from sojourn.preflight.same_file import digests, file_systems, is_vouched, marks, remote_devices
from sojourn.preflight.sockets import Bound
from sojourn.settings import load
from sojourn.system import cpu
from tests.conftest import eventually
from tests.unit.test_preflight_findings import needs


def codes(findings: Iterator[Finding]) -> list[str]:
    """Return the codes of what stops a migration."""
    return [finding.code for finding in findings if finding.stops]


def test_a_taken_pid_is_reported_with_its_owner() -> None:
    """The owner is a process, named by its command line."""
    with subprocess.Popen(["sleep", "60"]) as owner:
        (finding,) = pids.taken([owner.pid, 4_194_303])
        owner.kill()
    assert finding.code == "PID_TAKEN"
    assert finding.sentence == f"PID {owner.pid} is taken by process {owner.pid}: sleep 60."


def test_a_thread_takes_a_pid() -> None:
    """Threads share the numbers of processes."""
    done, threads = threading.Event(), []

    def wait() -> None:
        threads.append(threading.get_native_id())
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: threads)
    owners = pids.owned(threads)
    done.set()
    thread.join()
    assert owners[threads[0]].startswith(f"a thread of process {os.getpid()}: ")


def test_a_group_takes_the_pid_of_its_leader_that_is_gone() -> None:
    """A number is not free while a group or a session has it."""
    code = (
        "import os, time; os.setsid(); os.fork() and os._exit(0); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as leader:
        assert leader.stdout
        member = int(leader.stdout.readline())
        leader.wait()
        owners = pids.owned([leader.pid])
        os.kill(member, 9)
    assert f"of process {member}" in owners[leader.pid]


def test_a_pid_beyond_the_limit_of_the_host() -> None:
    """The limit itself is never assigned."""
    limit = int(Path("/proc/sys/kernel/pid_max").read_text())
    assert codes(pids.out_of_range([limit - 1])) == []
    assert codes(pids.out_of_range([2, limit])) == ["PID_RANGE"]
    assert codes(pids.out_of_range([])) == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of three bytes."""
    path = tmp_path / "data"
    path.write_text("abc")
    path.chmod(0o644)
    return path


def needed(path: Path, **other: Any) -> Needed:
    """Return what the source would need if it had the same file, except for what is given."""
    stat = path.stat()
    fields = {
        "mode": stat.st_mode,
        "size": stat.st_size,
        "owner": (stat.st_uid, stat.st_gid),
        **other,
    }
    return Needed(str(path), **fields)


def test_a_file_that_is_the_same(file: Path) -> None:
    """Directories are compared by their mode alone."""
    assert codes(files.missing_or_different([needed(file), needed(file.parent, size=None)])) == []


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"size": 4}, "has 3 bytes here and 4 on the source"),
        ({"mode": 0o100600}, "has mode 0100644 here and 0100600 on the source"),
        ({"mode": 0o040755}, "has mode 0100644 here and 040755 on the source"),
        ({"owner": (33, 34)}, f"belongs to {os.getuid()}:{os.getgid()} (user:group) here"),
    ],
)
def test_a_file_that_differs(file: Path, other: dict[str, Any], difference: str) -> None:
    """Size, mode, type and owner are compared, and the difference is named."""
    (finding,) = files.missing_or_different([needed(file, **other)])
    assert finding.code == "FILE_DIFFERS"
    assert difference in finding.sentence


def test_a_file_that_is_missing(file: Path) -> None:
    """Of many missing files the first are named and the others counted."""
    wanted = [Needed(f"{file}-{number}", 0o100644) for number in range(8)]
    found = list(files.missing_or_different(wanted))
    assert {finding.code for finding in found} == {"FILE_MISSING"}
    assert found[0].sentence == f"{file}-0 is missing."
    assert found[-1].sentence.startswith("3 more files are missing: ")


def test_a_log_may_have_grown(file: Path) -> None:
    """CRIU does not compare the size of a file that is open for appending only."""
    assert codes(files.missing_or_different([needed(file, size=None)])) == []


def test_the_same_object_may_have_grown(file: Path, tmp_path: Path) -> None:
    """What the tree writes is recognised, by any path; a copy of it is another file."""
    seen = marks(str(file), str(file), file.stat(), file_systems())
    link, copy = tmp_path / "link", tmp_path / "copy"
    link.hardlink_to(file)
    copy.write_bytes(file.read_bytes())
    assert codes(files.missing_or_different([needed(link, size=2, written=True, marks=seen)])) == []
    wrong = needed(copy, size=2, written=True, marks=seen)
    assert codes(files.missing_or_different([wrong])) == ["FILE_DIFFERS"]
    assert files.to_compare([needed(link, written=True, marks=seen)]) == []
    other = needed(copy, written=True, marks=seen)
    assert files.to_compare([other, needed(copy)]) == [other]


def test_a_copy_that_another_program_uses(file: Path) -> None:
    """Two programs would write to it, each as if it were alone."""
    assert codes(files.missing_or_different([needed(file, written=True)])) == []
    with file.open("ab") as opened, subprocess.Popen(["sleep", "60"], stdin=opened) as user:
        (finding,) = files.missing_or_different([needed(file, written=True)])
        user.kill()
    assert finding.sentence.startswith(f"Process {user.pid} (/usr/bin/sleep) of this host has")


def test_shared_storage_by_the_settings(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a setting vouches for is recognised by its number, on the same kind of storage.

    Where that was not mounted, the directory is one of a local disk.
    """
    found = os.stat_result((*file.stat()[:2], os.makedev(0, 99), *file.stat()[3:]))
    systems = {found.st_dev: ("virtiofs", "site"), file.stat().st_dev: ("ext4", "/dev/vda")}
    vouched = f"virtiofs:{tmp_path}:{found.st_ino}"
    assert vouched not in marks(str(file), str(file), found, systems)
    monkeypatch.setenv("SOJOURN_SHARED_PATHS", f"/srv:{tmp_path}")
    load.cache_clear()
    assert vouched in marks(str(file), str(file), found, systems)
    assert vouched not in marks(str(file), str(file), file.stat(), systems)
    assert file.stat().st_dev not in remote_devices()  # a disk, which is no network
    assert is_vouched(str(file))
    load.cache_clear()


def test_equal_size_is_not_equal_content(file: Path, tmp_path: Path) -> None:
    """What is only read is compared by content, unless both were changed at the same instant."""
    other = tmp_path / "other"
    other.write_text("abd")
    seen = other.stat()
    theirs = files.fingerprint(str(other), seen.st_dev, seen.st_ino, seen.st_mtime_ns, 3)
    found = needed(file, fingerprint=theirs, changed_ns=seen.st_mtime_ns + 1)
    (finding,) = files.missing_or_different([found])
    assert finding.sentence == f"{file} has another content here than on the source."
    same = replace(found, changed_ns=file.stat().st_mtime_ns)
    assert codes(files.missing_or_different([same])) == []
    other.write_text("abc")
    ours = files.fingerprint(str(other), seen.st_dev, seen.st_ino, seen.st_mtime_ns + 1, 3)
    assert codes(files.missing_or_different([replace(found, fingerprint=ours)])) == []


@pytest.mark.parametrize("size", [1, 2**16, 2**16 + 1, 2**22 + 5, 2**25])
def test_a_fingerprint_sees_both_ends(tmp_path: Path, size: int) -> None:
    """Of a file of any size."""
    path, prints = tmp_path / "large", set()
    for number, change in enumerate((None, 0, size - 1)):
        with path.open("wb") as written:
            written.truncate(size)
            if change is not None:
                written.seek(change)
                written.write(b"x")
        prints.add(files.fingerprint(str(path), 0, 0, number, size))
    assert len(prints) == (2 if size == 1 else 3)


def test_what_is_too_large_to_compare(file: Path) -> None:
    """Only so much is read while a tree is frozen."""
    with file.open("ab") as grown:
        grown.truncate(files.COMPARED_BYTES + 1)
    assert codes(files.missing_or_different([needed(file)])) == []
    (finding,) = files.missing_or_different([needed(file, written=True)])
    assert "too large to be compared" in finding.sentence


def test_content_is_compared_by_its_hash(file: Path) -> None:
    """A file that is gone has none."""
    found = digests([str(file), f"{file}-gone"])
    assert found == {str(file): hashlib.sha256(file.read_bytes()).hexdigest()}


def elf(build_id: bytes, *, wide: bool) -> bytes:
    """Return the smallest ELF file with two notes, the second of which is a build ID."""
    notes = (
        struct.pack("<III4sI", 4, 4, 1, b"GNU\0", 0)
        + struct.pack("<III4s", 4, len(build_id), 3, b"GNU\0")
        + build_id
    )
    start = bytes([0x7F, *b"ELF", 2 if wide else 1, 1, 1]) + bytes(9)
    if wide:
        head = start + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        return head + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4) + notes
    head = start + struct.pack("<HHIIIIIHHHHHH", 3, 3, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return head + struct.pack("<IIIIIIII", 4, 84, 0, 0, len(notes), len(notes), 4, 4) + notes


@pytest.mark.parametrize("wide", [True, False])
def test_a_build_id_is_read(tmp_path: Path, wide: bool) -> None:
    """64-bit and 32-bit programs have one; a file cut short, or of another kind, has none."""
    program = tmp_path / "program"
    program.write_bytes(elf(b"\x01\x02\x03\xff", wide=wide))
    assert files.build_id(str(program), 0, 1, 0) == "010203ff"
    program.write_bytes(elf(b"\x01\x02\x03\xff", wide=wide)[:60])
    assert files.build_id(str(program), 0, 2, 0) == ""
    program.write_text("#!/bin/sh")
    assert files.build_id(str(program), 0, 3, 0) == ""


def test_another_build_id(tmp_path: Path) -> None:
    """Another build of the same size is reported, and one that has lost its build ID."""
    program = tmp_path / "program"
    program.write_bytes(elf(b"\x01\x02\x03\x04", wide=True))
    assert codes(files.missing_or_different([needed(program, build_id="01020304")])) == []
    assert codes(files.missing_or_different([needed(program, build_id="01020305")])) == [
        "FILE_DIFFERS"
    ]
    program.write_bytes(bytes(program.stat().st_size))
    assert codes(files.missing_or_different([needed(program, build_id="01020304")])) == [
        "FILE_DIFFERS"
    ]


@pytest.mark.parametrize("by_flock", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_lock_that_is_in_force_here(file: Path, by_flock: bool, exclusive: bool) -> None:
    """A lock that the frozen original holds on shared storage is reported; a free one is not."""
    lock = Lock(str(file), by_flock, exclusive)
    assert codes(locks.unavailable([lock, Lock(f"{file}-missing", by_flock, exclusive)])) == []
    take = "flock" if by_flock else "lockf"
    holder = (
        f"import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.{take}(f, fcntl.LOCK_EX); "
        "print(0, flush=True); input()"
    )
    command = [sys.executable, "-c", holder, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        assert codes(locks.unavailable([lock])) == ["FILE_LOCKS"]
        running.kill()


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    """Listen on the loopback address."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()


def test_a_taken_port_is_reported_with_its_owner(listener: tuple[str, int]) -> None:
    """It is reported too if the tree listens on all addresses and the owner on one."""
    for address in ("127.0.0.1", "0.0.0.0"):
        (finding,) = sockets.taken([Bound("tcp", address, listener[1])])
        assert finding.code == "PORT_TAKEN"
        assert f"is taken by process {os.getpid()} (" in finding.sentence


def test_a_port_that_is_free(listener: tuple[str, int]) -> None:
    """The same number of another protocol or address is another port."""
    free = [
        Bound("udp", "127.0.0.1", listener[1]),
        Bound("tcp", "127.0.0.2", listener[1]),
        Bound("tcp", "127.0.0.1", 0),
    ]
    assert codes(sockets.taken(free)) == []


def test_an_address_that_the_host_does_not_have() -> None:
    """An established connection needs its local address, whatever the port."""
    assert codes(sockets.taken([Bound("tcp", "192.0.2.1", 0)])) == ["ADDRESS_MISSING"]
    assert codes(sockets.taken([Bound("udp", "192.0.2.1", 5353)])) == ["ADDRESS_MISSING"]


def test_an_abstract_name_that_is_taken() -> None:
    """Names of Unix sockets without a file are those of the whole network namespace."""
    name = f"sojourn-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        assert codes(sockets.taken([Bound("unix", f"@{name}")])) == ["SOCKET_TAKEN"]
    assert codes(sockets.taken([Bound("unix", f"@{name}")])) == []


def test_both_ends_of_a_pair_are_peers() -> None:
    """The kernel reports the peer of a Unix socket (sock_diag(7))."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inodes = [os.fstat(end.fileno()).st_ino for end in (ours, theirs)]
        peers = sockets.unix_peers()
    assert [peers.get(inode) for inode in inodes] == inodes[::-1]


def test_sockets_are_read_from_proc(listener: tuple[str, int]) -> None:
    """Address, port and state are those of the socket."""
    mine = [
        one for one in sockets.inet(os.getpid()) if one.table == "tcp" and one.port == listener[1]
    ]
    assert [(one.address, one.state, one.connected, one.queued) for one in mine] == [
        ("127.0.0.1", 10, False, False)
    ]
    with socket.create_connection(listener):
        waiting = [
            one for one in sockets.inet("self") if one.port == listener[1] and one.state == 10
        ]
        ends = [
            one
            for one in sockets.inet("self")
            if listener[1] in {one.port, one.peer_port} and one.connected
        ]
    assert [one.queued for one in waiting] == [True]
    assert len(ends) == 2


@pytest.fixture
def criu(tmp_path: Path) -> Criu:
    """Return a CRIU that reports version 4.2.1 and has no features."""
    program = tmp_path / "criu"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Version: 4.2.1" && exit\nexit 1\n')
    program.chmod(0o755)
    return Criu(program)


def test_two_machines_that_are_alike(criu: Criu) -> None:
    """The destination may have more flags than the source, and another patch level of CRIU."""
    ours = os.uname().machine
    assert codes(machine.differences(ours, list(cpu.flags()[:-1]), "4.2.7", criu)) == []


def test_two_machines_that_differ(criu: Criu) -> None:
    """Missing flags are named; with another kind of processor nothing else is checked."""
    ours = os.uname().machine
    lacking, version = machine.differences(ours, ["made_up_flag", *cpu.flags()], "4.1.1", criu)
    assert (lacking.code, version.code) == ("CPU_FLAGS", "CRIU_VERSION")
    assert "lacks made_up_flag," in lacking.sentence
    assert codes(machine.differences("s390x", [], "4.1.1", criu)) == ["MACHINE"]


def test_what_a_mode_needs(criu: Criu) -> None:
    """Stop-and-copy needs no features; one that another mode lacks is named."""
    assert codes(machine.missing_features(criu, "stop-and-copy")) == []
    assert codes(machine.missing_features(criu, "pre-copy")) == ["CRIU_FEATURE"]


def test_a_destination_without_userfaultfd() -> None:
    """It is refused in post-copy: there is no other way for the memory to come."""
    lacking = Criu(Path("/bin/false"))
    (found,) = machine.missing_features(lacking, "post-copy")
    assert (found.code, found.stops) == ("CRIU_FEATURE", True)
    assert found.sentence == "Kernel and CRIU lack uffd-noncoop, which post-copy needs."


@pytest.mark.parametrize(
    ("criu_version", "kernel", "old"),
    [
        ("4.1.1", "6.16.0", True),
        ("4.2", "6.18.4-amd64", False),
        ("4.1.1", "6.12.9", False),
        ("3.17.1", "7.0", True),
    ],
)
def test_a_criu_that_is_too_old_for_the_kernel(criu_version: str, kernel: str, old: bool) -> None:
    """CRIU before 4.2 cannot dump TCP and UDP sockets on Linux 6.16 or later."""
    assert machine.too_old(criu_version, kernel) is old


def test_room() -> None:
    """A small tree fits; one larger than the machine, or with more tasks than PIDs, does not."""
    assert codes(room.check(2**20, 2**20, 1, cap_bytes=None)) == []
    assert codes(room.check(2**60, 2**60, 1, cap_bytes=None)) == ["NO_ROOM"]
    assert codes(room.check(2**20, 2**20, 2**23, cap_bytes=None)) == ["PIDS_EXHAUSTED"]


def test_the_cap_for_images() -> None:
    """Only memory that is certainly sent counts: shared memory may have been counted twice."""
    assert codes(room.check(8 * 2**20, 2**20, 1, cap_bytes=2**21)) == []
    assert codes(room.check(8 * 2**20, 2**22, 1, cap_bytes=2**21)) == ["NO_ROOM"]


def test_memory_in_common_since_a_fork_in_post_copy() -> None:
    """Each process gets its own copy: that is shown with its price, and stops nothing."""
    criu, plan = Criu(Path("/nonexistent")), Plan(4242, "alpha", "beta", "post-copy")
    needed = needs(0)
    few, many = (replace(needed, forked_bytes=size) for size in (10**6, 5 * 10**8))
    assert list(lazy_restore.check(few, criu, wanted=True, plan=plan)) == []
    (found,) = lazy_restore.check(many, criu, wanted=False, plan=plan)
    assert (found.code, found.verdict) == ("LAZY_RESTORE", Verdict.NOTE)
    assert "takes 500.0 MB more than on alpha" in found.sentence
    assert "wait" not in found.sentence
