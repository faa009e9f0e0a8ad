"""Many migrations: ``sojourn migrate --plan``, ``drain``, ``batch``, ``batches`` and ``queue``."""

from __future__ import annotations

import getpass
import socket
import time
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Table

from sojourn.batch import BatchState, Record, states_of
from sojourn.cli import completion, output, overview
from sojourn.cli.cluster import Cluster
from sojourn.cli.options import FileLocks, TcpEstablished, chosen
from sojourn.cli.output import console
from sojourn.errors import SojournError, UsageError
from sojourn.model import Json, State
from sojourn.planfile import from_json, looks_like_json, read
from sojourn.queue import Limits
from sojourn.settings import load

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: How long an operator's word on a batch may take to be acted on.
ACT_S = 60


#: While others keep the stream of events busy, it is looked so often whether the call itself has failed.
LOOK_S = 1.0


class Word(StrEnum):
    """What can be asked of a batch."""

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


def migrate_plan(file: Path, *, dry_run: bool, detach: bool, json: bool) -> None:
    """Start the migrations of a plan file, all or none, and follow them to their end."""
    text = _text(file)
    lines = read(text, as_json=looks_like_json(file.name, text))
    migrate_lines([line.to_json() for line in lines], dry_run=dry_run, detach=detach, json=json)


def migrate_lines(asked: list[Json], *, dry_run: bool, detach: bool, json: bool) -> None:
    """Start what the lines of a plan say, all or none, and follow it to its end; or only show it."""
    from_json(asked)  # bad input is told at once: what follows is slow to import
    cluster = Cluster()
    from workflows.batch import PLAN, migrate_many  # noqa: PLC0415

    if dry_run:
        _preview(cluster, asked, PLAN, json=json)
        return
    _start(cluster, lambda batch: migrate_many.apply_async((asked, _who()), task_id=batch), detach=detach, json=json)


def drain(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host to empty.", autocompletion=completion.hosts)],
    tcp_established: TcpEstablished = False,
    shell_job: Annotated[bool, typer.Option(help="Trees may belong to a shell's session or terminal.")] = False,
    file_locks: FileLocks = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go where, and touch nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id of the batch and return at once.")] = False,
    json: AsJson = False,
) -> None:
    """Cordon a host and move everything away that can be moved, under the limits of all hosts; say what stays and why.

    Exit status: 0 the host is empty; 2 usage; 14 host unreachable; 1 something stays, or the drain was aborted; 130
    Ctrl-C: the drain goes on.
    """
    cluster = Cluster()
    cluster.registry.check_host(host)
    from workflows.batch import DRAIN, lines_of_drain  # noqa: PLC0415
    from workflows.batch import drain as start  # noqa: PLC0415

    options = chosen(tcp_established=tcp_established, shell_job=shell_job, file_locks=file_locks)
    if dry_run:
        _preview(cluster, lines_of_drain(host, **options), DRAIN, json=json)
        return
    asked = {"host": host, "by": _who(), **options}
    _start(cluster, lambda batch: start.apply_async(kwargs=asked, task_id=batch), detach=detach, json=json)


def batch(
    batch: Annotated[str, typer.Argument(help="The batch's id, or how it begins.", autocompletion=completion.batches)],
    word: Annotated[Word, typer.Argument(help="What to do.")] = Word.SHOW,
    finish: Annotated[bool, typer.Option("--finish", help="Abort: what is under way goes on to its end.")] = False,
    roll_back: Annotated[bool, typer.Option("--roll-back", help="Abort: what is under way is aborted too.")] = False,
    json: AsJson = False,
) -> None:
    """Show a batch, pause it, resume it, or abort it; one that was aborted can be resumed too.

    A batch that is resumed after an abort tries again what did not arrive.

    Exit status: 0; 2 no such batch, or nothing that can be done to it now.
    """
    cluster = Cluster()
    record = cluster.batches.find(batch)
    if word is Word.PAUSE:
        _pause(cluster, record)
    elif word is Word.RESUME:
        _resume(record)
    elif word is Word.ABORT:
        _abort(record, finish=finish, roll_back=roll_back)
    _show(cluster, cluster.batches.find(record.id), json=json)


def batches(
    count: Annotated[int, typer.Option("--last", min=1, max=10_000, help="How many, newest first.")] = 20,
    json: AsJson = False,
) -> None:
    """List batches: plans and drains. Exit status: 0; 1 if Redis does not answer."""
    cluster = Cluster()
    found = cluster.batches.latest(count)
    if json:
        output.as_json([record.to_json(cluster.batches.ends(record.id)) for record in found])
        return
    table = _table("id", "kind", "state", "ended", "by", "asked")
    for record in found:
        asked = time.strftime("%H:%M:%S", time.localtime(record.created))
        ended = f"{record.ended} of {record.total}"
        table.add_row(record.id[:8], record.kind, record.state, ended, escape(record.by), asked)
    console.print(table)


