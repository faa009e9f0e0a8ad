"""What the destination looks at: PIDs, files, ports, the processor, room."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn import processor
from sojourn.criu import Criu
from sojourn.preflight import files, locks, machine, pids, room, sockets
from sojourn.preflight.files import Needed
from sojourn.preflight.finding import Finding
from sojourn.preflight.locks import Lock
from sojourn.preflight.sockets import Bound
from tests.conftest import eventually


def codes(findings: Iterator[Finding]) -> list[str]:
    """Return the codes of what stops a migration."""
    return [finding.code for finding in findings if finding.stops]


def test_a_pid_that_is_taken_is_told_with_its_owner() -> None:
    """By a process, which is named by its command line."""
    with subprocess.Popen(["sleep", "60"]) as owner:
        (finding,) = pids.taken([owner.pid, 4_194_303])
        owner.kill()
    assert finding.code == "PID_TAKEN"
    assert finding.sentence == f"PID {owner.pid} is taken by process {owner.pid}: sleep 60."


def test_a_thread_takes_a_pid() -> None:
    """Threads share the numbers of processes."""
    done, told = threading.Event(), []

    def wait() -> None:
        told.append(threading.get_native_id())
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: told)
    owners = pids.owned(told)
    done.set()
    thread.join()
    assert owners[told[0]].startswith(f"a thread of process {os.getpid()}: ")


def test_a_group_takes_the_pid_of_its_leader_that_is_gone() -> None:
    """A number is not free while a group or a session has it."""
    code = "import os, time; os.setsid(); os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as leader:
        assert leader.stdout
        member = int(leader.stdout.readline())
        leader.wait()
        owners = pids.owned([leader.pid])
        os.kill(member, 9)
    assert f"of process {member}" in owners[leader.pid]


def test_a_pid_beyond_what_the_host_hands_out() -> None:
    """The limit itself is never handed out."""
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


def needed(path: Path, **other: int | str | None) -> Needed:
    """Return a file as it would be needed if the source had the same, but for what is given."""
    stat = path.stat()
    fields = {"mode": stat.st_mode, "size": stat.st_size, "build_id": "", "changed_ns": None, **other}
    return Needed(str(path), **fields)  # type: ignore[arg-type]


def test_a_file_that_is_the_same(file: Path) -> None:
    """Directories are compared by their mode alone."""
    assert codes(files.missing_or_different([needed(file), needed(file.parent, size=None)])) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"size": 4}, "has 3 bytes, and 4 on the source"),
        ({"mode": 0o100600}, "has mode 0100644, and 0100600 on the source"),
        ({"mode": 0o040755}, "has mode 0100644, and 040755 on the source"),
    ],
)
def test_a_file_that_differs(file: Path, other: dict[str, int], words: str) -> None:
    """Size, mode and type are compared, and the difference is named."""
    (finding,) = files.missing_or_different([needed(file, **other)])
    assert finding.code == "FILE_DIFFERS"
    assert words in finding.sentence


def test_a_file_that_is_missing(file: Path) -> None:
    """Of many missing ones the first are named and the others counted."""
    wanted = [Needed(f"{file}-{number}", 0o100644) for number in range(8)]
    found = list(files.missing_or_different(wanted))
    assert {finding.code for finding in found} == {"FILE_MISSING"}
    assert found[0].sentence == f"{file}-0 is missing."
    assert found[-1].sentence.startswith("3 more files are missing: ")


def test_a_log_may_have_grown(file: Path) -> None:
    """CRIU does not compare the size of a file that is open for appending only."""
    assert codes(files.missing_or_different([needed(file, size=None)])) == []


def test_a_file_that_is_written_on_is_not_a_stale_copy(file: Path) -> None:
    """On shared storage the destination sees a later state of it; a copy is older than the source's last write."""
    changed_ns = file.stat().st_mtime_ns
    assert codes(files.missing_or_different([needed(file, size=2, changed_ns=changed_ns - 1)])) == []
    assert codes(files.missing_or_different([needed(file, size=2, changed_ns=changed_ns + 1)])) == ["FILE_DIFFERS"]


