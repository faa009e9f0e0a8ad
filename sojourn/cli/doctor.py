"""``sojourn doctor``: whether this host is fit for migrations, and if not, what to do about it."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sojourn import units
from sojourn.cli import output
from sojourn.cli.output import console
from sojourn.doctor import Finding, Level, examine

COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILURE: "red"}

EPILOG = "Exit status: 0 nothing failed, though there may be warnings; 1 something failed."


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EPILOG)(doctor)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
) -> None:
    """Examine this host, its settings, its Redis and its peers, and advise; nothing is touched."""
    findings = list(examine())
    failed = any(finding.level is Level.FAILURE for finding in findings)
    if json:
        output.as_json({"fit": not failed, "findings": [finding.to_json() for finding in findings]})
    else:
        _print(findings)
    raise typer.Exit(1 if failed else 0)


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        advice = f"\n[dim]{escape(finding.advice)}[/]" if finding.advice else ""
        level = f"[{COLOURS[finding.level]}]{finding.level}[/]"
        table.add_row(level, finding.check, escape(finding.sentence) + advice)
    console.print(table)
    counts = Counter(finding.level for finding in findings)
    warnings = units.counted(counts[Level.WARNING], "warning")
    failures = units.counted(counts[Level.FAILURE], "failure")
    console.print(f"{counts[Level.OK]} ok, {warnings}, {failures}")
