"""Many migrations: ``sojourn migrate --plan``, ``drain``, ``batch``, ``batches`` and ``queue``."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Table

from sojourn import units
from sojourn.cli import completion, listing, output, overview, selection
from sojourn.cli.listing import AsJson, Cell, Column, Output, Row
from sojourn.cli.options import (
    Bandwidth,
    FileLocks,
    MaxFreeze,
    Mode,
    Skip,
    StopUnit,
    TcpEstablished,
    Timeout,
    chosen,
    operator,
    skipped,
)
from sojourn.cli.output import console
from sojourn.cluster.batches import Batches, BatchState, Record, states_of, who
from sojourn.cluster.client import Cluster
from sojourn.cluster.planfile import (
    SKIPPED,
    from_json,
    lines_of_drain,
    looks_like_json,
    read,
    times_of,
)
from sojourn.cluster.queue import Limits, Waiting
from sojourn.errors import SojournError, UsageError
from sojourn.model import Json, State, Untyped
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

Wait = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="What no host can take now waits so long for one that can, instead of staying.",
    ),
]

#: The exit code where a batch's time was over, as of timeout(1).
TIMED_OUT = 124

#: How long a worker may take to resume or abort a batch.
ACT_S = 60

#: How many migrations that have not ended are listed.
SHOWN = 50

#: How often the record is read while events of other batches keep arriving.
LOOK_S = 1.0


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
    app.command()(drain)
    app.command()(batch)
    app.command()(batches)
    app.command()(queue)


def migrate_plan(
    file: Path, *, dry_run: bool, detach: bool, json: bool, timeout_s: float | None = None
) -> None:
    """Start the migrations of a plan file, all or none, and follow them to their end."""
    text = _text(file)
    lines = read(text, as_json=looks_like_json(file.name, text))
    asked = [line.to_json() for line in lines]
    migrate_lines(asked, dry_run=dry_run, detach=detach, json=json, timeout_s=timeout_s)


def migrate_lines(
    asked: list[Json],
    *,
    dry_run: bool,
    detach: bool,
    json: bool,
    timeout_s: float | None = None,
) -> None:
    """Start the lines of a plan, all or none, and follow them to their end; or only show them."""
    from_json(asked)  # reports malformed lines before the slow import of Celery
    cluster = Cluster()
    from sojourn.client import migrate_many
    from workflows.batch import PLAN

    times_of(until=timeout_s)
    how = chosen(timeout_s=timeout_s)
    if dry_run:
        _preview(cluster, asked, PLAN, json=json)
        return
    _start(
        cluster,
        lambda batch: migrate_many.apply_async((asked, operator()), how, task_id=batch),
        detach=detach,
        json=json,
        timeout_s=timeout_s,
    )


def drain(
    host: Annotated[
        str,
        typer.Argument(metavar="HOST", help="The host to empty.", autocompletion=completion.hosts),
    ],
    mode: Mode = None,
    tcp_established: TcpEstablished = False,
    shell_job: Annotated[
        bool, typer.Option(help="Trees may belong to a shell's session or terminal.")
    ] = False,
    file_locks: FileLocks = False,
    stop_unit: StopUnit = False,
    max_freeze: MaxFreeze = None,
    bandwidth: Bandwidth = None,
    skip: Skip = None,
    timeout: Timeout = None,
    wait: Wait = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check what would go where, and touch nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the id of the batch and return at once.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Cordon a host and move away all that can be moved, under the limits of all hosts.

    What stays is listed with the reason.

    Exit status: 0 the host is empty, but for what was skipped; 2 usage; 14 host unreachable; 1
    something stays, or the drain was aborted; 124 its time was over; 130 Ctrl-C: the drain goes on.
    With --dry-run 0 or 1, as far as the checks show.
    """
    cluster = Cluster()
    cluster.registry.check_host(host)
    from sojourn.client import drain as start
    from workflows.batch import DRAIN

    options = chosen(
        mode=mode,
        tcp_established=tcp_established,
        shell_job=shell_job,
        file_locks=file_locks,
        stop_unit=stop_unit,
        max_freeze_s=max_freeze,
        bandwidth_mbit=bandwidth,
    )
    stay = skipped(skip)
    lines = lines_of_drain(host, stay, **options)
    times_of(until=timeout, waits=wait)
    if dry_run:
        _preview(cluster, lines, DRAIN, json=json)
        return
    # Only what was given: a worker of an older version knows none of them.
    more = chosen(timeout_s=timeout, wait_s=wait) | ({"skip": stay} if stay else {})
    asked = {"host": host, "by": operator(), **more, **options}
    _start(
        cluster,
        lambda batch: start.apply_async(kwargs=asked, task_id=batch),
        detach=detach,
        json=json,
        timeout_s=timeout,
    )


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
    _show(cluster, cluster.batches.find(record.id), json=json)


