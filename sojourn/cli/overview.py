"""The live table of a batch: state, step, percent, rate and time left of each migration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sojourn import units
from sojourn.cli import output
from sojourn.cli.output import console
from sojourn.cluster.account import Event
from sojourn.cluster.batches import Record, states_of
from sojourn.cluster.client import Cluster
from sojourn.cluster.records import complete
from sojourn.errors import StoreUnreachable
from sojourn.model import Json, State

#: The least time between two reads of a batch's record, unless its state has changed.
READ_S = 0.5

#: The most migrations that the table shows.
ROWS = 30


@dataclass
class Progress:
    """One migration under way; ``rate`` in bytes per second, 0 while nothing crosses."""

    state: str = State.QUEUED
    step: str = ""
    bytes: float = 0
    total: float = 0
    since: float = 0
    before: float = 0
    rate: float = 0
    missing: float | None = None

    def take(self, event: Event) -> None:
        """Apply one event of this migration."""
        if event.kind == "state":
            self.state = event.data["state"]
        elif event.kind == "step":
            self._begin(event.data["name"])
        elif event.kind == "progress":
            self._cross(event.data["bytes"], event.data["total"])
            self.missing = event.data.get("missing")

    def _begin(self, step: str) -> None:
        """Begin with another step, whose progress is its own."""
        if step != self.step:
            self.step, self.since, self.rate, self.missing = step, 0, 0, None

    def _cross(self, crossed: float, total: float) -> None:
        now = time.monotonic()
        # The rate counts from the first progress, not from the beginning of the step.
        if not self.since:
            self.since, self.before = now, crossed
        self.rate = max(0, crossed - self.before) / (now - self.since) if now > self.since else 0
        self.bytes, self.total = crossed, total

    @property
    def doing(self) -> str:
        """The step, and in one that waits for memory how much is still to come."""
        return (
            self.step
            if self.missing is None
            else f"{self.step}, {units.size(self.missing)} to come"
        )

    @property
    def percent(self) -> float | None:
        """How much of the memory has crossed; None before the first of it has."""
        return min(100.0, 100 * self.bytes / self.total) if self.total else None

    @property
    def left_s(self) -> float | None:
        """How long the rest of the memory will take at this rate; None where that is unknown."""
        return max(0.0, self.total - self.bytes) / self.rate if self.rate else None


class Overview:
    """What is known of a batch so far, drawn for a terminal."""

    def __init__(self, cluster: Cluster, batch: str) -> None:
        self.cluster, self.batch = cluster, batch
        self.record: Record | None = None
        self.ends: dict[int, Json] = {}
        self.line_of: dict[str, int] = {}
        self.progress: dict[int, Progress] = {}
        self.started = time.monotonic()
        self.ended_before: int | None = None

    def read(self) -> list[int]:
        """Read the record again; return the lines that have ended since."""
        batches = self.cluster.batches
        self.record = batches.record(self.batch)
        if self.record is None or not self.record.total:
            return []
        self.line_of = {part.migration: part.number for part in batches.parts(self.batch)}
        ends = batches.ends(self.batch)
        new = sorted(set(ends) - set(self.ends))
        self.ended_before = len(ends) if self.ended_before is None else self.ended_before
        self.ends = ends
        for number in new:
            self.progress.pop(number, None)
        return new

    def take(self, event: Event) -> None:
        """Apply an event, if it is of a migration of this batch that has not ended."""
        number = self.line_of.get(event.migration)
        if number is not None and number not in self.ends:
            self.progress.setdefault(number, Progress()).take(event)

    @property
    def left_s(self) -> float | None:
        """How long the rest of the batch will take at its pace so far; None at the beginning."""
        if self.record is None or self.ended_before is None or len(self.ends) <= self.ended_before:
            return None
        # What had ended before this display began is no measure of the pace since.
        per_migration_s = (time.monotonic() - self.started) / (len(self.ends) - self.ended_before)
        return per_migration_s * (self.record.total - len(self.ends))

    def __rich__(self) -> RenderableType:
        """Return the whole table."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("line", "state", "step", "done", "rate", "left"):
            table.add_column(column)
        under_way = [
            (number, progress)
            for number, progress in sorted(self.progress.items())
            if progress.state != State.QUEUED
        ]
        for number, progress in under_way[:ROWS]:
            rate = units.rate(progress.rate) if progress.rate else ""
            done = "" if progress.percent is None else f"{progress.percent:.0f} %"
            left = units.time_left(progress.left_s)
            table.add_row(str(number), progress.state, progress.doing, done, rate, left)
        return Group(self.head(), table)

    def head(self) -> str:
        """Return the batch in one line."""
        if self.record is None:
            return "requested"
        counts = ", ".join(
            f"{count} {state}" for state, count in states_of(self.ends, self.record.total).items()
        )
        rate = sum(progress.rate for progress in self.progress.values())
        speed = f"; {units.rate(rate)}" if rate else ""
        left = f"; {units.time_left(self.left_s)} left" if self.left_s is not None else ""
        ended = f"{len(self.ends)} of {self.record.total}"
        return f"[bold]{self.record.state}[/]: {ended} ({counts}){speed}{left}"


def watch(cluster: Cluster, batch: str, bookmark: str) -> Record:
    """Show a batch until nothing of it moves any more, and return its record."""
    overview = Overview(cluster, batch)
    if console.is_terminal:
        with Live(overview, console=console, refresh_per_second=4, transient=True):
            for _ in _steps(overview, bookmark):
                pass
    else:
        for number, end in _steps(overview, bookmark):
            console.print(describe(number, end), soft_wrap=True)
    assert overview.record is not None
    return overview.record


def lines(cluster: Cluster, batch: str, bookmark: str) -> Record:
    """Print a line of JSON for each migration that ends, and return the record of the batch."""
    overview = Overview(cluster, batch)
    for number, end in _steps(overview, bookmark):
        output.as_json({"line": number, **end})
    assert overview.record is not None
    return overview.record


def describe(number: int, end: Json) -> str:
    """Return how a part of a batch ended, as one line for people."""
    end = complete(end)
    why = f" {end['failure']['message']}" if end["failure"] else ""
    route = f"pid {end['pid']} from {end['source']} to {end['destination']}"
    return escape(f"line {number}: {route}: {end['state']}.{why}")


def _steps(overview: Overview, bookmark: str) -> Iterator[tuple[int, Json]]:
    """Follow the batch; yield each part that ends. Redis may go away and come back meanwhile.

    Its record is read at the beginning, and when the stream of events reports a change.
    """
    changed, read = True, 0.0
    while True:
        try:
            for event in overview.cluster.ledger.follow(bookmark):
                ours = event is not None and event.migration == overview.batch
                at_once = event is None or (ours and "state" in event.data)
                changed = changed or ours
                if changed and (at_once or time.monotonic() > read + READ_S):
                    changed, read = False, time.monotonic()
                    yield from ((number, overview.ends[number]) for number in overview.read())
                    if overview.record and overview.record.state.final:
                        return
                if event:
                    overview.take(event)
        except StoreUnreachable:
            time.sleep(1)
            # A Redis that lost its data has a new stream, in which the old bookmark means nothing.
            changed, bookmark = True, "0-0"
