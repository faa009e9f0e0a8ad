"""What the source checks: a real child, and kernel objects as ``/proc`` would show them."""

from __future__ import annotations

import os
import socket
import stat as modes
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sojourn.errors import ProcessGone
from sojourn.model import Plan
from sojourn.preflight import bandwidth, files, lazy_dump, members, objects, pids, sockets
from sojourn.preflight.finding import Finding, Verdict
from sojourn.preflight.same_file import file_systems, marks
from sojourn.preflight.scan import Handle, Task, Tree, namespaces, scan

PLAN = Plan(4242, "alpha", "beta")
OURS = {
    name: f"{name}:[1]" for name in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")
}


def codes(findings: Iterator[Finding]) -> list[str]:
    """Return the codes of what stops a migration."""
    return [finding.code for finding in findings if finding.stops]


def task(pid: int = 4242, **other: Any) -> Task:
    """Return an ordinary process that leads its session, except for what is given."""
    ordinary = Task(
        pid=pid,
        name="program",
        own_pid=pid,
        ids=(pid,),
        group=pid,
        session=pid,
        in_own_namespace=False,
        tracers={},
        states={pid: "S"},
        memory_bytes={"RssAnon": 0, "RssShmem": 0, "VmSwap": 0},
        namespaces=OURS,
    )
    return replace(ordinary, **other)


def test_an_ordinary_process() -> None:
    """It has no findings."""
    assert codes(members.check(Tree([task()]), PLAN, OURS)) == []


@pytest.mark.parametrize(
    ("tasks", "code"),
    [
        ([task(tracers={4243: 7})], "TRACED"),
        ([task(session=0, group=0)], "SHELL_JOB"),
        ([task(session=77)], "SHELL_JOB"),
        ([task(namespaces={**OURS, "mnt": "mnt:[2]"})], "NAMESPACE"),
        ([task(namespaces={**OURS, "user": "user:[2]"})], "NAMESPACE"),
        ([task(in_own_namespace=True, own_pid=5, session=5)], "NAMESPACE"),
        ([task(), task(4243, session=4242, namespaces={**OURS, "pid": "pid:[2]"})], "NAMESPACE"),
        ([task(), task(4243, session=4242, namespaces={**OURS, "net": "net:[2]"})], "NAMESPACE"),
    ],
)
def test_processes_that_cannot_be_migrated(tasks: list[Task], code: str) -> None:
    """Every reason has its own code, and is reported once."""
    assert codes(members.check(Tree(tasks), PLAN, OURS)) == [code]


@pytest.mark.parametrize("name", ["ipc", "uts", "cgroup"])
def test_namespaces_of_the_whole_tree(name: str) -> None:
    """A namespace that all processes of the tree share is migrated."""
    own = {**OURS, name: f"{name}:[2]"}
    assert (
        codes(
            members.check(
                Tree([task(namespaces=own), task(4243, session=4242, namespaces=own)]), PLAN, OURS
            )
        )
        == []
    )


def test_a_shell_job_with_its_option() -> None:
    """The option permits the migration, and the finding is still reported."""
    plan = replace(PLAN, shell_job=True)
    findings = list(members.check(Tree([task(session=77)]), plan, OURS))
    assert [(finding.code, finding.verdict) for finding in findings] == [("SHELL_JOB", Verdict.OK)]


def test_the_pids_that_a_restore_takes() -> None:
    """Threads, groups and sessions take PIDs too; with --shell-job those of the shell do not."""
    tree = Tree(
        [task(session=77, group=78, ids=(4242, 4250)), task(4243, group=4242, session=4243)]
    )
    assert pids.needed(tree, shell_job=False) == [77, 78, 4242, 4243, 4250]
    assert pids.needed(tree, shell_job=True) == [4242, 4243, 4250]
    assert (
        pids.needed(
            Tree([task(in_own_namespace=True, own_pid=1, ids=(1,), group=1, session=1)]),
            shell_job=False,
        )
        == []
    )


def _at(mbit: int | None, max_freeze_s: float = 120) -> list[Finding]:
    """Check whether three gigabytes of two processes, and what they share, can cross in time."""
    memory = {"RssAnon": 10**9, "RssShmem": 10**12, "VmSwap": 5 * 10**8}
    tree = Tree([task(memory_bytes=memory), task(4243, memory_bytes=memory)])
    plan = replace(PLAN, bandwidth_mbit=mbit, max_freeze_s=max_freeze_s)
    return list(bandwidth.check(tree, plan))


