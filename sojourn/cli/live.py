"""The live display of one migration: steps, bytes, elapsed time. In a pipe, one line per event."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sojourn import units, window
from sojourn.cli import doubt
from sojourn.cli.output import console
from sojourn.cluster.account import Account, Event
from sojourn.cluster.ledger import Ledger
from sojourn.errors import ProcessGone, StoreUnreachable
from sojourn.model import Json, Plan, State, StepRecord

#: The kinds of events that concern a migration; the others concern batches.
KINDS = ("state", "step", "progress", "failure")


class Display:
    """What is known of the migration so far, drawn for a terminal."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.started = time.time()
        self.state = State.QUEUED
        self.steps: dict[tuple[str, str], StepRecord] = {}
        #: The last event of progress.
        self.progress: Json = {}
        #: What there is to know while it is in doubt, by the ledger.
        self.doubt: Json | None = None

    def begin_with(self, account: Account) -> None:
        """Start from what the ledger knows of a migration that began earlier."""
        self.started, self.state = account.created, account.state
        self.steps = {(step.name, step.host): step for step in account.steps}
        self.progress = account.progress or {}
        self.doubt = account.doubt

    def take(self, event: Event) -> None:
        """Apply one event of this migration."""
        if event.kind == "state":
            self.state = State(event.data["state"])
        elif event.kind == "progress":
            self.progress = event.data
        elif event.kind == "step":
            record = StepRecord(
                **{key: value for key, value in event.data.items() if key != "role"}
            )
            self.steps[record.name, record.host] = record

    def __rich__(self) -> RenderableType:
        """Return the whole display."""
        rows = Table(box=None, pad_edge=False, show_header=False)
        for step in sorted(self.steps.values(), key=lambda step: step.started):
            rows.add_row(
                _mark(step), step.name, f"[dim]{step.host}[/]", _took(step), escape(step.outcome)
            )
        plain = window.where(self.plan, self.state, list(self.steps.values()), self.progress)
        help_ = [Text.from_markup(doubt.draw(self.doubt))] if self.doubt else []
        return Group(self._head(), *([Text(plain)] if plain else []), rows, *help_)

    def _head(self) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        elapsed = units.span((time.time() - self.started) * 1000)
        title = Text(self.plan.describe(), style="bold")
        how = Text(self.plan.how, style="dim")
        cells: list[RenderableType] = [title, how, str(self.state), elapsed]
        if total := self.progress.get("total"):
            done = min(self.progress["bytes"], total)
            cells += [
                ProgressBar(total=total, completed=done, width=24),
                f"{units.size(done)} of {units.size(total)}",
            ]
        head.add_row(*cells)
        return head


def watch(
    ledger: Ledger, bookmark: str, migration: str, plan: Plan, account: Account | None = None
) -> State:
    """Show the migration until it has ended, and return the final state.

    Redis may go away and come back meanwhile. ``account`` is what the ledger knows of a migration
    that began before the ``bookmark``.
    """
    display = Display(plan)
    if account:
        display.begin_with(account)
    if console.is_terminal:
        # Transient: the timeline takes the place of the display when it is over.
        with Live(display, console=console, refresh_per_second=12, transient=True):
            for event in events(ledger, bookmark, migration, in_doubt_ends=account is None):
                display.take(event)
                if event.kind == "state":
                    display.doubt = doubt_after(ledger, event)
        return display.state
    mistyped = False
    for event in events(ledger, bookmark, migration):
        display.take(event)
        if not mistyped:
            _print_line(event)
        mistyped = mistyped or _found_no_process(event)
    return display.state


def doubt_after(ledger: Ledger, event: Event) -> Json | None:
    """Return what there is to know of a migration that a new state puts in doubt, else None."""
    if event.data["state"] != State.IN_DOUBT:
        return None
    with contextlib.suppress(StoreUnreachable):
        account = ledger.account(event.migration)
        return account.doubt if account else None
    return None


def silently(ledger: Ledger, bookmark: str, migration: str) -> State:
    """Wait until the migration has ended, and return the final state."""
    state = State.QUEUED
    for event in events(ledger, bookmark, migration):
        state = State(event.data["state"]) if event.kind == "state" else state
    return state


def events(
    ledger: Ledger, bookmark: str, migration: str, *, in_doubt_ends: bool = True
) -> Iterator[Event]:
    """Yield the events of one migration up to its end.

    After Redis was away, the stream is read again from its beginning, so that no event is missed;
    those that repeat leave the display as it was.
    """
    while True:
        try:
            for event in ledger.follow(bookmark):
                if event and event.migration == migration:
                    yield event
                    if event.kind == "state" and _is_end(
                        State(event.data["state"]), in_doubt_ends=in_doubt_ends
                    ):
                        return
        except StoreUnreachable:
            # A Redis that lost its data has a new stream, in which the old bookmark means nothing.
            time.sleep(1)
            bookmark = "0-0"


def _is_end(state: State, *, in_doubt_ends: bool) -> bool:
    # Who started a migration gets the prompt back when it is in doubt; who watches waits for more.
    return state.final if in_doubt_ends else state.definite


def sentence(event: Event) -> str:
    """Return an event as one line for people; empty for events too many to print one by one."""
    if event.kind == "step" and event.data["ended"]:
        took = units.span((event.data["ended"] - event.data["started"]) * 1000)
        return f"{event.data['host']}: {event.data['name']} ({took}): {event.data['outcome']}"
    return ""


def _found_no_process(event: Event) -> bool:
    """Whether there was nothing to migrate: then what both hosts undo is of no interest."""
    where = (event.data.get("code"), event.data.get("step"))
    return event.kind == "failure" and where == (ProcessGone.code, "examine")


def _print_line(event: Event) -> None:
    if line := sentence(event):
        console.print(escape(line), soft_wrap=True)


def _mark(step: StepRecord) -> RenderableType:
    if step.ended is None:
        return Spinner("dots")
    return Text("✗", style="red") if step.failed else Text("✓", style="green")


def _took(step: StepRecord) -> str:
    return (
        units.span(step.elapsed_ms)
        if step.ended
        else units.span((time.time() - step.started) * 1000)
    )
