"""The timeline of a migration as a picture: the places of bars, freeze and commit.

A template draws it. Horizontal places are in percent, so that the picture fits any window, vertical
ones in pixels. Both hosts' clocks are taken as they are: where they disagree by some milliseconds,
so do the bars. The ledger records the commit when the step that made it has ended, and there the
picture marks it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sojourn import units
from sojourn.cluster import freeze
from sojourn.cluster.account import Account
from sojourn.model import StepRecord

#: Pixels: a step, the head of a lane, between lanes, and the margins for labels and ticks.
ROW = 24
HEAD = 30
GAP = 10
TOP = 26
FOOT = 22

#: The thinnest bar that can be seen, in percent.
THIN = 0.4

#: A label stands behind a bar that ends before the first percentage, and in front of a bar that
#: begins after the second; else inside of it.
BEHIND, IN_FRONT = 58.0, 42.0


@dataclass(frozen=True)
class Bar:
    """One step; its ``kind`` is run, frozen, failed or open (it has not ended)."""

    name: str
    took: str
    outcome: str
    kind: str
    y: int
    x: float
    width: float
    label_x: float
    label: str


@dataclass(frozen=True)
class Lane:
    """One host with its steps, from top to bottom."""

    host: str
    role: str
    y: int
    height: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Freeze:
    """When the process did not run; ``known`` if that was measured and not only bounded."""

    x: float
    width: float
    label: str
    known: bool


@dataclass(frozen=True)
class Picture:
    """The whole timeline, ``height`` pixels high."""

    height: int
    bottom: int
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    freeze: Freeze | None
    commit: float | None
    owner: str | None


class Scale:
    """A scale from instants, in seconds, to percent."""

    def __init__(self, steps: Iterable[StepRecord], now: float) -> None:
        found = list(steps)
        self.begin = min(step.started for step in found)
        self.now = max(now, self.begin)
        self.end = max(max(step.started, self.ended(step)) for step in found)
        self.length = max(self.end - self.begin, 0.001)

    def ended(self, step: StepRecord) -> float:
        """Return when a step ended, or now."""
        return self.now if step.ended is None else step.ended

    def at(self, instant: float) -> float:
        """Return the place of an instant in percent."""
        return round(min(100.0, max(0.0, 100 * (instant - self.begin) / self.length)), 2)


def draw(account: Account, now: float) -> Picture | None:
    """Return the picture of a migration, None before its first step."""
    if not account.steps:
        return None
    scale = Scale(account.steps, now)
    stood = freeze.of(account, now)
    frozen = (stood.began, stood.ended) if stood else None
    lanes, y = [], TOP
    for role, host in (("source", account.plan.source), ("destination", account.plan.destination)):
        steps = [step for step in account.steps if step.host == host]
        height = HEAD + ROW * max(1, len(steps))
        bars = [
            _bar(step, scale, frozen, y + HEAD + ROW * number) for number, step in enumerate(steps)
        ]
        lanes.append(Lane(host, role, y, height, tuple(bars)))
        y += height + GAP
    bottom = y - GAP
    ticks = tuple(
        (part, units.span(scale.length * part * 10)) for part in (0.0, 25.0, 50.0, 75.0, 100.0)
    )
    shade = _shade(account, stood, scale) if stood else None
    commit = freeze.commit(account)
    mark = None if commit is None else scale.at(commit)
    return Picture(bottom + FOOT, bottom, tuple(lanes), ticks, shade, mark, account.owner)


def _bar(step: StepRecord, scale: Scale, frozen: tuple[float, float] | None, y: int) -> Bar:
    end = scale.ended(step)
    x = scale.at(step.started)
    width = max(THIN, round(scale.at(end) - x, 2))
    x = min(x, 100 - width)
    label, label_x = _label(x, x + width)
    took = units.span(step.elapsed_ms) if step.ended is not None else "…"
    return Bar(step.name, took, step.outcome, _kind(step, end, frozen), y, x, width, label_x, label)


def _kind(step: StepRecord, end: float, frozen: tuple[float, float] | None) -> str:
    if step.failed:
        return "failed"
    if step.ended is None:
        return "open"
    return "frozen" if frozen and step.started < frozen[1] and end > frozen[0] else "run"


def _label(begin: float, end: float) -> tuple[str, float]:
    """Return the place of a bar's label relative to the bar, and in percent."""
    if end <= BEHIND:
        return "behind", end
    return ("before", begin) if begin >= IN_FRONT else ("inside", begin)


def _shade(account: Account, stood: freeze.Freeze, scale: Scale) -> Freeze:
    measured = (account.result or {}).get("downtime_ms")
    x, end = scale.at(stood.began), scale.at(stood.ended)
    lasted = units.span(1000 * (stood.ended - stood.began))
    if measured:
        label = f"frozen, downtime {units.span(measured)}"
    else:
        label = f"frozen for {lasted}" if stood.known else f"frozen for at most {lasted}"
    return Freeze(x, round(max(THIN, end - x), 2), label, stood.known)
