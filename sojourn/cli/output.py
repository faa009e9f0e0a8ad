"""The output of commands: tables and colours for people, JSON for machines, and failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from sojourn.environment import variable
from sojourn.errors import SojournError
from sojourn.model import State, Untyped
from sojourn.text import printable

#: A row has fewer columns of text: in a pipe, where there is no width, none is broken or cut off.
LONGEST = 10_000


class SafeConsole(Console):
    """A terminal that shows no control character of a text, only rich's own."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of what is shown, with printable texts."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def _width() -> int | None:
    """Return the width of the output; None for that of the terminal, or of ``COLUMNS``."""
    return None if sys.stdout.isatty() or variable("COLUMNS") else LONGEST


console = SafeConsole(highlight=False, width=_width())
#: Errors and warnings go to stderr, so that what stdout carries can be piped on.
complaints = SafeConsole(stderr=True, highlight=False)


def as_json(data: Untyped) -> None:
    """Print data for machines: one line."""
    # Not by rich, which wraps lines at the width of the terminal.
    sys.stdout.write(json.dumps(data) + "\n")


def fail(error: SojournError, *, as_json: bool) -> None:
    """Print what went wrong and what to do about it: for people on stderr, as JSON on stdout."""
    if as_json:
        sys.stdout.write(
            json.dumps(
                {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
            )
            + "\n"
        )
        return
    complaints.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    if error.hint:
        complaints.print(f"[dim]hint:[/]  {escape(error.hint)}", soft_wrap=True)


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    complaints.print(escape(sentence), style="yellow", soft_wrap=True)


def coloured(state: State) -> str:
    """Return a state in the colour that shows whether all is well."""
    colour = {0: "green", 1: "yellow"}.get(state.exit_code, "red")
    return f"[{colour if state.final else 'cyan'}]{state}[/]"
