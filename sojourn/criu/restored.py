"""The state of a tree whose ``criu restore`` died: nothing left, stuck before it ran, or running.

The rebuilder writes ``accepted`` before CRIU lets the tree run, so from then on the journal
alone cannot show whether the tree has run. Two sources can, and both outlive CRIU: its log, which
it writes unbuffered (``release``), and the tasks themselves in ``/proc`` (``state``).
docs/criu-deaths.md has the measurements behind both.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.model import Identity
from sojourn.system import process

#: Number of ``futex(2)`` by machine. On any other machine no tree is ever reported as stuck.
FUTEX = {"x86_64": 202, "aarch64": 98}

#: CRIU waits with the plain operation; the C library's own locks are ``FUTEX_PRIVATE_FLAG`` ones.
FUTEX_WAIT = 0

#: Signals that cannot be blocked, KILL and STOP, and TRAP, which CRIU unblocks when it sets a
#: breakpoint; as bits of ``SigBlk``.
ALWAYS_OPEN = 1 << 8 | 1 << 18
MAYBE_OPEN = 1 << 4
EVERYTHING = 2**64 - 1

#: What CRIU logs once it has detached from all tasks.
DONE_LINE = "Restore finished successfully. Tasks resumed."

#: What CRIU logs when it gives up by itself, after it has killed all tasks.
FAILED_LINE = "Restoring FAILED."

#: What CRIU logs, at level 4, when the first task leaves the restorer; or before that, where it
#: cannot set breakpoints.
BEGUN_LINES = (" was trapped", "Force no-breakpoints restore")

#: Where CRIU has recreated a deleted file: ``<name>.cr.<id>.ghost``, relative to the root of the
#: tree's file system.
GHOST = re.compile(r"Remap rpath is (\S.*\.cr\.[0-9a-f]+\.ghost)$", re.MULTILINE)


class Release(StrEnum):
    """How far CRIU came in letting the tree run, by its log."""

    NOT_BEGUN = "not begun"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    DONE = "done"


class State(StrEnum):
    """What is left of the tree now."""

    GONE = "gone"
    STUCK = "stuck"
    RUNNING = "running"
    UNCLEAR = "unclear"


def release(log: Path) -> Release:
    """Read from the log of a ``criu restore`` that has ended how far it came.

    DONE means that every task was let run, even if none is left. FAILED means that no task of the
    tree has run one instruction of its own: CRIU holds every thread at a breakpoint on the
    restorer's last call, and has killed all of them there. NOT_BEGUN means that CRIU, which was
    killed, had not logged that a thread left the restorer. One may have left it all the same: CRIU
    collects a thread's stop with ``wait4(2)`` before it writes that line, and such a thread runs on
    if CRIU dies in between. Only ``state`` can decide then. A missing or empty log means
    UNFINISHED.
    """
    text = log.read_text(errors="replace") if log.exists() else ""
    if DONE_LINE in text:
        return Release.DONE
    if not text or any(line in text for line in BEGUN_LINES):
        return Release.UNFINISHED
    return Release.FAILED if FAILED_LINE in text else Release.NOT_BEGUN


def ghosts(log: Path) -> list[Path]:
    """Return the temporary names that a ``criu restore`` gave to deleted files, by its log.

    CRIU logs a name at level 4 after it has created the file (``create_ghost`` in
    criu/files-reg.c). A restore that succeeds removes them. One that was killed leaves them, and
    the next restore of the same tree fails on each of them.
    """
    text = log.read_text(errors="replace") if log.exists() else ""
    return [Path("/", name) for name in GHOST.findall(text)]


def members(pids: Collection[int], began: int, occupied: Collection[int] = ()) -> list[Identity]:
    """Return which of these PIDs are processes that a restore created: they began after it did.

    ``began`` is the restore's begin on the clock of ``process.ticks_since_boot``; ``occupied`` are
    PIDs that were taken before it. Zombies are left out. A process that is not of the tree can be
    among them only if one of the tree has ended since and its PID was reused.
    """
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessGone):
            now = process.stat(pid)
            if pid not in occupied and now.start_time >= began and now.state not in "ZX":
                found.append(Identity(pid, now.start_time, process.boot_id()))
    return found


def state(pids: Collection[int], began: int, occupied: Collection[int] = ()) -> State:
    """Return what is left of a tree after its ``criu restore`` has ended, and after the commit.

    STUCK is certain: the tree has not run, and never will. Four things must hold for every thread:

    * It sleeps in a shared ``FUTEX_WAIT``, called from an anonymous private mapping that can be
      written and executed, as CRIU's restorer is.
    * It has every signal blocked, which the restorer does first and undoes in its last call.
    * All threads wait on one 32-bit value in memory that all of them share: CRIU's stage.
    * That value is still the one that they wait to see change.

    Stages only rise, and only CRIU raises them, so no task has passed this one, not even a task
    that is gone. No program does all of this by itself, except by making these system calls itself.

    RUNNING means that the tree is complete and every thread has left the restorer: its program
    counter is elsewhere, or it is on a processor with signals unblocked again. A tree that is
    stopped counts too, as it may have been stopped before.

    Everything else is UNCLEAR: some threads wait and some run; some run and some are gone or
    zombies; threads begin, end or were just on a processor; programs are in CRIU's own code. Look
    again after some milliseconds. If that does not change, the tree is mixed, and it is safe only
    to touch neither this tree nor the original.
    """
    ours = members(pids, began, occupied)
    if not ours:
        return State.GONE
    threads = [thread for member in ours for thread in _threads(member.pid)]
    waits = {thread.waits_for for thread in threads}
    if len(waits) == 1 and None not in waits:
        return State.STUCK
    whole = len(ours) == len(set(pids))
    return State.RUNNING if whole and all(thread.runs for thread in threads) else State.UNCLEAR


@dataclass(frozen=True)
class _Thread:
    """What one thread does: it waits in the restorer for a stage to change, or runs its own code.

    With neither set, it is not known what the thread does.
    """

    waits_for: tuple[str, int, int] | None = None
    runs: bool = False


@dataclass(frozen=True)
class _Mapping:
    """One line of ``/proc/PID/maps``."""

    start: int
    end: int
    rights: str
    offset: int
    inode: str
    path: str

    @property
    def is_restorer_like(self) -> bool:
        """Whether CRIU's restorer may be here: anonymous, private, writable and executable."""
        return (self.rights, self.inode, self.path) == ("rwxp", "0", "")

    @property
    def is_shared_memory(self) -> bool:
        """Whether this is shared anonymous memory, which the kernel shows as a deleted file."""
        return self.rights.endswith("s") and self.path == "/dev/zero (deleted)"


