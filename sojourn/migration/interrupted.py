"""System calls that the freeze has ended: made once more, on either host (x86-64).

CRIU dumps many of them as failed with EINTR, and leaves the original so. Both are mended on the
source, where the frozen tree can be read: the images after the dump and before they leave, the
original before it is woken. What is put in place of EINTR is in ``sojourn.system.restart``.

If the worker dies in ``mend_images``, the tree is resumed here and the images are not used. If it
dies in ``mend_original``, each thread has its old registers or its new ones and is still stopped;
the next attempt mends the rest.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from sojourn.criu import interrupted
from sojourn.errors import ProcessGone
from sojourn.migration import freeze
from sojourn.migration.context import Migration
from sojourn.model import Member
from sojourn.system import ptrace, restart, waits
from sojourn.system.ptrace import Registers
from sojourn.system.restart import Thread
from sojourn.system.waits import Status

#: The only architecture whose registers are known here (``uname -m``).
ARCHITECTURE = "x86_64"

#: How long the threads of a tree that CRIU has just let go may take into their stop, in seconds;
#: they need microseconds, but a busy host may keep them waiting for a CPU.
STOPS_WITHIN_S = 0.2


@dataclass(frozen=True)
class Found:
    """A thread whose system call may have been ended by the freeze."""

    tid: int
    status: Status
    thread: Thread


def mend_images(migration: Migration, frozen_at: float) -> int:
    """Have the dumped threads make their calls once more; return how many. Safe to repeat.

    ``frozen_at``: when the freeze began. Raises CriuFailed if an image is malformed.
    """
    images = migration.directory.images
    return sum(
        interrupted.mend(images / f"core-{found.status.inner_id}.img", partial(_restored, found))
        for found in _interrupted(migration, migration.entry.tree, frozen_at, frozen_at)
    )


def mend_original(migration: Migration, members: Iterable[Member]) -> int:
    """Have the stopped threads make their calls once more when woken; return how many.

    Safe to repeat. A thread that cannot be traced is left as it is: it sees EINTR.
    """
    mended = 0
    began, _ = freeze.instants(migration, migration.facts)
    for found in _interrupted(migration, members, began, time.time()):
        with contextlib.suppress(ProcessGone, OSError), ptrace.seized(found.tid):
            mended += _mend(found)
    return mended


def _mend(found: Found) -> bool:
    after = restart.woken(ptrace.registers(found.tid), found.thread)
    if after is not None:
        ptrace.set_registers(found.tid, after)
    return after is not None


def _restored(found: Found, registers: Registers) -> Registers | None:
    """Return the registers for a thread's image; None to leave them."""
    # Its handler runs first on the destination, and the program may rely on EINTR to see that.
    return None if found.status.signalled else restart.restored(registers, found.thread)


def _interrupted(
    migration: Migration, members: Iterable[Member], frozen_at: float, goes_on_at: float
) -> Iterator[Found]:
    if platform.machine() != ARCHITECTURE:
        return
    seen, until = waits.load(migration.directory.waits), time.monotonic() + STOPS_WITHIN_S
    for tid in (tid for member in members for tid in waits.threads(member.identity.pid)):
        call = waits.call(tid) if _stands_still(tid, until) else None
        if call and restart.may_restart(call.number):
            # A frozen thread may be killed all the same.
            with contextlib.suppress(ProcessGone):
                status, memory = waits.status(tid), partial(waits.memory, tid)
                wait = seen.get(tid)
                thread = Thread(wait, memory, status.confined, frozen_at, goes_on_at)
                yield Found(tid, status, thread)


def _stands_still(tid: int, until: float) -> bool:
    """Whether the thread is stopped, or comes to its stop in time; False for one that runs."""
    while (state := waits.state(tid)) in {"R", "t"} and time.monotonic() < until:
        time.sleep(0.0002)
    return state == "T"
