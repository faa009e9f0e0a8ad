"""How the command line speaks: tables and colours for people, JSON for machines, sentences for failures."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape

from sojourn.errors import SojournError
from sojourn.model import State

console = Console(highlight=False)
complaints = Console(stderr=True, highlight=False)


def as_json(data: Any) -> None:  # noqa: ANN401  (anything that JSON can say)
    """Print data for machines: one line."""
    sys.stdout.write(json.dumps(data) + "\n")


def fail(error: SojournError, *, as_json: bool) -> None:
    """Say what went wrong and what to do about it, for people on stderr, for machines on stdout."""
    if as_json:
        sys.stdout.write(
            json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}) + "\n"
        )
        return
    complaints.print(f"[bold red]error:[/] {_escaped(error.message)}", soft_wrap=True)
    if error.hint:
        complaints.print(f"[dim]hint:[/]  {_escaped(error.hint)}", soft_wrap=True)


def warn(sentence: str) -> None:
    """Say something on stderr that people should know."""
    complaints.print(escape(sentence), style="yellow", soft_wrap=True)


def megabytes(size: float | None) -> str:
    """Return a size for people."""
    if size is None:
        return "-"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


def milliseconds(elapsed_ms: float | None) -> str:
    """Return a time for people."""
    if elapsed_ms is None:
        return "-"
    return f"{elapsed_ms / 1000:.2f} s" if elapsed_ms >= 10_000 else f"{elapsed_ms:.0f} ms"


def coloured(state: State) -> str:
    """Return a state in the colour that says whether it is well."""
    colour = {0: "green", 1: "yellow"}.get(state.exit_code, "red")
    return f"[{colour if state.final else 'cyan'}]{state}[/]"


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
