"""What has become of a tree whose ``criu restore`` died: nothing, a tree that never woke, or one that runs.

The action script writes ``accepted`` before CRIU lets the tree go, so from then on the journal alone can not tell
whether the tree has run. Two witnesses can, and both outlive CRIU: its log, which it writes unbuffered (``release``),
and the tasks themselves in ``/proc`` (``state``). docs/criu-deaths.md has the measurements behind both.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sojourn import process
from sojourn.errors import ProcessGone
from sojourn.model import Identity

#: ``futex(2)`` by machine. On any other one no tree is ever called stuck.
FUTEX = {"x86_64": 202, "aarch64": 98}

#: CRIU waits with the plain operation; the C library's own locks are ``FUTEX_PRIVATE_FLAG`` ones.
FUTEX_WAIT = 0

#: The signals that CRIU's restorer leaves open or that nobody can block, as bits of ``SigBlk``: KILL, STOP, and TRAP,
#: which CRIU opens when it sets a breakpoint.
ALWAYS_OPEN = 1 << 8 | 1 << 18
MAYBE_OPEN = 1 << 4
EVERYTHING = 2**64 - 1

#: What CRIU says once it has detached from all tasks.
DONE_LINE = "Restore finished successfully. Tasks resumed."

#: What CRIU says when it gives up by itself, after it has killed all tasks.
FAILED_LINE = "Restoring FAILED."

#: What CRIU says, at level 4, of the first task that passes out of the restorer; or before that, where it can not
#: set breakpoints.
BEGUN_LINES = (" was trapped", "Force no-breakpoints restore")

#: Where CRIU has made a deleted file again: ``<name>.cr.<id>.ghost``, from the root of the tree's file system.
GHOST = re.compile(r"Remap rpath is (\S.*\.cr\.[0-9a-f]+\.ghost)$", re.MULTILINE)


class Release(StrEnum):
    """How far CRIU came in letting the tree go, by its log."""

    NOT_BEGUN = "not begun"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    DONE = "done"


class State(StrEnum):
    """What there is of the tree now."""

    GONE = "gone"
    STUCK = "stuck"
    RUNNING = "running"
    UNCLEAR = "unclear"


def release(log: Path) -> Release:
    """Read from the log of a ``criu restore`` that has ended how far it came.

    DONE means that all tasks were let go whole, even if none is left; FAILED that no task of the tree has run one
    instruction of its own, since CRIU holds every thread by a breakpoint at the restorer's last call, and has killed
    them there. NOT_BEGUN means that CRIU, which was killed, had not told of one that came through. One may have all the
    same: CRIU takes a thread's stop by ``wait4(2)`` before it writes that line, and a thread whose stop was taken runs
    on if CRIU dies in between. Only ``state`` can tell then. A missing or empty log says UNFINISHED.
    """
    text = log.read_text(errors="replace") if log.exists() else ""
    if DONE_LINE in text:
        return Release.DONE
    if not text or any(line in text for line in BEGUN_LINES):
        return Release.UNFINISHED
    return Release.FAILED if FAILED_LINE in text else Release.NOT_BEGUN


def ghosts(log: Path) -> list[Path]:
    """Return the names that a ``criu restore`` gave to deleted files, by its log; a good one removes them itself.

    CRIU says so, at level 4, after it has made the file (``create_ghost`` in criu/files-reg.c). A restore that was
    killed leaves them, and the next one of the same tree fails at each.
    """
    text = log.read_text(errors="replace") if log.exists() else ""
    return [Path("/", name) for name in GHOST.findall(text)]


def members(pids: Collection[int], began: int, occupied: Collection[int] = ()) -> list[Identity]:
    """Return which of these PIDs are processes that a restore made: those that began after it did.

    ``began`` is the restore's begin on the clock of ``process.ticks_since_boot``; ``occupied`` are PIDs that were taken
    before it. Zombies are left out. A stranger can be among them only if a process of the tree has ended since and
    its PID was given out again.
    """
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessGone):
            now = process.stat(pid)
            if pid not in occupied and now.start_time >= began and now.state not in "ZX":
                found.append(Identity(pid, now.start_time, process.boot_id()))
    return found


def state(pids: Collection[int], began: int, occupied: Collection[int] = ()) -> State:
    """Tell what there is of a tree after its ``criu restore`` has ended, and after the commit.

    STUCK is sound. Every thread sleeps in a shared ``FUTEX_WAIT``, called from an anonymous private mapping that can be
    written and run, as CRIU's restorer is; with every signal blocked, which the restorer does first and its last call
    undoes; all of them on one word in memory that all share, CRIU's stage; and that word still holds what they
    wait to see change. Stages only rise and only CRIU raises them, so nobody has passed this one, not even a task
    that is gone, and nobody ever will. A program of its own accord does none of these but by system calls of its own.

    RUNNING means that all of the tree is there and every thread has left the restorer: its program counter lies
    elsewhere, or it is on a processor with signals open again. Also if it is stopped, as it may have been before.

    Everything else is UNCLEAR: some wait and some run, some run and some are gone or zombies, threads that begin, end
    or were just on a processor, programs in CRIU's own code. Ask again after some milliseconds; if it stays so, it
    is mixed, and the safe side is to touch neither this tree nor the original.
    """
    ours = members(pids, began, occupied)
    if not ours:
        return State.GONE
    threads = [thread for who in ours for thread in _threads(who.pid)]
    waits = {thread.waits_for for thread in threads}
    if len(waits) == 1 and None not in waits:
        return State.STUCK
    whole = len(ours) == len(set(pids))
    return State.RUNNING if whole and all(thread.runs for thread in threads) else State.UNCLEAR


@dataclass(frozen=True)
class _Thread:
    """What one thread does: waits in the restorer for a stage to change, runs its own code, or neither is known."""

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
        """Whether CRIU's restorer may lie here: anonymous, private, to be written and run."""
        return (self.rights, self.inode, self.path) == ("rwxp", "0", "")

    @property
    def is_shared_memory(self) -> bool:
        """Whether this is shared anonymous memory, which the kernel shows so."""
        return self.rights.endswith("s") and self.path == "/dev/zero (deleted)"


