"""``sojourn watch``: all migrations that move, or one of them, live on a terminal; in a pipe, one line per event.

What moves comes by the ledger's stream of events, which Redis pushes to a blocking read. Migrations are read from the
ledger at the start and when an event names one that is not known here yet; nothing is asked again and again.
"""

from __future__ import annotations

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

from sojourn.cli import completion, live, output, timeline
from sojourn.cli.cluster import Cluster
from sojourn.cli.output import complaints, console, megabytes, milliseconds
from sojourn.errors import StoreUnreachable
from sojourn.ledger import Account, Event
from sojourn.model import Plan, State, StepRecord

#: How long one that has ended stays in the table.
SHOWN_S = 60.0

#: Terminals that are not so wide get fewer columns.
WIDE = 90

#: How long to wait for a Redis that is away, before it is asked again.
AWAY_S = 1.0


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(watch)


def watch(
    migration: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Only this one, to its end.", autocompletion=completion.migrations),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """Watch all migrations live, or one to its end; in a pipe, one line for each event.

    Ctrl-C ends the display only, and says how to come back. Terminals that are narrow get fewer columns.

    Exit status: of one, that of `sojourn migrate`, or 2 if there is none; 130 Ctrl-C: migrations go on; 1 if Redis does
    not answer.
    """
    cluster = Cluster()
    try:
        if migration is None:
            _watch_all(cluster, json=json)
        else:
            raise typer.Exit(_watch_one(cluster, migration, json=json).exit_code)
    except KeyboardInterrupt:
        again = f"sojourn watch {migration}" if migration else "sojourn watch"
        complaints.print(f"Migrations go on. Come back with: {escape(again)}", soft_wrap=True)
        raise


@dataclass
class Row:
    """What is known of one migration: times by the clock of this machine, in seconds since the epoch."""

    id: str
    plan: Plan
    state: State
    asked: float
    steps: dict[tuple[str, str], StepRecord] = field(default_factory=dict)
    bytes: float = 0
    total: float = 0
    ended: float | None = None

    @classmethod
    def of(cls, account: Account) -> Row:
        """Return a migration as the ledger has it."""
        ends = [step.ended for step in account.steps if step.ended]
        ended = max(ends, default=account.created) if account.state.definite else None
        steps = {(step.name, step.host): step for step in account.steps}
        return cls(account.id, account.plan, account.state, account.created, steps, ended=ended)

    def take(self, event: Event) -> None:
        """Take one event of this migration in."""
        if event.kind == "state":
            self.state = State(event.data["state"])
            self.ended = time.time() if self.state.definite else None
        elif event.kind == "progress":
            self.bytes, self.total = event.data["bytes"], event.data["total"]
        elif event.kind == "step":
            record = _record(event)
            self.steps[record.name, record.host] = record

    @property
    def step(self) -> StepRecord | None:
        """The step that began last, while the migration is under way."""
        return None if self.ended else max(list(self.steps.values()), key=lambda step: step.started, default=None)

    @property
    def done(self) -> str:
        """How much of the memory has crossed."""
        if not self.total or self.ended:
            return ""
        return f"{megabytes(min(self.bytes, self.total))} of {megabytes(self.total)}"


class Board:
    """All migrations that move, and those that have ended just now."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.rows: dict[str, Row] = {}

    def read(self) -> None:
        """Read what is open now. Raises StoreUnreachable."""
        for migration in self.cluster.ledger.open_ones():
            self._row(migration)

    def take(self, event: Event) -> Row | None:
        """Take an event in and return its migration; None if it is of something else, or of one that is forgotten."""
        row = self._row(event.migration) if event.kind in live.KINDS else None
        if row:
            row.take(event)
        return row

    def _row(self, migration: str) -> Row | None:
        if migration not in self.rows:
            account = self.cluster.ledger.account(migration)
            if account is None:
                return None
            self.rows[migration] = Row.of(account)
        return self.rows[migration]

    def shown(self) -> list[Row]:
        """Return what is worth a line now, the newest last; what ended a while ago is forgotten.

        The display asks from a thread of its own, while events are taken in: hence the copies.
        """
        late = time.time() - SHOWN_S
        gone = [row.id for row in list(self.rows.values()) if row.ended and row.ended < late]
        for migration in gone:
            self.rows.pop(migration, None)
        return sorted(self.rows.values(), key=lambda row: row.asked)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table in the width and height that there are."""
        rows, room = self.shown(), max(1, options.size.height - 4)
        # What moves is more interesting than what waits for its turn or has ended.
        rows.sort(key=lambda row: (row.state is State.QUEUED, row.ended is not None))
        wide = options.max_width >= WIDE
        yield f"[bold]{_counted(rows)}[/]" + ("  [dim]Ctrl-C ends the display only[/]" if wide else "")
        yield _table(rows[:room], wide=wide)
        if len(rows) > room:
            yield f"[dim]and {len(rows) - room} more[/]"


def _counted(rows: list[Row]) -> str:
    waiting = sum(row.state is State.QUEUED for row in rows)
    ended = sum(row.ended is not None for row in rows)
    return f"{len(rows) - waiting - ended} under way, {waiting} waiting, {ended} just ended"


def _table(rows: list[Row], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("id", "pid", "from", "to", "state", "step", *(["memory"] if wide else []), "elapsed"):
        table.add_column(column, no_wrap=True, overflow="ellipsis", justify="right" if column == "elapsed" else "left")
    for row in rows:
        plan, step = row.plan, row.step.name if row.step else ""
        elapsed = milliseconds(max(0.0, (row.ended or time.time()) - row.asked) * 1000)
        cells = [row.id[:8], str(plan.pid), plan.source, plan.destination, output.coloured(row.state), step]
        table.add_row(*cells, *([row.done] if wide else []), elapsed)
    return table


def _watch_all(cluster: Cluster, *, json: bool) -> None:
    """Follow all migrations until Ctrl-C."""
    bookmark, board = cluster.ledger.bookmark(), Board(cluster)
    board.read()
    if console.is_terminal and not json:
        with Live(board, console=console, refresh_per_second=4):
            for event in _events(cluster, bookmark, board):
                board.take(event)
    for row in board.shown():
        _tell(row, Event(row.id, "state", {"state": row.state}), json=json)
    for event in _events(cluster, bookmark, board):
        if moved := board.take(event):
            _tell(moved, event, json=json)
            if moved.ended:
                board.rows.pop(moved.id)


def _events(cluster: Cluster, bookmark: str, board: Board) -> Iterator[Event]:
    """Yield all events, for ever. Redis may go away and come back: what is open then is read again."""
    while True:
        try:
            for event in cluster.ledger.follow(bookmark):
                if event:
                    yield event
        except StoreUnreachable:
            bookmark = _back(cluster, board)


def _back(cluster: Cluster, board: Board) -> str:
    """Wait until Redis is back; return where its stream stands."""
    while True:
        time.sleep(AWAY_S)
        try:
            bookmark = cluster.ledger.bookmark()
            board.rows.clear()
            board.read()
        except StoreUnreachable:
            continue
        return bookmark


def _watch_one(cluster: Cluster, prefix: str, *, json: bool) -> State:
    """Follow one migration to its end; return how it ended."""
    bookmark = cluster.ledger.bookmark()
    account = cluster.find(prefix)
    row, state = Row.of(account), account.state
    if not state.definite:
        if json or not console.is_terminal:
            for event in live.events(cluster.ledger, bookmark, account.id, in_doubt_ends=False):
                row.take(event)
                _tell(row, event, json=json)
            state = row.state
        else:
            state = live.watch(cluster.ledger, bookmark, account.id, account.plan.describe(), account)
    account = cluster.find(account.id)
    if json:
        output.as_json(account.to_json())
    else:
        console.print(timeline.draw(account.steps))
        console.print(_standing(Row.of(account)), soft_wrap=True)
    return state


def _tell(row: Row, event: Event, *, json: bool) -> None:
    if json:
        output.as_json({"migration": row.id, "kind": event.kind, **row.plan.to_json(), **event.data})
        sys.stdout.flush()
        return
    if event.kind == "state":
        console.print(_standing(row), soft_wrap=True)
    elif sentence := live.sentence(event):
        console.print(f"{row.id[:8]} {escape(sentence)}", soft_wrap=True)


def _standing(row: Row) -> str:
    return escape(f"{row.id[:8]} {row.plan.describe()}: {row.state}")


def _record(event: Event) -> StepRecord:
    return StepRecord(**{key: value for key, value in event.data.items() if key != "role"})
