"""What confines a process or sets a thread apart, and would be gone after the restore.

A process must not be less confined on the destination than it was, and no thread may land
elsewhere. CRIU carries credentials, capabilities, securebits, no_new_privs and filters of
seccomp(2), of each thread; what it does not carry is found here. Threads share everything with
their process after a restore: CRIU makes them with ``CLONE_FILES`` and ``CLONE_FS``, and restores
the namespaces of processes only (its pie/restorer.c and pstree.c).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.preflight.finding import Finding, blocks, named, ok
from sojourn.preflight.scan import UNREADABLE, VANISHED, Task, Tree
from sojourn.system import kcmp, process, restraints
from sojourn.system.process import PROC
from sojourn.system.restraints import Restraints, Unavailable

#: What a thread can have of its own, and how to say so.
SHARED = {
    kcmp.FILES: "a table of descriptors of its own",
    kcmp.FILE_SYSTEM: "a working directory, root and umask of its own",
}

#: Namespaces that a thread can enter alone (unshare(2), setns(2)).
THREAD_NAMESPACES = ("net", "mnt", "ipc", "uts", "cgroup")

#: Lines of ``/proc/TID/status`` about speculation that mean: turned off at the thread's own wish
#: (``PR_SET_SPECULATION_CTRL`` of prctl(2); the words are those of the kernel's fs/proc/array.c).
SPECULATION = {
    "Speculation_Store_Bypass": {"thread mitigated", "thread force mitigated"},
    "SpeculationIndirectBranch": {"conditional disabled", "conditional force disabled"},
}

#: Shows whether a filter of seccomp(2) turns speculation off too; the restored one does so again.
STORE_BYPASS = Path("/sys/devices/system/cpu/vulnerabilities/spec_store_bypass")

ALTOGETHER = "Start it without that, or wait until it has ended."


def check(tree: Tree) -> Iterator[Finding]:
    """Yield what confines a process of the tree, or sets a thread apart, and would be gone."""
    alive = [task for task in tree.tasks if task.states.get(task.pid) != "Z"]
    yield from _restrained(alive)
    yield from _secret(tree)
    for task in alive:
        yield from _apart(task)
        yield from _children_apart(task)
        yield from _speculation(task)


def found_in(pids: Iterable[int]) -> Finding | None:
    """Return the first restraint of these processes that would be gone; for a frozen tree.

    Nothing where the kernel's records cannot be read.
    """
    with contextlib.suppress(Unavailable):
        for pid in pids:
            for finding in _lost(pid, _name(pid), restraints.of(pid)):
                return finding
    return None


def _restrained(tasks: Iterable[Task]) -> Iterator[Finding]:
    try:
        for task in tasks:
            yield from _lost(task.pid, task.name, restraints.of(task.pid))
    except Unavailable as error:
        yield ok(
            "LANDLOCK",
            f"Whether a process is confined by Landlock cannot be seen on this host. {error}",
        )


def _lost(pid: int, name: str, found: Restraints) -> Iterator[Finding]:
    who = f"Process {pid} ({name})"
    if found.in_landlock:
        yield blocks(
            "LANDLOCK",
            f"{who} is confined by Landlock; on another host it would not be any more.",
            "Start it without its sandbox if it has an option for that, or wait until it has "
            "ended.",
        )
    if found.denies_executable:
        yield blocks(
            "RESTRAINT",
            f"{who} denies itself memory that is writable and executable (PR_SET_MDWE); on "
            "another host it would not any more.",
            "Start it without that; for a service of systemd, with MemoryDenyWriteExecute=no.",
        )
    if found.intercepting:
        yield blocks(
            "RESTRAINT",
            f"{who} has its own system calls intercepted (PR_SET_SYSCALL_USER_DISPATCH); on "
            "another host they would not be any more.",
            ALTOGETHER,
        )
    yield from _areas(pid, who, "sealed (mseal)", found.sealed)
    yield from _areas(pid, who, "under a protection key (pkey_mprotect)", found.keyed)


def _areas(pid: int, who: str, how: str, begins: tuple[int, ...]) -> Iterator[Finding]:
    # The file of the areas is read only if there are such, which is rare.
    of_its_own = begins and [begin for begin in begins if begin in _own_areas(pid)]
    if of_its_own:
        yield blocks(
            "MEMORY_PROTECTION",
            f"{who} has memory that is {how}, at {of_its_own[0]:#x}; on another host it would not "
            "be any more.",
            ALTOGETHER,
        )


def _secret(tree: Tree) -> Iterator[Finding]:
    users = {handle.pid for handle in tree.handles if handle.target.startswith(UNREADABLE)}
    users |= {pid for pid, name in tree.areas if name.startswith(UNREADABLE)}
    for pid in sorted(users):
        yield blocks(
            "MEMORY_PROTECTION",
            f"Process {pid} ({_name(pid)}) has secret memory (memfd_secret), which nobody else can "
            "read, not even CRIU.",
            ALTOGETHER,
        )


def _own_areas(pid: int) -> set[int]:
    """Return where the areas of a process begin that are neither the kernel's nor for code only.

    The kernel itself may seal its own areas, such as ``[vdso]``, in every process; and it gives a
    protection key to code that is not readable, on the destination too (pkeys(7)).
    """
    found = set()
    with contextlib.suppress(*VANISHED):
        for line in (PROC / str(pid) / "maps").read_text(errors="replace").splitlines():
            area, rights, *rest = line.split(maxsplit=5)
            is_kernels = rest[3:] and rest[3].startswith(("[v", "[uprobes"))
            if not is_kernels and not rights.startswith("--x"):
                found.add(int(area.split("-")[0], 16))
    return found


def _apart(task: Task) -> Iterator[Finding]:
    """Yield what threads have that differs from their process's."""
    own: dict[str, list[int]] = {}
    for tid, state in task.states.items():
        if tid != task.pid and state != "Z":
            for what in _own_of(task, tid):
                own.setdefault(what, []).append(tid)
    for what, tids in own.items():
        threads = f"Thread {named(tids)}" if len(tids) == 1 else f"Threads {named(tids)}"
        verb = "has" if len(tids) == 1 else "have"
        yield blocks(
            "THREAD_APART",
            f"{threads} of process {task.pid} ({task.name}) {verb} {what}; on another host "
            "threads share those of their process.",
            "Have the program use processes in place of threads for that.",
        )


