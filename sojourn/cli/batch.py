"""Batches looked at and acted upon: ``sojourn batch``, ``batches`` and ``queue``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import Annotated

import typer
from rich.markup import escape

from sojourn import units
from sojourn.cli import completion, listing, output, overview, selection
from sojourn.cli.listing import AsJson, Cell, Column, Output, Row
from sojourn.cli.output import console
from sojourn.cluster.batches import Batches, BatchState, Record, states_of, who
from sojourn.cluster.client import Cluster
from sojourn.cluster.queue import Limits, Waiting
from sojourn.errors import UsageError
from sojourn.model import Json, State
from sojourn.settings import load

BATCHES = (
    Column("id"),
    Column("kind"),
    Column("state"),
    Column("ended", from_width=60),
    Column("by", from_width=80),
    Column("asked", from_width=60),
)

QUEUE = (
    Column("", right=True),
    Column("id"),
    Column("batch", from_width=80),
    Column("priority", from_width=80, right=True),
    Column("from"),
    Column("to"),
    Column("tries", from_width=80, right=True),
    Column("why it waits", wraps=True),
)

#: How long a worker may take to resume or abort a batch.
ACT_S = 60

#: How many migrations that have not ended are listed.
SHOWN = 50


class Kind(StrEnum):
    """What a batch came from."""

    PLAN = "plan"
    DRAIN = "drain"


class Action(StrEnum):
    """What an operator can do with a batch."""

    SHOW = "show"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(batch)
    app.command()(batches)
    app.command()(queue)


def batch(
    batch: Annotated[
        str,
        typer.Argument(help="The batch's id, or how it begins.", autocompletion=completion.batches),
    ],
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.SHOW,
    finish: Annotated[
        bool, typer.Option("--finish", help="Abort: what is under way goes on to its end.")
    ] = False,
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="Abort: what is under way is aborted too.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Show a batch, pause it, resume it, or abort it; one that was aborted can be resumed too.

    A batch that is resumed after an abort tries again what did not arrive.

    Exit status: 0; 2 no such batch, or its state does not allow that.
    """
    cluster = Cluster()
    record = cluster.batches.find(batch)
    if action is Action.PAUSE:
        _pause(cluster, record)
    elif action is Action.RESUME:
        _resume(record)
    elif action is Action.ABORT:
        _abort(record, finish=finish, roll_back=roll_back)
    show(cluster, cluster.batches.find(record.id), json=json)


def batches(
    count: selection.Last = 20,
    since: selection.Since = None,
    states: Annotated[
        list[BatchState] | None,
        typer.Option("--state", help="Only those in this state; can be repeated."),
    ] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only plans, or only drains.")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Only those of which a process is, or was, on this host or goes there.",
            autocompletion=completion.hosts,
        ),
    ] = None,
    form: Output = None,
    json: AsJson = False,
) -> None:
    """List batches: plans and drains; all of them, or those that are asked for.

    Exit status: 0; 2 usage; 1 if Redis does not answer.
    """
    known = Cluster().batches
    found = (
        record
        for record in known.newest(selection.instant(since))
        if record.state in (states or BatchState)
        and kind in {None, record.kind}
        and (host is None or host in known.hosts(record))
    )
    rows = [_batch(known, record) for record in islice(found, count)]
    listing.show(BATCHES, rows, listing.form_of(form, json=json))


def _batch(known: Batches, record: Record) -> Row:
    cells = (
        Cell(record.id[:8], plain=record.id),
        record.kind,
        record.state,
        f"{record.ended} of {record.total}",
        record.by,
        Cell(units.when(record.created), plain=units.timestamp(record.created)),
    )
    return Row(record.id, cells, lambda: record.to_json(known.ends(record.id)))


def queue(
    migration: Annotated[
        str | None,
        typer.Argument(
            help="A queued migration: its id, or how it begins.",
            autocompletion=completion.migrations,
        ),
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="Give it this priority; a higher one goes first.")
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            "--first", metavar="N", min=1, max=10_000, help="How many of those that are queued."
        ),
    ] = 100,
    form: Output = None,
    json: AsJson = False,
) -> None:
    """List queued migrations in their order and why they wait; or change one's priority.

    A priority counts within a batch.

    Exit status: 0; 2 no such migration, or it is not queued.
    """
    cluster = Cluster()
    if (migration is None) != (priority is None):
        raise UsageError("To change a priority, name the migration and the priority.")
    if migration is not None and priority is not None:
        account = cluster.find(migration)
        if not cluster.queue.reprioritise(account.id, priority):
            raise UsageError(
                f"Migration {account.id} is not queued.", "`sojourn queue` shows those that are."
            )
        from workflows.audit import note_of

        note_of("change the priority of", account.id, f"to {priority}")
    limits = Limits.of(cluster.registry.hosts(), load().max_migrations)
    rows = [_waiting(entry) for entry in cluster.queue.waiting(limits, count)]
    form = listing.form_of(form, json=json)
    listing.show(QUEUE, rows, form)
    if form is None and sys.stdout.isatty():
        counts = cluster.queue.counts()
        console.print(f"{counts.waiting + counts.later} wait, {counts.taken} are under way.")


