"""Who asked for what: ``sojourn audit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from sojourn import units
from sojourn.cli import completion, listing, selection
from sojourn.cli.listing import AsJson, Cell, Column, Output, Row
from sojourn.cluster.audit import REFUSED, Entry
from sojourn.cluster.client import Cluster
from sojourn.errors import SojournError, UsageError

COLUMNS = (
    Column("time"),
    Column("user"),
    Column("action"),
    Column("about", wraps=True),
    Column("outcome"),
    Column("why", wraps=True),
    Column("recorded by", from_width=100),
)


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(audit)


def audit(
    since: selection.Since = None,
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
    form: Output = None,
    json: AsJson = False,
) -> None:
    """Show who asked for what: migrations, batches, drains, aborts, resolutions, cordons.

    Each host keeps what it was asked in a file of its own, to which nobody who writes to Redis can
    add. Without --here or --host the copy in Redis is shown, of all hosts: there entries can be
    missing, though none can be forged. The user is what the caller claims, inside a signed message.

    Exit status: 0; 2 usage; 14 the host does not answer; 1 if Redis does not answer, or the file
    cannot be read.
    """
    found = [
        entry
        for entry in _entries(selection.instant(since), here=here, host=host)
        if user is None or entry.user == user
    ]
    listing.show(COLUMNS, [_row(entry) for entry in found], listing.form_of(form, json=json))


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


def _row(entry: Entry) -> Row:
    about = " ".join(filter(None, (entry.subject, entry.what)))
    refused = entry.outcome == REFUSED
    cells: tuple[Cell | str, ...] = (
        Cell(units.when(entry.at), plain=units.moment(entry.at)),
        str(entry.caller),
        entry.action,
        about,
        Cell(entry.outcome, "red" if refused else "green"),
        entry.why,
        entry.host,
    )
    return Row(entry.id, cells, entry.to_json)
