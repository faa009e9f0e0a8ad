"""What the source looks at: a real child, and objects of the kernel as ``/proc`` would show them."""

from __future__ import annotations

import os
import stat as modes
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sojourn.errors import ProcessGone
from sojourn.model import Plan
from sojourn.preflight import files, members, objects, pids, sockets
from sojourn.preflight.finding import Finding, Verdict
from sojourn.preflight.scan import Handle, Task, Tree, namespaces, scan

PLAN = Plan(4242, "alpha", "beta")
OURS = {name: f"{name}:[1]" for name in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")}


def codes(findings: Iterator[Finding]) -> list[str]:
    """Return the codes of what stops a migration."""
    return [finding.code for finding in findings if finding.stops]


def task(pid: int = 4242, **other: Any) -> Task:
    """Return an ordinary process that leads its session, but for what is given."""
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
    """Nothing speaks against it."""
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
def test_what_speaks_against_processes(tasks: list[Task], code: str) -> None:
    """Each has its own code, and is told once."""
    assert codes(members.check(Tree(tasks), PLAN, OURS)) == [code]


@pytest.mark.parametrize("name", ["ipc", "uts", "cgroup"])
def test_namespaces_of_the_whole_tree(name: str) -> None:
    """One that all processes of the tree share moves along."""
    own = {**OURS, name: f"{name}:[2]"}
    assert (
        codes(members.check(Tree([task(namespaces=own), task(4243, session=4242, namespaces=own)]), PLAN, OURS)) == []
    )


def test_a_shell_job_with_its_option() -> None:
    """The option makes it well, and is told."""
    plan = replace(PLAN, shell_job=True)
    findings = list(members.check(Tree([task(session=77)]), plan, OURS))
    assert [(finding.code, finding.verdict) for finding in findings] == [("SHELL_JOB", Verdict.OK)]


def test_the_pids_that_a_restore_takes() -> None:
    """Threads, groups and sessions have them too; with --shell-job what is the shell's is not taken."""
    tree = Tree([task(session=77, group=78, ids=(4242, 4250)), task(4243, group=4242, session=4243)])
    assert pids.needed(tree, shell_job=False) == [77, 78, 4242, 4243, 4250]
    assert pids.needed(tree, shell_job=True) == [4242, 4243, 4250]
    assert (
        pids.needed(Tree([task(in_own_namespace=True, own_pid=1, ids=(1,), group=1, session=1)]), shell_job=False) == []
    )


NOTHING = Path("/dev/null").stat()


def handle(target: str, *info: str, rdev: int | None = None) -> Handle:
    """Return a descriptor that leads to a name, of a character device if a number is given."""
    mode = modes.S_IFCHR | 0o600 if rdev is not None else 0o600
    stat = os.stat_result((mode, *NOTHING[1:10]), {"st_rdev": rdev or 0})
    return Handle(4242, 3, target, stat, 0, info)


def objects_found(*handles: Handle, areas: list[str] | None = None, own: bool = False) -> list[str]:
    """Return the codes for an otherwise ordinary tree with these descriptors and mappings."""
    tree = Tree([task(pid=os.getpid())], list(handles), {}, {(4242, name): "/" for name in areas or []})
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
def test_objects_that_stay(target: str, code: str) -> None:
    """They are found by their names."""
    assert objects_found(handle(target)) == [code]


@pytest.mark.parametrize(
    "target",
    [
        *("anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[signalfd]", "anon_inode:[timerfd]"),
        *("anon_inode:inotify", "anon_inode:[fanotify]", "anon_inode:[pidfd]", "pipe:[1]", "socket:[2]"),
    ],
)
def test_objects_that_move(target: str) -> None:
    """What CRIU takes along is let pass."""
    assert objects_found(handle(target)) == []


def test_pid_descriptors() -> None:
    """Of a process of the tree, or of one that has ended, they move; of another they do not."""
    assert objects_found(handle("anon_inode:[pidfd]", f"Pid:\t{os.getpid()}")) == []
    assert objects_found(handle("anon_inode:[pidfd]", "Pid:\t-1")) == []
    assert objects_found(handle("anon_inode:[pidfd]", "Pid:\t1")) == ["PIDFD_OUTSIDE"]


def test_watches() -> None:
    """A watch on a file system that has handles moves; one on /proc does not, nor does one that nothing finds again."""
    device = Path("/proc").stat().st_dev
    on_proc = f"inotify wd:1 ino:1 sdev:{os.major(device) << 20 | os.minor(device):x} mask:2 ignored_mask:0"
    assert objects_found(handle("anon_inode:inotify", "mnt_id:\t17", "ino:\t26", on_proc)) == ["INOTIFY"]
    assert objects_found(handle("anon_inode:inotify", "ino:\t26", on_proc.replace("sdev:", "sdev:fff"))) == []


def test_devices() -> None:
    """Memory devices move; of the others TUN only with its network namespace."""
    assert (
        objects_found(handle("/dev/null", rdev=os.makedev(1, 3)), handle("/dev/urandom", rdev=os.makedev(1, 9))) == []
    )
    assert objects_found(handle("/dev/fuse", rdev=os.makedev(10, 229))) == ["DEVICE"]
    assert objects_found(handle("/dev/net/tun", rdev=os.makedev(10, 200))) == ["DEVICE"]
    assert objects_found(handle("/dev/net/tun", rdev=os.makedev(10, 200)), own=True) == []


def test_terminals() -> None:
    """A terminal moves together with its other end."""
    slave, master = handle("/dev/pts/3", rdev=os.makedev(136, 3)), handle("/dev/ptmx", rdev=os.makedev(5, 2))
    assert objects_found(slave) == ["SHELL_JOB"]
    assert objects_found(slave, master) == []
    assert objects_found(handle("/dev/tty1", rdev=os.makedev(4, 1))) == ["SHELL_JOB"]


def test_areas_of_memory() -> None:
    """System V shared memory moves with its namespace; hugetlb does not."""
    assert objects_found(areas=["/SYSV00000000 (deleted)"]) == ["SYSV_SHM"]
    assert objects_found(areas=["/SYSV00000000 (deleted)"], own=True) == []
    assert objects_found(areas=["/anon_hugepage (deleted)"]) == ["HUGETLB"]


#: Opens the files that it is given, each in its way, and a socket; holds a thread, and says so.
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
    """Start the program; return its PID, its port, and where its files are."""
    if os.geteuid() != 0:
        pytest.skip("only root may follow /proc/PID/map_files")
    paths = [tmp_path / name for name in ("plain", "log", "deleted", "written")]
    for path in paths:
        path.write_text("content")
    command = [sys.executable, "-c", PROGRAM, *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout
        yield running.pid, int(running.stdout.readline()), tmp_path
        running.kill()


def test_a_real_tree_is_read(child: tuple[int, int, Path]) -> None:
    """Files with what CRIU compares of each, the program's build-id, threads, ports."""
    pid, port, place = child
    tree = scan(pid)
    needed = {file.path: file for file in files.needed(tree)}
    assert needed[str(place / "plain")].size == 7
    assert needed[str(place / "log")].size is None
    assert needed[str(place / "written")].changed_ns is not None
    assert needed[str(place / "plain")].changed_ns is None
    assert str(place / "deleted") not in needed
    assert len(needed[str(Path(sys.executable).resolve())].build_id) >= 16
    assert any(path.endswith(".so.6") for path in needed)
    assert len(tree.root.ids) == 2
    assert (tree.root.session, tree.root.group) == (pid, pid)
    assert [(each.address, each.port) for each in sockets.bound(tree)] == [("127.0.0.1", port)]
    assert tree.root.memory_bytes["RssAnon"] > 2**20


def test_a_large_deleted_file_is_told(child: tuple[int, int, Path]) -> None:
    """With its name and its size; that is all that speaks against this tree's files and sockets."""
    tree = scan(child[0])
    (finding,) = files.check(tree)
    assert (finding.code, f"{child[2] / 'deleted'} (descriptor" in finding.sentence) == ("GHOST_TOO_LARGE", True)
    assert codes(sockets.check(tree, tcp_established=False, same_network=True)) == []
    assert codes(members.check(tree, PLAN, namespaces("self"))) == []


#: Has a draft open, then puts it in the place of the file: once it is told to, and from then on over and over.
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
    """Start a program that replaces a file as a whole; return it as it has the draft open, and the draft's path."""
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


def test_a_draft_that_has_taken_its_place_is_not_told(replacing: tuple[subprocess.Popen[str], str]) -> None:
    """While it was looked at there was a file of that name: the destination is not asked for it either."""
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


def test_a_program_that_replaces_a_file_all_the_time(replacing: tuple[subprocess.Popen[str], str]) -> None:
    """Whenever it is looked at, nothing speaks against it."""
    program, _ = replacing
    assert program.stdin
    program.stdin.write("\n")
    program.stdin.flush()
    assert [codes(files.check(scan(program.pid))) for _ in range(200)] == [[]] * 200


def test_a_tree_that_is_gone() -> None:
    """There is nothing to read."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(ProcessGone):
        scan(gone.pid)
