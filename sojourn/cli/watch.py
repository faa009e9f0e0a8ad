"""``sojourn watch``: migrations live on a terminal; in a pipe, one line per event.

Changes come by the ledger's stream of events, which Redis pushes to a blocking read. Migrations are
read from the ledger at the start, and when an event names one that is not known here yet; nothing
is polled.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sojourn import units, window
from sojourn.cli import completion, doubt, live, many, output, timeline
from sojourn.cli.output import complaints, console
from sojourn.cluster.account import Account, Event
from sojourn.cluster.batches import Record
from sojourn.cluster.client import Cluster
from sojourn.cluster.doubt import sentence
from sojourn.cluster.ledger import Ledger
from sojourn.errors import StoreUnreachable, UsageError
from sojourn.model import Json, Plan, State, StepRecord

#: How long a migration that has ended stays in the table.
SHOWN_S = 60.0

#: Terminals with fewer columns of text get fewer columns of the table.
WIDE = 90

#: How long to wait before a Redis that was away is tried again.
AWAY_S = 1.0


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(watch)


def watch(
    migration: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="Only this one, to its end; also a batch.",
            autocompletion=completion.migrations,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each event.")
    ] = False,
) -> None:
    """Watch all migrations live, or one to its end; in a pipe, one line for each event.

    Ctrl-C ends the display only, and prints how to come back. Narrow terminals get fewer columns.

    Exit status: of one, that of `sojourn migrate`, of a batch that of `sojourn drain`, or 2 if
    there is no such one; 130 Ctrl-C: migrations go on; 1 if Redis does not answer.
    """
    cluster = Cluster()
    try:
        if migration is None:
            _watch_all(cluster, json=json)
        elif record := _batch_of(cluster, migration):
            raise typer.Exit(many.follow(cluster, record, cluster.ledger.bookmark(), json=json))
        else:
            raise typer.Exit(_watch_one(cluster, migration, json=json).exit_code)
    except KeyboardInterrupt:
        again = f"sojourn watch {migration}" if migration else "sojourn watch"
        complaints.print(f"Migrations go on. Come back with: {escape(again)}", soft_wrap=True)
        raise


@dataclass
class Row:
    """One migration as far as it is known; times are in seconds since the epoch."""

    id: str
    plan: Plan
    state: State
    asked: float
    steps: dict[tuple[str, str], StepRecord] = field(default_factory=dict)
    progress: Json = field(default_factory=dict)
    ended: float | None = None
    doubt: Json | None = None
    #: The doubt that was printed last: the same one is reported again and again.
    printed: Json | None = None

    @classmethod
    def of(cls, account: Account) -> Row:
        """Return the row of a migration as the ledger has it."""
        ends = [step.ended for step in account.steps if step.ended]
        ended = max(ends, default=account.created) if account.state.definite else None
        steps = {(step.name, step.host): step for step in account.steps}
        what = (account.id, account.plan, account.state, account.created, steps)
        return cls(*what, account.progress or {}, ended, account.doubt)

    def take(self, event: Event) -> None:
        """Apply one event of this migration."""
        if event.kind == "state":
            self.state = State(event.data["state"])
            self.ended = time.time() if self.state.definite else None
        elif event.kind == "progress":
            self.progress = event.data
        elif event.kind == "step":
            record = _record(event)
            self.steps[record.name, record.host] = record

    @property
    def step(self) -> StepRecord | None:
        """The step that began last, while the migration is under way."""
        return (
            None
            if self.ended
            else max(list(self.steps.values()), key=lambda step: step.started, default=None)
        )

    @property
    def done(self) -> str:
        """How much of the memory has crossed, or is still to come while the process runs."""
        total = self.progress.get("total")
        if not total or self.ended:
            return ""
        crossed = f"{units.size(min(self.progress['bytes'], total))} of {units.size(total)}"
        return window.to_come(self.progress) if self.window else crossed

    @property
    def window(self) -> str:
        """Where it runs and what it still needs; empty if that is nothing."""
        return window.where(self.plan, self.state, list(self.steps.values()), self.progress)

    @property
    def needs(self) -> str:
        """What its operator must know in one line: its window, or its doubt; else empty."""
        if self.doubt is None:
            return self.window
        return f"{sentence(self.doubt)} What you may do: sojourn show {self.id[:8]}"


class Board:
    """All migrations that are open, and those that have ended just now."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.rows: dict[str, Row] = {}

    def read(self) -> None:
        """Read the open migrations. Raises StoreUnreachable."""
        for migration in self.cluster.ledger.open_ones():
            self._row(migration)

    def take(self, event: Event) -> Row | None:
        """Apply an event and return its row; None if it is not of a migration that is known."""
        row = self._row(event.migration) if event.kind in live.KINDS else None
        if row:
            _take(self.cluster.ledger, row, event)
        return row

    def _row(self, migration: str) -> Row | None:
        if migration not in self.rows:
            account = self.cluster.ledger.account(migration)
            if account is None:
                return None
            self.rows[migration] = Row.of(account)
        return self.rows[migration]

    def shown(self) -> list[Row]:
        """Return the rows to show, the newest last, and forget those that ended a while ago.

        The display draws in a thread of its own, while events are applied: hence the copies.
        """
        late = time.time() - SHOWN_S
        gone = [row.id for row in list(self.rows.values()) if row.ended and row.ended < late]
        for migration in gone:
            self.rows.pop(migration, None)
        return sorted(self.rows.values(), key=lambda row: row.asked)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table in the width and height of the terminal."""
        rows, room = self.shown(), max(1, options.size.height - 4)
        # Where there is no room for all, those under way come before the queued and the ended.
        rows.sort(key=lambda row: (row.state is State.QUEUED, row.ended is not None))
        wide = options.max_width >= WIDE
        yield f"[bold]{_counted(rows)}[/]" + (
            "  [dim]Ctrl-C ends the display only[/]" if wide else ""
        )
        lines = [escape(f"{row.id[:8]} {row.needs}") for row in rows if row.needs]
        room = max(1, room - len(lines))
        yield _table(rows[:room], wide=wide)
        if len(rows) > room:
            yield f"[dim]and {len(rows) - room} more[/]"
        yield from lines


def _counted(rows: list[Row]) -> str:
    waiting = sum(row.state is State.QUEUED for row in rows)
    ended = sum(row.ended is not None for row in rows)
    return f"{len(rows) - waiting - ended} under way, {waiting} waiting, {ended} just ended"


def _table(rows: list[Row], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in (
        "id",
        "pid",
        "from",
        "to",
        "state",
        "step",
        *(["memory"] if wide else []),
        "elapsed",
    ):
        table.add_column(
            column,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column == "elapsed" else "left",
        )
    for row in rows:
        plan, step = row.plan, row.step.name if row.step else ""
        elapsed = units.span(max(0.0, (row.ended or time.time()) - row.asked) * 1000)
        cells = [
            row.id[:8],
            str(plan.pid),
            plan.source,
            plan.destination,
            output.coloured(row.state),
            step,
        ]
        table.add_row(*cells, *([row.done] if wide else []), elapsed)
    return table


def _batch_of(cluster: Cluster, prefix: str) -> Record | None:
    """Return the batch that is meant, None if that is a migration, or nothing."""
    if cluster.ledger.find(prefix):
        return None
    with contextlib.suppress(UsageError):
        return cluster.batches.find(prefix)
    return None


def _watch_all(cluster: Cluster, *, json: bool) -> None:
    """Follow all migrations until Ctrl-C."""
    # The bookmark comes first: what changes while the board is read comes again as an event.
    bookmark, board = cluster.ledger.bookmark(), Board(cluster)
    board.read()
    if console.is_terminal and not json:
        with Live(board, console=console, refresh_per_second=4):
            for event in _events(cluster, bookmark, board):  # ends by Ctrl-C only
                board.take(event)
    for row in board.shown():
        _print(row, Event(row.id, "state", {"state": row.state}), json=json)
    for event in _events(cluster, bookmark, board):
        if moved := board.take(event):
            _print(moved, event, json=json)
            if moved.ended:
                board.rows.pop(moved.id)


def _events(cluster: Cluster, bookmark: str, board: Board) -> Iterator[Event]:
    """Yield all events without an end. After Redis was away, what is open is read again."""
    while True:
        try:
            for event in cluster.ledger.follow(bookmark):
                if event:
                    yield event
        except StoreUnreachable:
            bookmark = _back(cluster, board)


def _back(cluster: Cluster, board: Board) -> str:
    """Wait until Redis is back, and return the bookmark of its stream."""
    while True:
        time.sleep(AWAY_S)
        try:
            # A Redis that lost its data has a new stream and other migrations.
            bookmark = cluster.ledger.bookmark()
            board.rows.clear()
            board.read()
        except StoreUnreachable:
            continue
        return bookmark


def _watch_one(cluster: Cluster, prefix: str, *, json: bool) -> State:
    """Follow one migration to its end, and return the final state."""
    bookmark = cluster.ledger.bookmark()
    account = cluster.find(prefix)
    row, state = Row.of(account), account.state
    if not state.definite:
        if json or not console.is_terminal:
            if row.doubt:
                _print(row, Event(row.id, "state", {"state": row.state}), json=json)
            for event in live.events(cluster.ledger, bookmark, account.id, in_doubt_ends=False):
                _take(cluster.ledger, row, event)
                _print(row, event, json=json)
            state = row.state
        else:
            state = live.watch(cluster.ledger, bookmark, account.id, account.plan, account)
    account = cluster.find(account.id)
    if json:
        output.as_json(account.to_json())
    else:
        console.print(timeline.draw(account))
        console.print(_standing(Row.of(account)), soft_wrap=True)
    return state


def _take(ledger: Ledger, row: Row, event: Event) -> None:
    """Apply an event to its row; the ledger has what there is to know of a doubt."""
    row.take(event)
    if event.kind == "state":
        row.doubt = live.doubt_after(ledger, event)


def _print(row: Row, event: Event, *, json: bool) -> None:
    if json:
        known = {"doubt": row.doubt} if event.kind == "state" else {}
        about = {"migration": row.id, "kind": event.kind, **row.plan.to_json()}
        output.as_json({**about, **event.data, **known})
        sys.stdout.flush()
        return
    if event.kind == "state":
        console.print(_standing(row), soft_wrap=True)
        if row.doubt and row.doubt != row.printed:
            console.print(doubt.draw(row.doubt), soft_wrap=True)
            row.printed = row.doubt
    elif sentence := live.sentence(event):
        console.print(f"{row.id[:8]} {escape(sentence)}", soft_wrap=True)


def _standing(row: Row) -> str:
    return escape(f"{row.id[:8]} {row.plan.describe()}: {row.state}")


def _record(event: Event) -> StepRecord:
    return StepRecord(**{key: value for key, value in event.data.items() if key != "role"})