def _threads(pid: int) -> Iterator[_Thread]:
    """Yield what each thread of a process does; one that ends meanwhile counts as unknown."""
    root = process.PROC / str(pid)
    try:
        is_criu = (root / "exe").readlink().name.startswith("criu")
        mappings = list(_mappings(root))
        for task in list((root / "task").iterdir()):
            yield _Thread() if is_criu else _thread(task, mappings)
    except (FileNotFoundError, ProcessLookupError):
        yield _Thread()


def _thread(task: Path, mappings: list[_Mapping]) -> _Thread:
    # "running", or the number of the system call, its arguments, stack pointer and program counter
    # (proc_pid_syscall(5)).
    call = (task / "syscall").read_text().split()
    blocks_all = _blocked(task) | ALWAYS_OPEN | MAYBE_OPEN == EVERYTHING
    if call == ["running"]:
        return _Thread(runs=not blocks_all)
    code = _at(int(call[-1], 16), mappings)
    if code is None or not code.is_restorer_like:
        return _Thread(runs=code is not None)
    return _Thread(waits_for=_stage(task, call, mappings) if blocks_all else None)


def _stage(task: Path, call: list[str], mappings: list[_Mapping]) -> tuple[str, int, int] | None:
    """Return where in shared memory the thread waits for a change, and the value that it expects.

    None if it waits for something else, or if the value has changed already.
    """
    if int(call[0]) != FUTEX.get(os.uname().machine) or int(call[2], 16) != FUTEX_WAIT:
        return None
    address, expected = int(call[1], 16), int(call[3], 16)
    memory = _at(address, mappings)
    if memory is None or not memory.is_shared_memory or _value(task, address) != expected:
        return None
    # Addresses differ from process to process; inode and offset name the place in all of them.
    return memory.inode, memory.offset + address - memory.start, expected


def _value(task: Path, address: int) -> int | None:
    """Read 32 bits of a thread's memory."""
    try:
        descriptor = os.open(task / "mem", os.O_RDONLY)
    except OSError:
        return None
    try:
        return int.from_bytes(os.pread(descriptor, 4, address), "little")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _blocked(task: Path) -> int:
    lines = (task / "status").read_text(errors="replace").splitlines()
    return next(
        (int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:")), EVERYTHING
    )


def _mappings(root: Path) -> Iterator[_Mapping]:
    for line in (root / "maps").read_text(errors="replace").splitlines():
        area, rights, offset, _, inode, *path = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in area.split("-"))
        yield _Mapping(start, end, rights, int(offset, 16), inode, *path or [""])


def _at(address: int, mappings: list[_Mapping]) -> _Mapping | None:
    return next((area for area in mappings if area.start <= address < area.end), None)
