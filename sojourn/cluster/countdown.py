"""How long a batch, or the memory of one migration, will still take: a time that falls.

What is left to do, divided by the pace so far, leaps with every end of a migration. People want to
know when it will be over. So what is shown is counted down to the estimate: a better one is
approached, a worse one makes the count slower. It rises only if the estimate is clearly worse, or
if there is more to do than before, and says so. Pure: the caller has the clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: An estimate counts as clearly worse if it is longer by this part of what is shown, and by more
#: than so many seconds.
WORSE_PART, WORSE_S = 0.5, 5.0

#: How much of the way to a better estimate is gone at once: one that is only lucky leads nowhere.
BETTER_PART = 0.3

#: The part of all that must be done before the pace is known well enough.
MEASURABLE_PART = 0.02

#: What each migration costs beside its memory, as so many bytes more: its steps and messages.
EACH_BYTES = 128 * 10**6


@dataclass(frozen=True)
class Left:
    """The seconds that are left, and why they are more than a moment ago; empty if they are not."""

    seconds: float
    why: str = ""


class Countdown:
    """Counts down to the end of some work, of which ``done`` grows and ``total`` may."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self._now, self._done, self._total = 0.0, 0.0, 0.0
        #: The instant of the end by the last estimate, and what is shown, with its reason.
        self._end = 0.0
        self._shown: Left | None = None

    def look(self, now: float, done: float, total: float) -> Left | None:
        """Return what is left at an instant, None before the pace is known.

        ``now`` is in seconds by any clock that does not leap; ``done`` and ``total`` in any unit.
        """
        if self._began is None:
            # What had been done before is no measure of the pace since.
            self._began, self._now, self._total = (now, done), now, total
        self._count(now)
        since, before = self._began
        # Work is done in steps: an estimate between two of them would rise until the next.
        news = (done, total) != (self._done, self._total) or now > self._end
        if news and now > since and done - before > MEASURABLE_PART * (total - before):
            more = total - done > self._total - self._done
            self._follow(now, (total - done) * (now - since) / (done - before), more=more)
        self._now, self._done, self._total = now, done, total
        return self._shown

    def _count(self, now: float) -> None:
        """Count down what has passed; more slowly where less is shown than is estimated."""
        if self._shown:
            estimate_s, shown_s = max(self._end - self._now, 0.001), self._shown.seconds
            passed_s = (now - self._now) * min(1.0, shown_s / estimate_s)
            self._shown = replace(self._shown, seconds=max(0.0, shown_s - passed_s))

    def _follow(self, now: float, estimate_s: float, *, more: bool) -> None:
        """Take a new estimate into account; ``more``: there is more to do than there was."""
        self._end = now + estimate_s
        shown_s = self._shown.seconds if self._shown else estimate_s
        if estimate_s <= shown_s:
            self._shown = Left(shown_s + BETTER_PART * (estimate_s - shown_s))
        elif more:
            self._shown = Left(estimate_s, "there is more to do than before")
        elif estimate_s > shown_s * (1 + WORSE_PART) + WORSE_S:
            self._shown = Left(estimate_s, "it goes slower than before")


def weight(memory_bytes: float) -> float:
    """Return what a migration is of its batch's work, in bytes."""
    return memory_bytes + EACH_BYTES
