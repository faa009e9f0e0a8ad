"""Who asked for what: ``sojourn audit``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sojourn.cli import completion, output
from sojourn.cli.history import instant
from sojourn.cli.output import console
from sojourn.cluster.audit import REFUSED, Entry
from sojourn.cluster.client import Cluster
from sojourn.errors import SojournError, UsageError


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(audit)


def audit(
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN", help="Only what was asked since: 90m, 12h, 3d, or 2026-01-31T12:00."
        ),
    ] = None,
    user: Annotated[str | None, typer.Option(metavar="USER", help="Only what this user asked.")] = (
        None
    ),
    here: Annotated[
        bool, typer.Option("--here", help="What this host has recorded itself; as root.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="What that host has recorded itself; its worker is asked.",
            autocompletion=completion.hosts,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show who asked for what: migrations, batches, drains, aborts, resolutions, cordons.

    Each host keeps what it was asked in a file of its own, to which nobody who writes to Redis can
    add. Without --here or --host the copy in Redis is shown, of all hosts: there entries can be
    missing, though none can be forged. The user is what the caller claims, inside a signed message.

    Exit status: 0; 2 usage; 14 the host does not answer; 1 if Redis does not answer, or the file
    cannot be read.
    """
    earliest = instant(since, time.time()) if since else 0.0
    found = [
        entry
        for entry in _entries(earliest, here=here, host=host)
        if user is None or entry.user == user
    ]
    if json:
        output.as_json([entry.to_json() for entry in found])
    elif found:
        console.print(_table(found))


def _entries(since: float, *, here: bool, host: str | None) -> Sequence[Entry]:
    if here and host:
        raise UsageError("Choose one: --here or --host.")
    cluster = Cluster()
    if host:
        cluster.registry.check_host(host)
        from workflows.audit import audit_of

        return audit_of(host, since)
    if not here:
        return cluster.audit.copies(since)
    try:
        return list(cluster.audit.own(since))
    except OSError as error:
        raise SojournError(f"The audit trail cannot be read: {error}.", "Are you root?") from None


def _table(entries: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("time", "user", "action", "about", "outcome", "recorded by"):
        table.add_column(column)
    for entry in entries:
        colour = "red" if entry.outcome == REFUSED else "green"
        why = f": {entry.why}" if entry.why else ""
        about = " ".join(filter(None, (entry.subject, entry.what)))
        table.add_row(
            time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(entry.at)),
            escape(str(entry.caller)),
            escape(entry.action),
            escape(about),
            f"[{colour}]{escape(entry.outcome)}[/]{escape(why)}",
            escape(entry.host),
        )
    return table