def test_a_bandwidth_at_which_the_memory_cannot_cross() -> None:
    """It is refused before the freeze, with a limit that is long enough; without one, never."""
    assert _at(None, 0.1) == _at(200) == _at(100, 240) == []
    (found,) = _at(199)
    assert (found.code, found.verdict) == ("BANDWIDTH", Verdict.NEEDS_OPTION)
    assert found.sentence == (
        "At 199 Mbit/s, 3.0 GB of memory take 120.60 s, and a freeze may last 120 s."
    )
    assert found.hint == "Migrate with --max-freeze 161, or with a higher --bandwidth."
    assert _at(199, 161) == []


def test_a_bandwidth_at_which_no_freeze_is_long_enough() -> None:
    """A freeze has a longest limit, which is then not recommended."""
    memory = {"RssAnon": 2 * 10**10, "RssShmem": 0, "VmSwap": 0}
    plan = replace(PLAN, bandwidth_mbit=1)
    (found,) = bandwidth.check(Tree([task(memory_bytes=memory)]), plan)
    assert found.verdict is Verdict.BLOCKS
    assert found.hint == "Migrate with a higher --bandwidth."


def test_a_bandwidth_in_post_copy() -> None:
    """Only what can never come later crosses in the freeze."""
    memory = {"RssAnon": 2 * 10**10, "RssShmem": 0, "VmSwap": 0}
    plan = replace(PLAN, mode="post-copy", bandwidth_mbit=100)
    tree = Tree([task(memory_bytes=memory)])
    assert list(bandwidth.check(tree, plan, 10**9)) == []
    assert codes(bandwidth.check(tree, plan, 2 * 10**9)) == ["BANDWIDTH"]


@pytest.mark.parametrize(
    ("pipe_bytes", "needed"), [(2**20, 256 + 4006), (4 * 2**20, 256 + 2 * 503)]
)
def test_the_files_that_a_dump_in_post_copy_opens(pipe_bytes: int, needed: int) -> None:
    """Two for each pipe; where pipes may not be larger, that is another way out."""
    memory = {"RssAnon": 1990 * 2**20, "RssShmem": 2**40, "VmSwap": 10 * 2**20}
    tree = Tree([task(memory_bytes=memory)])
    enough = lazy_dump.Allowed(needed, pipe_bytes)
    assert list(lazy_dump.check(tree, 0, enough)) == []
    (found,) = lazy_dump.check(tree, 0, replace(enough, open_files=needed - 1))
    assert (found.code, found.verdict) == ("OPEN_FILES", Verdict.BLOCKS)
    assert f"must have {needed} files open; it may have {needed - 1}." in found.sentence
    assert ("fs.pipe-max-size" in found.hint) is (pipe_bytes < lazy_dump.PIPE_BYTES)


def test_no_room_for_what_can_never_come_later() -> None:
    """The source needs memory for that too: no other mode has images of that size there."""
    assert codes(lazy_dump.check(Tree([task()]), 2**60, lazy_dump.allowed())) == ["NO_ROOM"]


#: Prints what CRIU may have.
ALLOWED = "from sojourn.preflight.lazy_dump import allowed; print(*vars(allowed()).values())"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give capabilities away")
def test_what_criu_may_have_without_the_capability() -> None:
    """The hard limit of who starts it, and pipes that need no capability."""
    confined = ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=512:1000"]
    found = subprocess.check_output([*confined, sys.executable, "-c", ALLOWED], text=True)
    files, pipe_bytes = map(int, found.split())
    most = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    assert files == 1000
    assert pipe_bytes <= min(most, lazy_dump.PIPE_BYTES) < 2 * pipe_bytes


NOTHING = Path("/dev/null").stat()


def handle(target: str, *info: str, rdev: int | None = None) -> Handle:
    """Return a descriptor of a target; of a character device if a number is given."""
    mode = modes.S_IFCHR | 0o600 if rdev is not None else 0o600
    stat = os.stat_result((mode, *NOTHING[1:10]), {"st_rdev": rdev or 0})
    return Handle(4242, 3, target, stat, 0, info)


def objects_found(*handles: Handle, areas: list[str] | None = None, own: bool = False) -> list[str]:
    """Return the codes for an otherwise ordinary tree with these descriptors and mappings."""
    tree = Tree(
        [task(pid=os.getpid())], list(handles), {}, {(4242, name): "/" for name in areas or []}
    )
    return codes(objects.check(tree, Path(sys.executable), own_ipc=own, own_network=own))


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("anon_inode:[io_uring]", "IO_URING"),
        ("anon_inode:[perf_event]", "FILE_UNSUPPORTED"),
        ("anon_inode:bpf-prog", "FILE_UNSUPPORTED"),
        ("anon_inode:bpf-map", "FILE_UNSUPPORTED"),
        ("anon_inode:bpf_link", "FILE_UNSUPPORTED"),
        ("anon_inode:[userfaultfd]", "FILE_UNSUPPORTED"),
        ("anon_inode:kvm-vm", "FILE_UNSUPPORTED"),
    ],
)
def test_objects_that_cannot_be_migrated(target: str, code: str) -> None:
    """They are found by their names in ``/proc``."""
    assert objects_found(handle(target)) == [code]