def _threads(pid: int) -> Iterator[_Thread]:
    """Look at each thread of a process; one that ends meanwhile counts as unknown."""
    root = process.PROC / str(pid)
    try:
        is_criu = (root / "exe").readlink().name.startswith("criu")
        mappings = list(_mappings(root))
        for task in list((root / "task").iterdir()):
            yield _Thread() if is_criu else _thread(task, mappings)
    except (FileNotFoundError, ProcessLookupError):
        yield _Thread()


def _thread(task: Path, mappings: list[_Mapping]) -> _Thread:
    words = (task / "syscall").read_text().split()
    blocks_all = _blocked(task) | ALWAYS_OPEN | MAYBE_OPEN == EVERYTHING
    if words == ["running"]:
        return _Thread(runs=not blocks_all)
    code = _at(int(words[-1], 16), mappings)
    if code is None or not code.is_restorer_like:
        return _Thread(runs=code is not None)
    return _Thread(waits_for=_stage(task, words, mappings) if blocks_all else None)


def _stage(task: Path, words: list[str], mappings: list[_Mapping]) -> tuple[str, int, int] | None:
    """Return the word in shared memory that the thread waits to see change, and its value; None if it does not."""
    if int(words[0]) != FUTEX.get(os.uname().machine) or int(words[2], 16) != FUTEX_WAIT:
        return None
    address, expected = int(words[1], 16), int(words[3], 16)
    memory = _at(address, mappings)
    if memory is None or not memory.is_shared_memory or _word(task, address) != expected:
        return None
    return memory.inode, memory.offset + address - memory.start, expected


def _word(task: Path, address: int) -> int | None:
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
    return next((int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:")), EVERYTHING)


def _mappings(root: Path) -> Iterator[_Mapping]:
    for line in (root / "maps").read_text(errors="replace").splitlines():
        area, rights, offset, _, inode, *path = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in area.split("-"))
        yield _Mapping(start, end, rights, int(offset, 16), inode, *path or [""])


def _at(address: int, mappings: list[_Mapping]) -> _Mapping | None:
    return next((each for each in mappings if each.start <= address < each.end), None)
