"""Many migrations: ``sojourn migrate --plan`` and ``sojourn drain``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Table

from sojourn.cli import batch as batches
from sojourn.cli import completion, output, overview
from sojourn.cli.listing import AsJson
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
from sojourn.cluster.batches import BatchState, Record, who
from sojourn.cluster.client import Cluster
from sojourn.cluster.planfile import (
    SKIPPED,
    from_json,
    lines_of_drain,
    looks_like_json,
    read,
    times_of,
)
from sojourn.errors import SojournError, UsageError
from sojourn.model import Json, State, Untyped

Wait = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="What no host can take now waits so long for one that can, instead of staying.",
    ),
]

#: The exit code where a batch's time was over, as of timeout(1).
TIMED_OUT = 124

#: How often the record is read while events of other batches keep arriving.
LOOK_S = 1.0


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(drain)


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
    batches.show(cluster, record, json=json)
    if record.timed_out:
        return _timed_out(cluster, record)
    return 0 if _is_clean(cluster, record) else 1


def _end_of_its_time(cluster: Cluster, record: Record) -> Record:
    """Let nothing more of a batch begin, since its time is over; return its record then."""
    from workflows.batch import abort_batch

    how = {"roll_back": False, "timed_out": True}
    abort_batch.apply_async((record.id,), how).get(timeout=batches.ACT_S)
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