@pytest.mark.parametrize(
    "target",
    [
        *(
            "anon_inode:[eventfd]",
            "anon_inode:[eventpoll]",
            "anon_inode:[signalfd]",
            "anon_inode:[timerfd]",
        ),
        *(
            "anon_inode:inotify",
            "anon_inode:[fanotify]",
            "anon_inode:[pidfd]",
            "pipe:[1]",
            "socket:[2]",
        ),
    ],
)
def test_objects_that_can_be_migrated(target: str) -> None:
    """Objects that CRIU dumps have no findings."""
    assert objects_found(handle(target)) == []


def test_pid_descriptors() -> None:
    """Those of a process of the tree, or of one that has ended, can be migrated; others cannot."""
    assert objects_found(handle("anon_inode:[pidfd]", f"Pid:\t{os.getpid()}")) == []
    assert objects_found(handle("anon_inode:[pidfd]", "Pid:\t-1")) == []
    assert objects_found(handle("anon_inode:[pidfd]", "Pid:\t1")) == ["PIDFD_OUTSIDE"]


def test_watches() -> None:
    """A watch needs a file system with handles, or a file that CRIU finds by searching."""
    device = Path("/proc").stat().st_dev
    sdev = f"{os.major(device) << 20 | os.minor(device):x}"
    on_proc = f"inotify wd:1 ino:1 sdev:{sdev} mask:2 ignored_mask:0"
    assert objects_found(handle("anon_inode:inotify", "mnt_id:\t17", "ino:\t26", on_proc)) == [
        "INOTIFY"
    ]
    assert (
        objects_found(
            handle("anon_inode:inotify", "ino:\t26", on_proc.replace("sdev:", "sdev:fff"))
        )
        == []
    )


def test_devices() -> None:
    """Memory devices can be migrated; of the others, TUN with its network namespace."""
    assert (
        objects_found(
            handle("/dev/null", rdev=os.makedev(1, 3)),
            handle("/dev/urandom", rdev=os.makedev(1, 9)),
        )
        == []
    )
    assert objects_found(handle("/dev/fuse", rdev=os.makedev(10, 229))) == ["DEVICE"]
    assert objects_found(handle("/dev/net/tun", rdev=os.makedev(10, 200))) == ["DEVICE"]
    assert objects_found(handle("/dev/net/tun", rdev=os.makedev(10, 200)), own=True) == []


def test_terminals() -> None:
    """A terminal can be migrated only together with its other end."""
    slave, master = (
        handle("/dev/pts/3", rdev=os.makedev(136, 3)),
        handle("/dev/ptmx", rdev=os.makedev(5, 2)),
    )
    assert objects_found(slave) == ["SHELL_JOB"]
    assert objects_found(slave, master) == []
    assert objects_found(handle("/dev/tty1", rdev=os.makedev(4, 1))) == ["SHELL_JOB"]


def test_areas_of_memory() -> None:
    """System V shared memory is migrated with its namespace; hugetlbfs is not."""
    assert objects_found(areas=["/SYSV00000000 (deleted)"]) == ["SYSV_SHM"]
    assert objects_found(areas=["/SYSV00000000 (deleted)"], own=True) == []
    assert objects_found(areas=["/anon_hugepage (deleted)"]) == ["HUGETLB"]