def _waiting(entry: Waiting) -> Row:
    cells = (
        str(entry.position),
        Cell(entry.id[:8], plain=entry.id),
        Cell(entry.batch[:8], plain=entry.batch),
        str(entry.priority),
        entry.source,
        entry.destination,
        str(entry.tries),
        entry.why,
    )
    return Row(entry.id, cells, lambda: dict(vars(entry)))


def _pause(cluster: Cluster, record: Record) -> None:
    # One atomic write decides, since the batch may end or be aborted at the same moment.
    if not cluster.batches.turn(record.id, BatchState.PAUSED, BatchState.RUNNING):
        raise UsageError(f"The batch is {record.state}; it cannot be paused.")
    cluster.queue.pause(record.id)
    from workflows.audit import note_of

    note_of("pause batch", record.id)


def _resume(record: Record) -> None:
    if record.state in {
        BatchState.RUNNING,
        BatchState.PLANNING,
        BatchState.ABORTING,
        BatchState.REFUSED,
    }:
        raise UsageError(f"The batch is {record.state}; it cannot be resumed.")
    from workflows.batch import resume_batch

    resume_batch.delay(record.id).get(timeout=ACT_S)


def _abort(record: Record, *, finish: bool, roll_back: bool) -> None:
    if finish == roll_back:
        raise UsageError("Choose what becomes of those under way: --finish or --roll-back.")
    if record.state not in {BatchState.RUNNING, BatchState.PAUSED, BatchState.ABORTING}:
        raise UsageError(f"The batch is {record.state}; it cannot be aborted.")
    from workflows.batch import abort_batch

    abort_batch.apply_async((record.id,), {"roll_back": roll_back}).get(timeout=ACT_S)


def show(cluster: Cluster, record: Record, *, json: bool) -> None:
    """Print a batch: what moved where, what is left of it, and what stays."""
    ends = cluster.batches.ends(record.id)
    left = [] if record.state.final else _left(cluster, record, ends)
    if json:
        output.as_json({**record.to_json(ends), "open": left})
        return
    counts = (
        ", ".join(f"{count} {state}" for state, count in states_of(ends, record.total).items())
        or "nothing"
    )
    console.print(
        f"[bold]{record.kind}[/] {record.state}: {counts}  [dim]{record.id}[/]", soft_wrap=True
    )
    for line in [*_of_ends(ends), *_of_left(left), *_of_stays(record)]:
        console.print(escape(line), soft_wrap=True)


def _of_ends(ends: Mapping[int, Json]) -> Iterator[str]:
    """Yield what moved where, and what did not, and why."""
    for host, moved in _moved(ends).items():
        yield f"moved to {host}: {', '.join(moved)}"
    for number, end in sorted(ends.items()):
        if not State(end["state"]).arrived:
            yield overview.describe(number, end)
    for host, count in Counter(host for end in ends.values() for host in end["avoided"]).items():
        yield f"{count} of them failed on {host} and were tried elsewhere."


def _of_left(left: list[Json]) -> Iterator[str]:
    for row in left[:SHOWN]:
        route = f"{who(row['pid'], row['command'])} from {row['source']}"
        to = f" to {row['destination']}" if row["destination"] else ""
        yield f"line {row['line']}: {route}{to}: {row['state']}"
    if len(left) > SHOWN:
        yield f"and {len(left) - SHOWN} more"


def _of_stays(record: Record) -> Iterator[str]:
    for stay in record.stays:
        yield f"stays: {_of(stay)}: {stay['why']}"


def _left(cluster: Cluster, record: Record, ends: Mapping[int, Json]) -> list[Json]:
    """Return the parts that have no end yet: what they are, and in which state their try is."""
    parts = [part for part in cluster.batches.parts(record.id) if part.number not in ends]
    accounts = cluster.ledger.accounts([part.migration for part in parts])
    states = {account.id: account.state for account in accounts}
    return [
        {
            "line": part.number,
            "id": part.migration,
            "state": states.get(part.migration, State.QUEUED),
            "pid": part.plan["pid"],
            "command": part.command,
            "source": part.plan["source"],
            "destination": part.plan["destination"] if part.placed else None,
            "tries": part.tries,
        }
        for part in parts
    ]


def _moved(ends: Mapping[int, Json]) -> dict[str, list[str]]:
    """Return what has arrived, by the host where it runs now, in the order of the lines."""
    moved: dict[str, list[str]] = {}
    for _, end in sorted(ends.items()):
        if State(end["state"]).arrived:
            name = who(end["pid"], str(end.get("command", "")))
            moved.setdefault(end["destination"], []).append(name)
    return dict(sorted(moved.items()))


def _of(stay: Json) -> str:
    return f"{who(stay['pid'], str(stay['command']))} on {stay['source']}"
