"""In which system call a thread waits, and since when, read from ``/proc`` (proc(5)).

A thread's ``se.exec_start`` in ``/proc/PID/task/TID/sched`` is when it ran last, on the clock of
the CPU on which it did (``rq_clock_task`` in kernel/sched/): that clock leaves out interrupts and
what a hypervisor took, so that each CPU has drifted by another number of minutes. What counts is
how long ago that was, so each such clock is read beside our own, on its CPU.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.model import Json
from sojourn.system import json_file
from sojourn.system.process import PROC

#: What ``/proc/PID/task/TID/syscall`` has of a waiting thread: number, six arguments, sp, ip.
FIELDS = 9

#: Which field of ``/proc/PID/task/TID/stat`` behind the name is the CPU it ran on last.
CPU_FIELD = 36

#: How long a thread may take into a stop, in seconds, and how often it is looked at meanwhile: it
#: needs microseconds, but on a busy host it waits for a CPU.
ON_ITS_WAY_S, GLANCE_S = 0.05, 0.0003

#: How many threads are looked at again until the freeze; those of a large tree are seen once.
FOLLOWED = 64


@dataclass(frozen=True)
class Call:
    """A system call in which a thread waits: number, arguments, stack pointer, return address."""

    number: int
    arguments: tuple[int, ...]
    sp: int
    ip: int


@dataclass(frozen=True)
class Wait:
    """A thread in a system call.

    ``kernel`` is the kernel's function in which it sleeps; ``since`` when it ran last, in seconds
    since the epoch, None if that cannot be known.
    """

    call: Call
    kernel: str
    since: float | None

    def to_json(self) -> Json:
        """Return the wait as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Wait:
        """Read back what ``to_json`` wrote."""
        call = data["call"]
        return cls(**{**data, "call": Call(**{**call, "arguments": tuple(call["arguments"])})})


def threads(pid: int) -> list[int]:
    """Return the ids of a process's threads; [] if it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return sorted(int(entry.name) for entry in (PROC / str(pid) / "task").iterdir())
    return []


def call(tid: int) -> Call | None:
    """Return the system call in which a thread waits or was stopped; None if it is in none."""
    words = _read(tid, "syscall").split()
    if len(words) != FIELDS or words[0] == "-1":
        return None
    number, *arguments, sp, ip = (int(word, 0) for word in words)
    return Call(number, tuple(arguments), sp, ip)


def state(tid: int) -> str:
    """Return the thread's state as one letter (proc(5)); empty if it is gone."""
    return next(iter(_after_name(tid)), "")


