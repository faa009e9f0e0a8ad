"""The live table of a batch: process, hosts, step, percent and time left of each migration."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sojourn import units
from sojourn.cli import output
from sojourn.cli.output import console
from sojourn.cluster.account import Event
from sojourn.cluster.batches import Part, Record, states_of, who
from sojourn.cluster.client import Cluster
from sojourn.cluster.countdown import Countdown, Left, weight
from sojourn.cluster.records import complete
from sojourn.errors import StoreUnreachable
from sojourn.model import Json, State

#: The least time between two reads of a batch's record, unless its state has changed.
READ_S = 0.5

#: The most migrations that the table shows.
ROWS = 30

#: Terminals with fewer columns of text get fewer columns of the table.
WIDE = 110


@dataclass
class Progress:
    """One migration under way.

    ``rate`` is in bytes per second, 0 while nothing crosses; ``part`` is how much of its memory has
    crossed, from 0 to 1.
    """

    state: str = State.QUEUED
    step: str = ""
    bytes: float = 0
    total: float = 0
    since: float = 0
    before: float = 0
    rate: float = 0
    missing: float | None = None
    part: float = 0
    countdown: Countdown = field(default_factory=Countdown)
    left: Left | None = None

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
            self.countdown, self.left = Countdown(), None

    def _cross(self, crossed: float, total: float) -> None:
        now = time.monotonic()
        # The rate counts from the first progress, not from the beginning of the step.
        if not self.since:
            self.since, self.before = now, crossed
        self.rate = max(0, crossed - self.before) / (now - self.since) if now > self.since else 0
        self.bytes, self.total = crossed, total
        # Another step counts from nothing again; what was done stays done.
        self.part = max(self.part, (self.percent or 0) / 100)
        self.left = self.countdown.look(now, crossed, total)

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


class Overview:
    """What is known of a batch so far, drawn for a terminal."""

    def __init__(self, cluster: Cluster, batch: str) -> None:
        self.cluster, self.batch = cluster, batch
        self.record: Record | None = None
        self.ends: dict[int, Json] = {}
        self.parts: dict[int, Part] = {}
        self.line_of: dict[str, int] = {}
        self.progress: dict[int, Progress] = {}
        self.countdown = Countdown()

    def read(self) -> list[int]:
        """Read the record again; return the lines that have ended since."""
        batches = self.cluster.batches
        self.record = batches.record(self.batch)
        if self.record is None or not self.record.total:
            return []
        self.parts = {part.number: part for part in batches.parts(self.batch)}
        self.line_of = {part.migration: part.number for part in self.parts.values()}
        ends = batches.ends(self.batch)
        new = sorted(set(ends) - set(self.ends))
        self.ends = ends
        for number in new:
            self.progress.pop(number, None)
        return new

    def take(self, event: Event) -> None:
        """Apply an event, if it is of a migration of this batch that has not ended."""
        number = self.line_of.get(event.migration)
        if number is None or number in self.ends:
            return
        if event.kind == "state" and event.data["state"] == State.QUEUED:
            # Another try: what had crossed before crosses again.
            self.progress[number] = Progress()
        self.progress.setdefault(number, Progress()).take(event)

    def left(self) -> Left | None:
        """Return how long the rest will take at the pace so far; None at the beginning."""
        weights = {number: weight(part.bytes) for number, part in self.parts.items()}
        ended = sum(weights[number] for number in self.ends if number in weights)
        crossed = sum(
            weights[number] * progress.part
            for number, progress in list(self.progress.items())
            if number in weights and number not in self.ends
        )
        return self.countdown.look(time.monotonic(), ended + crossed, sum(weights.values()))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the whole table in the width of the terminal."""
        yield self.head()
        yield self._table(wide=options.max_width >= WIDE)

    def _table(self, *, wide: bool) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        where, pace = (["from"], ["rate"]) if wide else ([], [])
        for column in ("process", *where, "to", "state", "step", "done", *pace, "left"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for number, progress in self._under_way()[:ROWS]:
            part = self.parts[number]
            hosts = part.plan["source"], part.plan["destination"]
            rate = units.rate(progress.rate) if progress.rate else ""
            done = "" if progress.percent is None else f"{progress.percent:.0f} %"
            left = units.time_left(progress.left.seconds) if progress.left else ""
            name = escape(who(part.plan["pid"], part.command))
            cells = [name, *(hosts if wide else hosts[1:]), progress.state, progress.doing, done]
            table.add_row(*cells, *([rate] if wide else []), left)
        return table

    def _under_way(self) -> list[tuple[int, Progress]]:
        return [
            (number, progress)
            for number, progress in sorted(self.progress.items())
            if progress.state != State.QUEUED and number in self.parts
        ]

    def head(self) -> str:
        """Return the batch in one line."""
        if self.record is None:
            return "requested"
        counts = ", ".join(
            f"{count} {state}" for state, count in states_of(self.ends, self.record.total).items()
        )
        rate = sum(progress.rate for progress in list(self.progress.values()))
        speed = f"; {units.rate(rate)}" if rate else ""
        ended = f"{len(self.ends)} of {self.record.total}"
        return f"[bold]{self.record.state}[/]: {ended} ({counts}){speed}{_left(self.left())}"


def _left(left: Left | None) -> str:
    if left is None:
        return ""
    why = f" ({left.why})" if left.why else ""
    return f"; {units.time_left(left.seconds)} left{why}"


def watch(cluster: Cluster, batch: str, bookmark: str, until: float = math.inf) -> Record:
    """Show a batch until nothing of it moves any more, and return its record.

    At the latest until an instant of the monotonic clock.
    """
    overview = Overview(cluster, batch)
    if console.is_terminal:
        with Live(overview, console=console, refresh_per_second=4, transient=True):
            for _ in _steps(overview, bookmark, until):
                pass
    else:
        for number, end in _steps(overview, bookmark, until):
            console.print(escape(describe(number, end)), soft_wrap=True)
    assert overview.record is not None
    return overview.record


def lines(cluster: Cluster, batch: str, bookmark: str, until: float = math.inf) -> Record:
    """Print a line of JSON for each migration that ends, and return the record of the batch."""
    overview = Overview(cluster, batch)
    for number, end in _steps(overview, bookmark, until):
        output.as_json({"line": number, **end})
    assert overview.record is not None
    return overview.record


def describe(number: int, end: Json) -> str:
    """Return how a part of a batch ended, as one line for people."""
    end = complete(end)
    why = f" {end['failure']['message']}" if end["failure"] else ""
    name = who(end["pid"], str(end.get("command", "")))
    route = f"{name} from {end['source']} to {end['destination']}"
    return f"line {number}: {route}: {end['state']}.{why}"


def _steps(
    overview: Overview, bookmark: str, until: float = math.inf
) -> Iterator[tuple[int, Json]]:
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
                if overview.record and time.monotonic() > until:
                    return
                if event:
                    overview.take(event)
        except StoreUnreachable:
            time.sleep(1)
            # A Redis that lost its data has a new stream, in which the old bookmark means nothing.
            changed, bookmark = True, "0-0"