def batches(
    count: Annotated[
        int,
        typer.Option(
            "--last", metavar="N", min=1, max=10_000, help="How many at most, newest first."
        ),
    ] = 20,
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


def _start(
    cluster: Cluster,
    send: Untyped,
    *,
    detach: bool,
    json: bool,
    timeout_s: float | None = None,
) -> None:
    """Start a batch, and follow it unless it shall be detached."""
    until = math.inf if timeout_s is None else time.monotonic() + timeout_s
    # The bookmark is taken before the batch is sent, so that none of its events is missed.
    name, bookmark = str(uuid4()), cluster.ledger.bookmark()
    answer = send(name)
    if detach:
        output.as_json({"batch": name}) if json else console.print(name)
        return
    if not json:
        console.print(f"[dim]batch {name}[/]")
    record = _planned(cluster, name, bookmark, answer)
    raise typer.Exit(follow(cluster, record, bookmark, until, json=json))


def follow(
    cluster: Cluster, record: Record, bookmark: str, until: float = math.inf, *, json: bool
) -> int:
    """Show a batch to its end, or until an instant of the monotonic clock; return the exit code."""
    show = overview.lines if json else overview.watch
    try:
        record = show(cluster, record.id, bookmark, until)
    except KeyboardInterrupt:
        output.warn(f"The batch goes on. Show it with: sojourn batch {record.id[:8]}")
        raise
    if not record.state.final:
        record = _end_of_its_time(cluster, record)
    _show(cluster, record, json=json)
    if record.timed_out:
        return _timed_out(cluster, record)
    return 0 if _is_clean(cluster, record) else 1


def _end_of_its_time(cluster: Cluster, record: Record) -> Record:
    """Let nothing more of a batch begin, since its time is over; return its record then."""
    from workflows.batch import abort_batch

    how = {"roll_back": False, "timed_out": True}
    abort_batch.apply_async((record.id,), how).get(timeout=ACT_S)
    return cluster.batches.record(record.id) or record


def _timed_out(cluster: Cluster, record: Record) -> int:
    """Report that the time of a batch was over, and what goes on; return the exit code."""
    left = record.total - len(cluster.batches.ends(record.id))
    goes_on = f"{left} under way go on to their end" if left else "nothing of it is under way"
    then = "Then go on" if left else "Go on"
    output.warn(
        f"Its time is over: nothing more of it begins, and {goes_on}. "
        f"{then} with: sojourn batch {record.id[:8]} resume"
    )
    return TIMED_OUT


def _planned(cluster: Cluster, batch: str, bookmark: str, answer: Untyped) -> Record:
    """Wait until the batch was planned as a whole. Raises the reason why it was refused."""
    looked = 0.0
    for event in cluster.ledger.follow(bookmark):
        of_another = event is not None and event.migration != batch
        if of_another and time.monotonic() < looked + LOOK_S:
            continue
        looked = time.monotonic()
        record = cluster.batches.record(batch)
        if record and record.state is BatchState.REFUSED:
            failure = record.failure or {}
            error = SojournError(failure.get("message", "It was refused."), failure.get("hint", ""))
            error.code, error.exit_code = (
                failure.get("code", "USAGE"),
                14 if "UNREACHABLE" in str(failure) else 2,
            )
            raise error
        if record and record.state is not BatchState.PLANNING:
            return record
        # A call that was never planned leaves no record, only an error.
        if answer.failed():
            raise answer.result
    raise AssertionError  # the stream of events has no end


def _is_clean(cluster: Cluster, record: Record) -> bool:
    arrived = all(State(end["state"]).arrived for end in cluster.batches.ends(record.id).values())
    against = [stay for stay in record.stays if stay.get("code") != SKIPPED]
    return record.state is BatchState.FINISHED and arrived and not against


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


def _show(cluster: Cluster, record: Record, *, json: bool) -> None:
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


def _preview(cluster: Cluster, asked: list[Json], kind: str, *, json: bool) -> None:
    """Show what would go where and why, by the real checks, and what would stay."""
    from workflows.preview import preview

    rows = preview(asked, kind, cluster)
    against = [row for row in rows if row["destination"] is None and row["code"] != SKIPPED]
    if json:
        output.as_json(rows)
    else:
        _draw(rows)
    raise typer.Exit(1 if against else 0)


def _draw(rows: list[Json]) -> None:
    table = _table("process", "from", "to", "why")
    for row in rows:
        where = row["destination"] or "stays"
        why = f"{row['code']}: {row['why']}" if row["code"] else row["why"]
        hint = f"\n[dim]{escape(row['hint'])}[/]" if row["hint"] else ""
        name = who(row["pid"], row["command"])
        table.add_row(escape(name), row["source"], where, escape(why) + hint)
    console.print(table)
    moving = sum(row["destination"] is not None for row in rows)
    console.print(f"{moving} would move, {len(rows) - moving} would stay; nothing was touched.")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The plan {file} cannot be read: {error}.") from None
