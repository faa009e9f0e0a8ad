"""``sojourn doctor``: whether this host is fit, and if not, what is to be done."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sojourn.cli import output
from sojourn.cli.output import console
from sojourn.doctor import Finding, Level, examine

COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}

EPILOG = "Exit status: 0 nothing failed, though there may be warnings; 1 something failed."


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EPILOG)(doctor)


def doctor(json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False) -> None:
    """Look at this host, its settings, its Redis and its peers, and say what is to be done; nothing is touched."""
    found = list(examine())
    failed = [each for each in found if each.level is Level.FAILURE]
    if json:
        output.as_json({"fit": not failed, "findings": [each.to_json() for each in found]})
    else:
        _tell(found)
    raise typer.Exit(1 if failed else 0)


def _tell(found: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in found:
        advice = f"\n[dim]{escape(each.advice)}[/]" if each.advice else ""
        table.add_row(f"[{COLOURS[each.level]}]{each.level}[/]", each.check, escape(each.sentence) + advice)
    console.print(table)
    counts = {level: sum(each.level is level for each in found) for level in Level}
    console.print(f"{counts[Level.OK]} well, {counts[Level.WARNING]} warnings, {counts[Level.FAILURE]} failures")