def elf(build_id: bytes, *, wide: bool) -> bytes:
    """Return the smallest ELF file with a note that is no build-id, and one that is."""
    notes = (
        struct.pack("<III4sI", 4, 4, 1, b"GNU\0", 0) + struct.pack("<III4s", 4, len(build_id), 3, b"GNU\0") + build_id
    )
    start = bytes([0x7F, *b"ELF", 2 if wide else 1, 1, 1]) + bytes(9)
    if wide:
        head = start + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        return head + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4) + notes
    head = start + struct.pack("<HHIIIIIHHHHHH", 3, 3, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return head + struct.pack("<IIIIIIII", 4, 84, 0, 0, len(notes), len(notes), 4, 4) + notes


@pytest.mark.parametrize("wide", [True, False])
def test_a_build_id_is_read(tmp_path: Path, wide: bool) -> None:
    """Of 64-bit and 32-bit programs; a file cut short, or any other one, has none."""
    program = tmp_path / "program"
    program.write_bytes(elf(b"\x01\x02\x03\xff", wide=wide))
    assert files.build_id(str(program), 0, 1, 0) == "010203ff"
    program.write_bytes(elf(b"\x01\x02\x03\xff", wide=wide)[:60])
    assert files.build_id(str(program), 0, 2, 0) == ""
    program.write_text("#!/bin/sh")
    assert files.build_id(str(program), 0, 3, 0) == ""


def test_another_build_id(tmp_path: Path) -> None:
    """A program of the same size from another build is told; one without a build-id is let pass, as CRIU does."""
    program = tmp_path / "program"
    program.write_bytes(elf(b"\x01\x02\x03\x04", wide=True))
    assert codes(files.missing_or_different([needed(program, build_id="01020304")])) == []
    assert codes(files.missing_or_different([needed(program, build_id="01020305")])) == ["FILE_DIFFERS"]
    program.write_bytes(bytes(program.stat().st_size))
    assert codes(files.missing_or_different([needed(program, build_id="01020304")])) == []


@pytest.mark.parametrize("by_flock", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_lock_that_is_in_force_here(file: Path, by_flock: bool, exclusive: bool) -> None:
    """On shared storage the frozen original keeps its own lock from the restore; one that is free is let pass."""
    lock = Lock(str(file), by_flock, exclusive)
    assert codes(locks.not_to_be_had([lock, Lock(f"{file}-missing", by_flock, exclusive)])) == []
    take = "flock" if by_flock else "lockf"
    holder = (
        f"import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.{take}(f, fcntl.LOCK_EX); print(0, flush=True); input()"
    )
    command = [sys.executable, "-c", holder, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        assert codes(locks.not_to_be_had([lock])) == ["FILE_LOCKS"]
        running.kill()


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    """Listen on the loopback."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()


def test_a_port_that_is_taken_is_told_with_its_owner(listener: tuple[str, int]) -> None:
    """Also if the tree listens on all addresses, where somebody listens on one."""
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


def test_an_address_that_is_not_here() -> None:
    """An established connection needs its local address, whatever the port."""
    assert codes(sockets.taken([Bound("tcp", "192.0.2.1", 0)])) == ["ADDRESS_MISSING"]
    assert codes(sockets.taken([Bound("udp", "192.0.2.1", 5353)])) == ["ADDRESS_MISSING"]


def test_an_abstract_name_that_is_taken() -> None:
    """Unix sockets without a file have names of the whole network namespace."""
    name = f"sojourn-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        assert codes(sockets.taken([Bound("unix", f"@{name}")])) == ["SOCKET_TAKEN"]
    assert codes(sockets.taken([Bound("unix", f"@{name}")])) == []


def test_both_ends_of_a_pair_are_peers() -> None:
    """The kernel's diagnosis tells whose peer a unix socket is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inodes = [os.fstat(end.fileno()).st_ino for end in (ours, theirs)]
        peers = sockets.unix_peers()
    assert [peers.get(inode) for inode in inodes] == inodes[::-1]


def test_sockets_are_read_from_proc(listener: tuple[str, int]) -> None:
    """Address, port and state are those of the socket."""
    mine = [each for each in sockets.inet(os.getpid()) if each.table == "tcp" and each.port == listener[1]]
    assert [(each.address, each.state, each.connected, each.queued) for each in mine] == [
        ("127.0.0.1", 10, False, False)
    ]
    with socket.create_connection(listener):
        waiting = [each for each in sockets.inet("self") if each.port == listener[1] and each.state == 10]
        ends = [each for each in sockets.inet("self") if listener[1] in {each.port, each.peer_port} and each.connected]
    assert [each.queued for each in waiting] == [True]
    assert len(ends) == 2


@pytest.fixture
def criu(tmp_path: Path) -> Criu:
    """Return a CRIU that says it is 4.2.1 and has no feature."""
    program = tmp_path / "criu"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Version: 4.2.1" && exit\nexit 1\n')
    program.chmod(0o755)
    return Criu(program)


def test_two_machines_that_are_alike(criu: Criu) -> None:
    """Flags that the destination has beyond the source's do no harm, nor does another patch level."""
    ours = os.uname().machine
    assert codes(machine.differences(ours, list(processor.flags()[:-1]), "4.2.7", criu)) == []


def test_two_machines_that_differ(criu: Criu) -> None:
    """Flags that are missing are named; another kind of processor makes the rest pointless."""
    ours = os.uname().machine
    cpu, version = machine.differences(ours, ["made_up_flag", *processor.flags()], "4.1.1", criu)
    assert (cpu.code, version.code) == ("CPU_FLAGS", "CRIU_VERSION")
    assert "lacks made_up_flag," in cpu.sentence
    assert codes(machine.differences("s390x", [], "4.1.1", criu)) == ["MACHINE"]


def test_what_a_mode_needs(criu: Criu) -> None:
    """Stop-and-copy needs nothing; what is missing for another mode is named."""
    assert codes(machine.missing_features(criu, "stop-and-copy")) == []
    assert codes(machine.missing_features(criu, "pre-copy")) == ["CRIU_FEATURE"]


@pytest.mark.parametrize(
    ("criu_version", "kernel", "old"),
    [("4.1.1", "6.16.0", True), ("4.2", "6.18.4-amd64", False), ("4.1.1", "6.12.9", False), ("3.17.1", "7.0", True)],
)
def test_a_criu_that_is_too_old_for_the_kernel(criu_version: str, kernel: str, old: bool) -> None:
    """CRIU before 4.2 can not dump inet sockets on kernels from 6.16 on."""
    assert machine.too_old(criu_version, kernel) is old


def test_room() -> None:
    """Small trees fit; one larger than the machine does not, nor one with more processes than there are PIDs."""
    assert codes(room.check(2**20, 2**20, 1, cap_bytes=None)) == []
    assert codes(room.check(2**60, 2**60, 1, cap_bytes=None)) == ["NO_ROOM"]
    assert codes(room.check(2**20, 2**20, 2**23, cap_bytes=None)) == ["PIDS_EXHAUSTED"]


def test_the_cap_for_images() -> None:
    """Only memory that is certainly sent counts against the cap: what is shared may have been counted twice."""
    assert codes(room.check(8 * 2**20, 2**20, 1, cap_bytes=2**21)) == []
    assert codes(room.check(8 * 2**20, 2**22, 1, cap_bytes=2**21)) == ["NO_ROOM"]