#: Opens the files that are its arguments in different ways, and a socket; starts a thread; prints
#: when it is ready.
PROGRAM = """
import os, socket, sys, threading
plain, log, deleted, written = sys.argv[1:]
kept = [open(plain), open(log, "a"), open(deleted, "w"), open(written, "r+"), socket.socket()]
kept[2].write("x" * 3_000_000), kept[2].flush(), os.unlink(deleted)
kept[4].bind(("127.0.0.1", 0)), kept[4].listen()
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(kept[4].getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[tuple[int, int, Path]]:
    """Start the program; return its PID, its port, and the directory of its files."""
    if os.geteuid() != 0:
        pytest.skip("only root may follow /proc/PID/map_files")
    paths = [tmp_path / name for name in ("plain", "log", "deleted", "written")]
    for path in paths:
        path.write_text("content")
    command = [sys.executable, "-c", PROGRAM, *map(str, paths)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as running:
        assert running.stdout
        yield running.pid, int(running.stdout.readline()), tmp_path
        running.kill()


def test_a_real_tree_is_read(child: tuple[int, int, Path]) -> None:
    """Files with what CRIU compares, the program's build ID, threads and ports."""
    pid, port, place = child
    tree = scan(pid)
    needed = {file.path: file for file in files.needed(tree)}
    assert needed[str(place / "plain")].size == 7
    assert needed[str(place / "log")].size is None
    written = needed[str(place / "written")]
    assert written.written
    assert written.marks == marks(
        written.path, written.path, Path(written.path).stat(), file_systems()
    )
    assert not needed[str(place / "plain")].written
    assert not needed[str(place / "log")].written
    assert str(place / "deleted") not in needed
    assert len(needed[str(Path(sys.executable).resolve())].build_id) >= 16
    assert any(path.endswith(".so.6") for path in needed)
    assert len(tree.root.ids) == 2
    assert (tree.root.session, tree.root.group) == (pid, pid)
    assert [(bound.address, bound.port) for bound in sockets.bound(tree)] == [("127.0.0.1", port)]
    assert tree.root.memory_bytes["RssAnon"] > 2**20


def test_a_port_that_no_table_shows() -> None:
    """A socket that is only bound needs its port; one whose connection has ended does not.

    It needs its address if it has something unread.
    """
    with (
        socket.socket() as only_bound,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ended,
    ):
        only_bound.bind(("127.0.0.1", 0))
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        ports = {one.port for one in sockets.bound(scan(os.getpid()))}
        assert only_bound.getsockname()[1] in ports
        assert ended.getsockname()[1] not in ports


def test_the_address_of_an_ended_connection_with_unread_data() -> None:
    """CRIU restores what was not read only where it can bind the socket to its address."""
    address = "127.0.0.99"
    with (
        socket.create_server((address, 0)) as listener,
        socket.create_connection(listener.getsockname(), source_address=(address, 0)),
    ):
        accepted, _ = listener.accept()
        accepted.sendall(b"unread")
        before = sockets.bound(scan(os.getpid()))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        after = sockets.bound(scan(os.getpid()))
    assert [one.port for one in before if one.address == address].count(0) == 1
    assert [one.port for one in after if one.address == address].count(0) == 1


def test_a_large_deleted_file_is_reported(child: tuple[int, int, Path]) -> None:
    """It is the only finding for this tree's files and sockets, with name and size."""
    tree = scan(child[0])
    (finding,) = files.check(tree)
    assert (finding.code, f"{child[2] / 'deleted'} (descriptor" in finding.sentence) == (
        "GHOST_TOO_LARGE",
        True,
    )
    assert codes(sockets.check(tree, tcp_established=False)) == []
    assert codes(members.check(tree, PLAN, namespaces("self"))) == []


#: Has a temporary file open, then renames it to the file's name: once when it reads a line, and
#: from then on all the time.
REPLACES = """
import os, sys, time
path, = sys.argv[1:]
def replace(wait):
    with open(path + ".new", "w") as draft:
        wait()
        os.replace(path + ".new", path)
replace(lambda: (print(flush=True), sys.stdin.readline()))
print(flush=True)
while True:
    replace(lambda: time.sleep(0.0005))
    time.sleep(0.0005)
"""


@pytest.fixture
def replacing(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a program that replaces a file; return it with its temporary file, which is open."""
    if os.geteuid() != 0:
        pytest.skip("only root may follow /proc/PID/map_files")
    command = [sys.executable, "-c", REPLACES, str(tmp_path / "status")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as running:
        assert running.stdout
        running.stdout.readline()
        yield running, str(tmp_path / "status.new")
        running.kill()


def test_a_temporary_file_that_was_renamed_is_not_reported(
    replacing: tuple[subprocess.Popen[str], str],
) -> None:
    """It existed during the scan, but the destination does not need it either."""
    program, draft = replacing
    assert program.stdin
    assert program.stdout
    tree = scan(program.pid)
    assert draft in {file.path for file in files.needed(tree)}
    program.stdin.write("\n")
    program.stdin.flush()
    program.stdout.readline()
    assert codes(files.check(tree)) == []
    assert draft not in {file.path for file in files.needed(tree)}


def test_a_program_that_replaces_a_file_all_the_time(
    replacing: tuple[subprocess.Popen[str], str],
) -> None:
    """It never has a finding, at whatever moment it is checked."""
    program, _ = replacing
    assert program.stdin
    program.stdin.write("\n")
    program.stdin.flush()
    assert [codes(files.check(scan(program.pid))) for _ in range(200)] == [[]] * 200


def test_a_tree_that_is_gone() -> None:
    """Its scan raises ProcessGone."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(ProcessGone):
        scan(gone.pid)