def queue(
    migration: Annotated[
        str | None,
        typer.Argument(help="A migration that waits: its id, or how it begins.", autocompletion=completion.migrations),
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Give it this priority; a higher one goes first.")] = None,
    count: Annotated[int, typer.Option("--first", min=1, max=10_000, help="How many of those that wait.")] = 100,
    json: AsJson = False,
) -> None:
    """List the migrations that wait, in their order, and why; or give one another priority in its batch.

    Exit status: 0; 2 no such migration, or it does not wait.
    """
    cluster = Cluster()
    if (migration is None) != (priority is None):
        raise UsageError("To change a priority, say which migration and which priority.")
    if migration is not None and priority is not None:
        account = cluster.find(migration)
        if not cluster.queue.reprioritise(account.id, priority):
            raise UsageError(f"Migration {account.id} does not wait.", "`sojourn queue` shows those that do.")
    limits = Limits.of(cluster.registry.hosts(), load().max_migrations)
    waiting = cluster.queue.waiting(limits, count)
    if json:
        output.as_json([vars(each) for each in waiting])
        return
    table = _table("", "id", "batch", "priority", "from", "to", "tries", "why it waits")
    for each in waiting:
        numbers = (str(each.position), each.id[:8], each.batch[:8], str(each.priority))
        table.add_row(*numbers, each.source, each.destination, str(each.tries), escape(each.why))
    console.print(table)
    counts = cluster.queue.counts()
    console.print(f"{counts.waiting + counts.later} wait, {counts.taken} are under way.")


def _start(cluster: Cluster, send: Any, *, detach: bool, json: bool) -> None:  # noqa: ANN401
    """Ask for a batch, and follow it unless that was not wanted."""
    name, bookmark = str(uuid4()), cluster.ledger.bookmark()
    answer = send(name)
    if detach:
        output.as_json({"batch": name}) if json else console.print(name)
        return
    if not json:
        console.print(f"[dim]batch {name}[/]")
    record = _planned(cluster, name, bookmark, answer)
    try:
        record = (overview.lines if json else overview.watch)(cluster, record.id, bookmark)
    except KeyboardInterrupt:
        output.warn(f"It goes on. See how it ends: sojourn batch {name[:8]}")
        raise
    _show(cluster, record, json=json)
    raise typer.Exit(0 if _is_clean(cluster, record) else 1)


def _planned(cluster: Cluster, batch: str, bookmark: str, answer: Any) -> Record:  # noqa: ANN401
    """Wait until the batch was looked at as a whole. Raises what was said against it."""
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
            error.code, error.exit_code = failure.get("code", "USAGE"), 14 if "UNREACHABLE" in str(failure) else 2
            raise error
        if record and record.state is not BatchState.PLANNING:
            return record
        if answer.failed():
            raise answer.result
    raise AssertionError  # it is followed for ever


def _is_clean(cluster: Cluster, record: Record) -> bool:
    arrived = all(State(end["state"]).arrived for end in cluster.batches.ends(record.id).values())
    return record.state is BatchState.FINISHED and arrived and not record.stays


def _pause(cluster: Cluster, record: Record) -> None:
    if not cluster.batches.turn(record.id, BatchState.PAUSED, BatchState.RUNNING):
        raise UsageError(f"The batch is {record.state}; it can not be paused.")
    cluster.queue.pause(record.id)


def _resume(record: Record) -> None:
    if record.state in {BatchState.RUNNING, BatchState.PLANNING, BatchState.ABORTING, BatchState.REFUSED}:
        raise UsageError(f"The batch is {record.state}; it can not be resumed.")
    from workflows.batch import resume_batch  # noqa: PLC0415

    resume_batch.delay(record.id).get(timeout=ACT_S)


def _abort(record: Record, *, finish: bool, roll_back: bool) -> None:
    if finish == roll_back:
        raise UsageError("Say what becomes of those under way: --finish or --roll-back.")
    if record.state not in {BatchState.RUNNING, BatchState.PAUSED, BatchState.ABORTING}:
        raise UsageError(f"The batch is {record.state}; it can not be aborted.")
    from workflows.batch import abort_batch  # noqa: PLC0415

    abort_batch.apply_async((record.id,), {"roll_back": roll_back}).get(timeout=ACT_S)


def _show(cluster: Cluster, record: Record, *, json: bool) -> None:
    ends = cluster.batches.ends(record.id)
    if json:
        output.as_json(record.to_json(ends))
        return
    counts = ", ".join(f"{count} {state}" for state, count in states_of(ends, record.total).items()) or "nothing"
    console.print(f"[bold]{record.kind}[/] {record.state}: {counts}  [dim]{record.id}[/]", soft_wrap=True)
    for number, end in sorted(ends.items()):
        if not State(end["state"]).arrived:
            console.print(overview.describe(number, end), soft_wrap=True)
    for host, count in Counter(host for end in ends.values() for host in end["avoided"]).items():
        console.print(f"{count} of them failed on {host} and were tried elsewhere.")
    for stay in record.stays:
        console.print(escape(f"stays: {_of(stay)}: {stay['why']}"), soft_wrap=True)


def _of(stay: Json) -> str:
    return f"pid {stay['pid']} on {stay['source']} ({stay['command'][:60]})"


def _preview(cluster: Cluster, asked: list[Json], kind: str, *, json: bool) -> None:
    """Say where everything would go and why, and what would stay."""
    from workflows.batch import preview  # noqa: PLC0415

    rows = preview(asked, kind, cluster.registry)
    if json:
        output.as_json(rows)
        return
    table = _table("pid", "command", "from", "to", "why")
    for row in rows:
        where = row["destination"] or "stays"
        table.add_row(str(row["pid"]), escape(row["command"][:40]), row["source"], where, escape(row["why"]))
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The plan {file} can not be read: {error}.") from None


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