def _own_of(task: Task, tid: int) -> Iterator[str]:
    for kind, what in SHARED.items():
        # Two different ones; neither the same one nor an error, of a thread that has ended.
        if kcmp.compare(kind, task.pid, tid) > kcmp.SAME:
            yield what
    for name in THREAD_NAMESPACES:
        with contextlib.suppress(*VANISHED):
            ours = task.namespaces.get(name)
            if ours and os.readlink(f"{PROC}/{task.pid}/task/{tid}/ns/{name}") != ours:
                yield f"a {name} namespace of its own"


def _children_apart(task: Task) -> Iterator[Finding]:
    """Yield a PID namespace that is meant for the children of a process, which is not restored."""
    if any(state != "Z" and _forks_elsewhere(task, tid) for tid, state in task.states.items()):
        yield blocks(
            "NAMESPACE",
            f"Process {task.pid} ({task.name}) starts its children in another PID namespace than "
            "its own; on another host it would not any more.",
            "Migrate the first process of that namespace, or start the program without one.",
        )


def _forks_elsewhere(task: Task, tid: int) -> bool:
    place = f"{PROC}/{task.pid}/task/{tid}/ns"
    try:
        return os.readlink(f"{place}/pid_for_children") != task.namespaces.get("pid")
    except VANISHED:
        # A namespace that has no process yet has no name either; nor has a thread that has ended.
        return os.path.exists(f"{place}/pid")


def _speculation(task: Task) -> Iterator[Finding]:
    by_filter = "seccomp" in _store_bypass()
    if any(is_turned_off(status, by_filter=by_filter) for status in task.speculation.values()):
        yield blocks(
            "RESTRAINT",
            f"Process {task.pid} ({task.name}) has turned the processor's speculation off "
            "(PR_SET_SPECULATION_CTRL); on another host it would be on.",
            ALTOGETHER,
        )


def is_turned_off(status: dict[str, str], *, by_filter: bool) -> bool:
    """Return whether a thread has turned speculation off, by these lines of its status.

    ``by_filter``: this kernel also does that when a filter of seccomp(2) is set, and so will the
    destination's when it is restored.
    """
    if by_filter and status.get("Seccomp", "0") != "0":
        return False
    return any(status.get(line) in values for line, values in SPECULATION.items())


@cache
def _store_bypass() -> str:
    with contextlib.suppress(OSError):
        return STORE_BYPASS.read_text()
    return ""


def _name(pid: int) -> str:
    with contextlib.suppress(ProcessGone):
        return process.stat(pid).name
    return "ended"
