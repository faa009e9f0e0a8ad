"""The timeline of a migration as a picture: the places of bars, freeze and commit.

A template draws it. The names of hosts and steps stand in a column of their own, so that no bar,
line or label can cover them. Right of it, horizontal places are in percent, so that the picture
fits any window, and vertical ones in pixels. Both hosts' clocks are taken as they are: where they
disagree by some milliseconds, so do the bars. The commit is marked where the process ran again on
the destination; where that was not measured, where the step that made it had ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from sojourn import units
from sojourn.cluster import freeze
from sojourn.cluster.account import Account
from sojourn.model import State, StepRecord

#: Pixels: a step, the head of a lane, between lanes, and the margins for labels and ticks.
ROW = 24
HEAD = 30
GAP = 10
TOP = 26
FOOT = 22

#: The thinnest bar that can be seen, in percent.
THIN = 0.4


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


@dataclass(frozen=True)
class Lane:
    """One host with its steps, from top to bottom."""

    host: str
    role: str
    y: int
    height: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Shade:
    """When the process did not run; ``known`` if that was measured and not only bounded."""

    x: float
    width: float
    label: str
    known: bool

    @property
    def end(self) -> float:
        """Where it ends, in percent."""
        return self.x + self.width


@dataclass(frozen=True)
class Picture:
    """The whole timeline, ``height`` pixels high."""

    height: int
    bottom: int
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    freeze: Shade | None
    commit: float | None
    owner: str | None


class Scale:
    """A scale from instants, in seconds, to percent."""

    def __init__(self, account: Account, now: float) -> None:
        steps = account.steps
        self.begin = min(step.started for step in steps)
        self.now = max(now, self.begin)
        ends = [max(step.started, self.ended(step)) for step in steps]
        # In doubt no step is under way, and the process stands still all the same.
        self.end = max([*ends, *([self.now] if account.state is State.IN_DOUBT else [])])
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
    scale = Scale(account, now)
    stood, lanes, y = freeze.of(account, scale.now), [], TOP
    frozen = (stood.began, stood.ended) if stood else None
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
    took = units.span(step.elapsed_ms) if step.ended is not None else "…"
    kind = _kind(step, end, frozen)
    return Bar(step.name, took, step.outcome, kind, y, min(x, 100 - width), width)


def _kind(step: StepRecord, end: float, frozen: tuple[float, float] | None) -> str:
    if step.failed:
        return "failed"
    if step.ended is None:
        return "open"
    return "frozen" if frozen and step.started < frozen[1] and end > frozen[0] else "run"


def _shade(account: Account, stood: freeze.Freeze, scale: Scale) -> Shade:
    measured = (account.result or {}).get("downtime_ms")
    x, end = scale.at(stood.began), scale.at(stood.ended)
    lasted = units.span(1000 * (stood.ended - stood.began))
    label = f"frozen for {lasted}" if stood.known else f"frozen for at most {lasted}"
    if measured:
        label = f"frozen, downtime {units.span(measured)}"
    elif account.state is State.IN_DOUBT:
        label = f"frozen for {lasted} so far"
    width = round(max(THIN, end - x), 2)
    return Shade(min(x, 100 - width), width, label, stood.known)
