"""The live display of one migration: its steps as they come, bytes, elapsed time. In a pipe, one line per event."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sojourn.cli.output import console, megabytes, milliseconds
from sojourn.errors import StoreUnreachable
from sojourn.ledger import Account, Event, Ledger
from sojourn.model import State, StepRecord

#: The kinds of events that are of a migration.
KINDS = ("state", "step", "progress", "failure")


class Display:
    """What is known of the migration so far, and how it looks."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.time()
        self.state = State.QUEUED
        self.steps: dict[tuple[str, str], StepRecord] = {}
        self.bytes, self.total = 0.0, 0.0

    def begin_with(self, account: Account) -> None:
        """Take in what the ledger knows of a migration that began earlier."""
        self.started, self.state = account.created, account.state
        self.steps = {(step.name, step.host): step for step in account.steps}

    def take(self, event: Event) -> None:
        """Take one event of this migration in."""
        if event.kind == "state":
            self.state = State(event.data["state"])
        elif event.kind == "progress":
            self.bytes, self.total = event.data["bytes"], event.data["total"]
        elif event.kind == "step":
            record = StepRecord(**{key: value for key, value in event.data.items() if key != "role"})
            self.steps[record.name, record.host] = record

    def __rich__(self) -> RenderableType:
        """Return the whole display."""
        rows = Table(box=None, pad_edge=False, show_header=False)
        for step in sorted(self.steps.values(), key=lambda step: step.started):
            rows.add_row(_mark(step), step.name, f"[dim]{step.host}[/]", _took(step), escape(step.outcome))
        return Group(self._head(), rows)

    def _head(self) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        elapsed = milliseconds((time.time() - self.started) * 1000)
        cells: list[RenderableType] = [Text(self.title, style="bold"), str(self.state), elapsed]
        if self.total:
            done = min(self.bytes, self.total)
            cells += [
                ProgressBar(total=self.total, completed=done, width=24),
                f"{megabytes(done)} of {megabytes(self.total)}",
            ]
        head.add_row(*cells)
        return head


def watch(ledger: Ledger, bookmark: str, migration: str, title: str, account: Account | None = None) -> State:
    """Show the migration until it has ended; return how. Redis may go away and come back meanwhile.

    ``account`` is what is known of one that began before the ``bookmark``.
    """
    display = Display(title)
    if account:
        display.begin_with(account)
    if console.is_terminal:
        with Live(display, console=console, refresh_per_second=12, transient=True):
            for event in events(ledger, bookmark, migration, in_doubt_ends=account is None):
                display.take(event)
        return display.state
    for event in events(ledger, bookmark, migration):
        display.take(event)
        _print_line(event)
    return display.state


def silently(ledger: Ledger, bookmark: str, migration: str) -> State:
    """Wait until the migration has ended; return how."""
    state = State.QUEUED
    for event in events(ledger, bookmark, migration):
        state = State(event.data["state"]) if event.kind == "state" else state
    return state


def events(ledger: Ledger, bookmark: str, migration: str, *, in_doubt_ends: bool = True) -> Iterator[Event]:
    """Yield the events of one migration up to its end. If the stream was lost, the ledger's own word ends it."""
    while True:
        try:
            for event in ledger.follow(bookmark):
                if event and event.migration == migration:
                    yield event
                    if event.kind == "state" and _is_end(State(event.data["state"]), in_doubt_ends=in_doubt_ends):
                        return
        except StoreUnreachable:
            time.sleep(1)
            bookmark = "0-0"


def _is_end(state: State, *, in_doubt_ends: bool) -> bool:
    return state.final if in_doubt_ends else state.definite


def sentence(event: Event) -> str:
    """Return an event as one line for people; empty for those that people need not be told one by one."""
    if event.kind == "step" and event.data["ended"]:
        took = milliseconds((event.data["ended"] - event.data["started"]) * 1000)
        return f"{event.data['host']}: {event.data['name']} ({took}): {event.data['outcome']}"
    return ""


def _print_line(event: Event) -> None:
    if line := sentence(event):
        console.print(escape(line), soft_wrap=True)


def _mark(step: StepRecord) -> RenderableType:
    if step.ended is None:
        return Spinner("dots")
    return Text("✗", style="red") if step.failed else Text("✓", style="green")


def _took(step: StepRecord) -> str:
    return milliseconds(step.elapsed_ms) if step.ended else milliseconds((time.time() - step.started) * 1000)
