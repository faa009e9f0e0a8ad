"""What is still missing in the memory of a process, and where the page store has it.

Pure: it follows the messages of userfaultfd(2) and does nothing itself. A place that is not missing
here, and at which a thread waits all the same, is zero: it was so on the source, or the process has
given it back since.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from sojourn.criu.pagemap import Run
from sojourn.system.userfaultfd import Event, Message


@dataclass
class AddressSpace:
    """Missing pages as runs, which never overlap.

    The highest address comes first: what is filled next is then at the end of the list, from which
    it can be taken without moving all others.
    """

    runs: list[Run]

    @classmethod
    def of(cls, runs: Iterable[Run]) -> AddressSpace:
        """Return an address space in which these runs are missing."""
        return cls(sorted(runs, key=_descending))

    @property
    def length(self) -> int:
        """How many bytes are missing."""
        return sum(run.length for run in self.runs)

    def fork(self) -> AddressSpace:
        """Return that of a child: it has what the parent has, and misses what the parent misses."""
        return AddressSpace(self.runs.copy())

    def next(self) -> Run | None:
        """Return the missing run with the lowest address; None if nothing is missing."""
        return self.runs[-1] if self.runs else None

    def at(self, address: int) -> Run | None:
        """Return what is missing from this address on, up to the end of its run."""
        index = bisect_left(self.runs, -address, key=_descending)
        if index < len(self.runs) and address < _end(self.runs[index]):
            return _part(self.runs[index], address, _end(self.runs[index]))
        return None

    def from_address(self, address: int) -> Run | None:
        """Return what is missing first at this address or above; None if nothing is."""
        here = self.at(address)
        if here is not None:
            return here
        index = bisect_left(self.runs, -address, key=_descending)
        return self.runs[index - 1] if index else None

    def apply(self, message: Message) -> None:
        """Follow a change that the process made to its mappings; a fork and a fault change none."""
        if message.event in {Event.REMOVE, Event.UNMAP}:
            self.forget(message.first, message.second)
        elif message.event is Event.REMAP:
            self.move(message.first, message.second, message.third)

    def forget(self, start: int, end: int) -> list[Run]:
        """Take what is missing between two addresses off the list, and return it."""
        first = bisect_right(self.runs, -end, key=_descending)
        last = first
        while last < len(self.runs) and _end(self.runs[last]) > start:
            last += 1
        touched = self.runs[first:last]
        outside = [part for run in touched for part in _outside(run, start, end)]
        self.runs[first:last] = outside
        return [_part(run, max(start, run.address), min(end, _end(run))) for run in touched]

    def move(self, source: int, target: int, length: int) -> None:
        """Follow mremap(2): what was missing at the old place is missing at the new one."""
        moved = self.forget(source, source + length)
        self.forget(target, target + length)
        index = bisect_right(self.runs, -target - length, key=_descending)
        self.runs[index:index] = [
            Run(run.address - source + target, run.length, run.offset) for run in moved
        ]


def _descending(run: Run) -> int:
    return -run.address


def _end(run: Run) -> int:
    return run.address + run.length


def _part(run: Run, start: int, end: int) -> Run:
    return Run(start, end - start, run.offset + start - run.address)


def _outside(run: Run, start: int, end: int) -> list[Run]:
    """Return what is left of a run without what is between two addresses, the higher part first."""
    parts = []
    if _end(run) > end:
        parts.append(_part(run, end, _end(run)))
    if run.address < start:
        parts.append(_part(run, run.address, start))
    return parts