def memory(tid: int, address: int, length: int) -> bytes | None:
    """Return so many bytes of the thread's memory; None if they cannot be read."""
    with contextlib.suppress(OSError, OverflowError):
        descriptor = os.open(PROC / str(tid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.pread(descriptor, length, address)
        finally:
            os.close(descriptor)
        return content if len(content) == length else None
    return None


@dataclass(frozen=True)
class Status:
    """What ``/proc/TID/status`` has of a thread.

    ``inner_id`` is its id in its own PID namespace; ``confined``: it has a filter of seccomp(2);
    ``signalled``: a signal is pending for which it has a handler; ``blocked``: which it blocks;
    ``traced``: some process traces it, as CRIU does from the freeze to the dump's end.
    """

    inner_id: int
    confined: bool
    signalled: bool
    blocked: int
    traced: bool


def status(tid: int) -> Status:
    """Read ``/proc/TID/status``. Raises ProcessGone."""
    lines = dict(line.split(":", 1) for line in _read(tid, "status").splitlines() if ":" in line)
    if "NSpid" not in lines:
        raise ProcessGone(f"There is no thread {tid} on this host.")
    pending, shared, blocked, caught = (
        int(lines[name], 16) for name in ("SigPnd", "ShdPnd", "SigBlk", "SigCgt")
    )
    return Status(
        inner_id=int(lines["NSpid"].split()[-1]),
        confined=int(lines.get("Seccomp", "0")) != 0,
        signalled=bool((pending | shared) & ~blocked & caught),
        blocked=blocked,
        traced=int(lines["TracerPid"]) != 0,
    )


def save(waits: dict[int, Wait], file: Path) -> None:
    """Write what an observer saw, by thread ids."""
    json_file.write(file, {tid: wait.to_json() for tid, wait in waits.items()})


def load(file: Path) -> dict[int, Wait]:
    """Read what ``save`` wrote; empty if there is no file, or it is malformed."""
    saved = json_file.read(file) or {}
    return {int(tid): Wait.from_json(wait) for tid, wait in saved.items()}


@dataclass
class Observer:
    """Looks at the threads of a tree, as often as wanted; ``waits`` is what it saw last.

    ``counts``: whether a system call of this number is of interest.
    """

    pids: list[int]
    counts: Callable[[int], bool]
    waits: dict[int, Wait] = field(default_factory=dict)
    _turns: dict[int, int] = field(default_factory=dict)
    _clocks: dict[int, float | None] = field(default_factory=dict)

    def look(self) -> None:
        """Look at every thread."""
        for pid in self.pids:
            for tid in threads(pid):
                self._look_at(tid)

    def look_again(self) -> None:
        """Look at those that have run since, if they are few; at none once the freeze has begun."""
        if len(self._turns) > FOLLOWED:
            return
        for tid in [tid for tid, turn in self._turns.items() if _turn(tid) != turn]:
            # One that has not waited may run for as long as it likes.
            if _is_held(tid, ON_ITS_WAY_S if tid in self.waits else 0):
                # What is seen from here on is the work of whoever holds it.
                self._turns.clear()
                return
            self._look_at(tid)

    def _look_at(self, tid: int) -> None:
        self._turns[tid] = _turn(tid)
        self.waits.pop(tid, None)
        found = call(tid)
        if found and self.counts(found.number):
            self.waits[tid] = Wait(found, _read(tid, "wchan"), self._since(tid))

    def _since(self, tid: int) -> float | None:
        stat = _after_name(tid)
        ran = _exec_start_s(_read(tid, "sched"))
        if len(stat) <= CPU_FIELD or ran is None:
            return None
        clock = self._clock(int(stat[CPU_FIELD]))
        return None if clock is None else ran + clock

    def _clock(self, cpu: int) -> float | None:
        if cpu not in self._clocks:
            self._clocks[cpu] = _clock_of(cpu)
        return self._clocks[cpu]


def observed(pids: Iterable[int], counts: Callable[[int], bool]) -> Observer:
    """Return an observer of these processes that has looked once."""
    observer = Observer(list(pids), counts)
    observer.look()
    return observer


def _clock_of(cpu: int) -> float | None:
    """Return the time since the epoch at which a CPU's clock began; None if we may not run there.

    The calling thread moves to that CPU for an instant.
    """
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
        os.sched_yield()  # brings our own ``exec_start`` up to date
        ours = _exec_start_s(Path("/proc/thread-self/sched").read_text())
        return None if ours is None else time.time() - ours
    except OSError:
        return None
    finally:
        os.sched_setaffinity(0, allowed)


def _exec_start_s(sched: str) -> float | None:
    """Return ``se.exec_start``, there in milliseconds; None where the kernel does not show it."""
    for line in sched.splitlines():
        if line.startswith("se.exec_start"):
            return float(line.rpartition(":")[2]) / 1000
    return None


def _is_held(tid: int, patience_s: float) -> bool:
    """Whether the thread is traced or stopped, or comes to its stop in time."""
    until = time.monotonic() + patience_s
    # First: CRIU runs code of its own in a thread that it holds, which may be seen at work or
    # waiting for it.
    while not (traced := _is_traced(tid)) and state(tid) == "R" and time.monotonic() < until:
        time.sleep(GLANCE_S)
    return traced or state(tid) in {"t", "T"}


def _is_traced(tid: int) -> bool:
    with contextlib.suppress(ProcessGone):
        return status(tid).traced
    return False


def _turn(tid: int) -> int:
    """Return how often the thread has been given a CPU; 0 where the kernel does not count."""
    words = _read(tid, "schedstat").split()
    return int(words[2]) if len(words) == 3 else 0


def _after_name(tid: int) -> list[str]:
    return _read(tid, "stat").rpartition(")")[2].split()


def _read(tid: int, name: str) -> str:
    # A thread has a directory of its own by its id, though it is not listed.
    try:
        return (PROC / str(tid) / name).read_text(errors="replace")
    except OSError:
        return ""
