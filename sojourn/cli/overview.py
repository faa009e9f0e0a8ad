"""The live table of a batch: state, step, percent, rate and time left, of each migration under way and in all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sojourn.batch import Record, states_of
from sojourn.cli import output
from sojourn.cli.cluster import Cluster
from sojourn.cli.output import console, megabytes
from sojourn.errors import StoreUnreachable
from sojourn.ledger import Event
from sojourn.model import Json, State

#: The record of a batch is read again when it has changed, but not more often than so, unless its state has.
READ_S = 0.5

#: The table shows so many migrations at most.
ROWS = 30


@dataclass
class Progress:
    """What is known of one migration under way; ``rate`` in bytes per second, 0 while nothing crosses."""

    state: str = State.QUEUED
    step: str = ""
    bytes: float = 0
    total: float = 0
    since: float = 0
    rate: float = 0

    def take(self, event: Event) -> None:
        """Take one event of this migration in."""
        if event.kind == "state":
            self.state = event.data["state"]
        elif event.kind == "step":
            self.step = event.data["name"]
        elif event.kind == "progress":
            self._cross(event.data["bytes"], event.data["total"])

    def _cross(self, crossed: float, total: float) -> None:
        now = time.monotonic()
        self.since = self.since or now
        self.rate = crossed / (now - self.since) if now > self.since else 0
        self.bytes, self.total = crossed, total

    @property
    def percent(self) -> float | None:
        """How much of the memory has crossed; None before the first of it has."""
        return min(100.0, 100 * self.bytes / self.total) if self.total else None

    @property
    def left_s(self) -> float | None:
        """How long the rest of the memory will take at this rate; None where nobody knows."""
        return max(0.0, self.total - self.bytes) / self.rate if self.rate else None


class Overview:
    """What is known of a batch so far, and how it looks."""

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
        """Take an event in, if it is of a migration of this batch that has not ended."""
        number = self.line_of.get(event.migration)
        if number is not None and number not in self.ends:
            self.progress.setdefault(number, Progress()).take(event)

    @property
    def left_s(self) -> float | None:
        """How long the rest of the batch will take at the pace so far; None before anything has ended."""
        if self.record is None or self.ended_before is None or len(self.ends) <= self.ended_before:
            return None
        each = (time.monotonic() - self.started) / (len(self.ends) - self.ended_before)
        return each * (self.record.total - len(self.ends))

    def __rich__(self) -> RenderableType:
        """Return the whole table."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("line", "state", "step", "done", "rate", "left"):
            table.add_column(column)
        under_way = [(number, each) for number, each in sorted(self.progress.items()) if each.state != State.QUEUED]
        for number, each in under_way[:ROWS]:
            rate = f"{megabytes(each.rate)}/s" if each.rate else ""
            done = "" if each.percent is None else f"{each.percent:.0f} %"
            table.add_row(str(number), each.state, each.step, done, rate, seconds(each.left_s))
        return Group(self.head(), table)

    def head(self) -> str:
        """Return the batch in one line."""
        if self.record is None:
            return "asked for"
        counts = ", ".join(f"{count} {state}" for state, count in states_of(self.ends, self.record.total).items())
        rate = sum(each.rate for each in self.progress.values())
        speed = f"; {megabytes(rate)}/s" if rate else ""
        left = f"; {seconds(self.left_s)} left" if self.left_s is not None else ""
        return f"[bold]{self.record.state}[/]: {len(self.ends)} of {self.record.total} ({counts}){speed}{left}"


def watch(cluster: Cluster, batch: str, bookmark: str) -> Record:
    """Show a batch until nothing of it moves any more; return it."""
    overview = Overview(cluster, batch)
    if console.is_terminal:
        with Live(overview, console=console, refresh_per_second=4, transient=True):
            for _ in _steps(overview, bookmark):
                pass
    else:
        for number, end in _steps(overview, bookmark):
            console.print(describe(number, end), soft_wrap=True)
    assert overview.record is not None  # noqa: S101  (it has ended)
    return overview.record


def lines(cluster: Cluster, batch: str, bookmark: str) -> Record:
    """Print a line of JSON for each migration that ends; return the batch when nothing of it moves any more."""
    overview = Overview(cluster, batch)
    for number, end in _steps(overview, bookmark):
        output.as_json({"line": number, **end})
    assert overview.record is not None  # noqa: S101  (it has ended)
    return overview.record


def describe(number: int, end: Json) -> str:
    """Return what a part came to, as people would say it."""
    why = f" {end['failure']['message']}" if end["failure"] else ""
    way = f"pid {end['pid']} from {end['source']} to {end['destination']}"
    return escape(f"line {number}: {way}: {end['state']}.{why}")


def seconds(span_s: float | None) -> str:
    """Return a span of time for people."""
    if span_s is None:
        return ""
    return f"{span_s:.0f} s" if span_s < 120 else f"{span_s / 60:.0f} min"


def _steps(overview: Overview, bookmark: str) -> Iterator[tuple[int, Json]]:
    """Follow the batch; yield each part that ends. Redis may go away and come back meanwhile.

    Its record is read when the stream of events says that it has changed, and at the beginning.
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
            changed, bookmark = True, "0-0"
