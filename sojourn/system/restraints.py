"""How a process restrains itself where no file of ``/proc`` shows it, without disturbing it.

Which bits of the kernel's records (``sojourn.system.kernel_records``) mean what differs from kernel
to kernel. So a specimen is started once, which restrains itself in all of these ways, and what
changes in its records is the answer (``sojourn.system.specimen``). A kind that this kernel does not
have, or that changes more than one bit, is not looked for.

Nothing is kept: if the worker dies meanwhile, the specimen ends by itself within seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_

from sojourn.errors import CommandMissing
from sojourn.model import Json
from sojourn.system import kernel_records, specimen
from sojourn.system.bpf import Unavailable
from sojourn.system.kernel_records import Thread
from sojourn.system.run import Child, spawn

__all__ = ("Restraints", "Unavailable", "of", "prepare")

ALL_FLAGS = 2**64 - 1

#: A pointer of the kernel has its highest bit set, on every architecture with BPF programs.
KERNEL_POINTER = 1 << 63


@dataclass(frozen=True)
class Restraints:
    """What was found of one process.

    ``in_landlock`` and ``intercepting`` count threads; ``sealed`` and ``keyed`` hold where such
    memory begins.
    """

    in_landlock: int
    intercepting: int
    denies_executable: bool
    sealed: tuple[int, ...]
    keyed: tuple[int, ...]


@dataclass(frozen=True)
class Meaning:
    """Which word of the security modules is Landlock's, and which bits mean what; 0 for none."""

    landlock: int | None
    denies_executable: int
    intercepts: int
    sealed: int
    keyed: int


def of(pid: int) -> Restraints:
    """Return how a process restrains itself; nothing if it is gone. Raises Unavailable."""
    meaning = prepare()
    threads = kernel_records.threads(pid)
    flags = meaning.sealed | meaning.keyed
    areas = kernel_records.areas(pid, flags) if flags else {}
    return Restraints(
        in_landlock=sum(_in_landlock(thread, meaning) for thread in threads),
        intercepting=sum(bool(thread.call_work & meaning.intercepts) for thread in threads),
        denies_executable=any(
            thread.memory_flags & meaning.denies_executable for thread in threads
        ),
        sealed=tuple(begin for begin, has in areas.items() if has & meaning.sealed),
        keyed=tuple(begin for begin, has in areas.items() if has & meaning.keyed),
    )


def _in_landlock(thread: Thread, meaning: Meaning) -> bool:
    return meaning.landlock is not None and thread.security[meaning.landlock] != 0


@cache
def prepare() -> Meaning:
    """Find out what the records mean, which takes some 0.2 s once. Raises Unavailable."""
    kernel_records.threads(os.getpid())  # where nothing can be read, no specimen is needed
    try:
        child = spawn([sys.executable, "-I", "-S", specimen.__file__], pipe=True)
    except CommandMissing as error:
        raise Unavailable(error.message) from None
    try:
        return _meaning(child)
    finally:
        child.kill()
        child.stdout.close()


def _meaning(child: Child) -> Meaning:
    places = _report(child)
    before = _thread(child)
    os.kill(child.pid, signal.SIGUSR1)
    has = _report(child)
    after, flags = _thread(child), kernel_records.areas(child.pid, ALL_FLAGS)
    if places["plain"] not in flags:
        raise Unavailable("The specimen's memory is not where this kernel keeps it.")
    plain = flags[places["plain"]]
    keyed = (flags[place] for place in places["keyed"][: has["keys"]])
    return Meaning(
        landlock=_landlock_word(before, after) if has["landlock"] else None,
        denies_executable=_one_bit(before.memory_flags, after.memory_flags),
        intercepts=_one_bit(before.call_work, after.call_work),
        sealed=_one_bit(plain, flags[places["sealed"]]),
        keyed=reduce(or_, keyed, 0) & ~plain,
    )


def _report(child: Child) -> Json:
    line = child.stdout.readline()
    if not line:
        raise Unavailable("The specimen ended before it was looked at.")
    return dict(json.loads(line))


def _thread(child: Child) -> Thread:
    found = kernel_records.threads(child.pid)
    if not found:
        raise Unavailable("The specimen ended before it was looked at.")
    return found[0]


def _landlock_word(before: Thread, after: Thread) -> int:
    """Return the first word that has become a pointer of the kernel.

    Behind the words of all security modules there is other memory, which comes too late to count.
    """
    for number, (was, now) in enumerate(zip(before.security, after.security, strict=True)):
        if was == 0 and now & KERNEL_POINTER:
            return number
    raise Unavailable("The specimen's Landlock domain is not where this kernel keeps it.")


def _one_bit(before: int, after: int) -> int:
    """Return the bit that was set; 0 for none, and for several, which could be others too."""
    changed = after & ~before
    return changed if changed.bit_count() == 1 else 0
