"""What the processes of a worker count for each other, in memory that they share.

Made before they are forked. Each place is written by one process only, so no lock is needed.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.sharedctypes import RawArray

Labels = tuple[str, ...]

#: Returns seconds, as ``time.monotonic`` does.
Clock = Callable[[], float]


class Counts(Mapping[Labels, int]):
    """How often each of some things has happened."""

    def __init__(self, things: Sequence[Labels]) -> None:
        self._places = {labels: place for place, labels in enumerate(things)}
        self._counts = RawArray(ctypes.c_uint64, len(things))

    def __getitem__(self, labels: Labels) -> int:
        return int(self._counts[self._places[labels]])

    def __iter__(self) -> Iterator[Labels]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def count(self, *labels: str) -> None:
        """Count one more of a thing."""
        self._counts[self._places[labels]] += 1


class Hearing(Mapping[str, float]):
    """For how many seconds each lane has not heard from Redis; 0 for one that never did.

    A lane that has never heard anything is not ready yet, which ``workers.readiness`` shows.
    """

    def __init__(self, lanes: Sequence[str], clock: Clock = time.monotonic) -> None:
        self._places = {lane: place for place, lane in enumerate(lanes)}
        self._clock = clock
        self._heard = RawArray(ctypes.c_double, len(lanes))

    def __getitem__(self, lane: str) -> float:
        heard = self._heard[self._places[lane]]
        # The monotonic clock is the same in all processes (clock_gettime(2)).
        return max(0.0, self._clock() - heard) if heard else 0.0

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def note(self, lane: str) -> None:
        """Note that a lane listens to Redis now; called in that lane."""
        self._heard[self._places[lane]] = self._clock()

    def forget(self, lanes: Sequence[str]) -> None:
        """Forget what was noted of lanes that have died."""
        for lane in self._places.keys() & set(lanes):
            self._heard[self._places[lane]] = 0.0
