"""``sojourn migrate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.markup import escape

from sojourn.cli import completion, live, many, output, timeline
from sojourn.cli.cluster import Cluster
from sojourn.cli.options import All, Cgroup, Command, FileLocks, Mode, ShellJob, TcpEstablished, Unit, User, chosen
from sojourn.cli.output import console, megabytes, milliseconds
from sojourn.errors import MigrationError, Refused, UsageError
from sojourn.images import size_for
from sojourn.ledger import Account
from sojourn.model import Json, Plan, State, where_it_runs
from sojourn.placement import Item, place
from sojourn.planfile import AUTO
from sojourn.settings import load

EPILOG = (
    "Exit status: 0 the process runs on the destination; 2 usage; 10 refused by preflight; 11 rolled back, the "
    "process runs on the source; 12 in doubt; 14 host unreachable; 16 finished on the destination, clean-up "
    "pending; 1 anything else."
)


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EPILOG)(migrate)


def migrate(
    pid: Annotated[
        int | None, typer.Argument(help="The process, by its PID on the source; its children move along.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="HOST", help="The host where it runs.", autocompletion=completion.hosts),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="HOST",
            help="The host where it shall run; auto: the best one.",
            autocompletion=completion.destinations,
        ),
    ] = None,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Migrate all that this file says, CSV or JSON.")
    ] = None,
    command: Command = None,
    user: User = None,
    cgroup: Cgroup = None,
    unit: Unit = None,
    everything: All = False,
    mode: Mode = "stop-and-copy",
    tcp_established: TcpEstablished = False,
    shell_job: ShellJob = False,
    file_locks: FileLocks = False,
    max_freeze: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Roll back when the freeze lasts longer; else as `max_freeze_s` says."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say where it would go and why, and touch nothing.")
    ] = False,
    detach: Annotated[bool, typer.Option(help="Print the id and return at once.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the finished migration as JSON.")] = False,
) -> None:
    """Move a running process, with its children and its memory, to another host; or many, by what they are.

    If the hosts have no room for it now, it waits in the queue: `sojourn queue` says why. With --plan, move all that a
    plan file says, as one batch; with --command, --user, --cgroup, --unit or --all (several must hold for the same
    process), all that they mean. The exit status of a batch is that of `sojourn drain`.
    """
    selector = {"command": command, "user": user, "cgroup": cgroup, "unit": unit, "all": everything or None}
    which = {name: value for name, value in selector.items() if value is not None}
    if plan_file:
        if which or (pid, source, destination) != (None, None, None):
            raise UsageError("A plan file says which processes, from where and to where; say nothing of it beside.")
        many.migrate_plan(plan_file, dry_run=dry_run, detach=detach, json=json)
        return
    if which:
        options = chosen(tcp_established=tcp_established, shell_job=shell_job, file_locks=file_locks)
        how = {"mode": mode, "max_freeze_s": max_freeze, **options}
        asked = {"pid": pid, **which, "source": source, "destination": destination, **how}
        many.migrate_lines([asked], dry_run=dry_run, detach=detach, json=json)
        return
    pid, source, destination = _said(pid, source, destination)
    limit_s = load().max_freeze_s if max_freeze is None else max_freeze
    plan = Plan(pid, source, destination, mode, tcp_established, shell_job, file_locks, limit_s)
    _migrate_one(plan, dry_run=dry_run, detach=detach, json=json)


def _migrate_one(plan: Plan, *, dry_run: bool, detach: bool, json: bool) -> None:
    cluster = Cluster()
    if dry_run or plan.destination == AUTO:
        plan = _placed(cluster, plan, say=dry_run, json=json)
    if dry_run:
        return
    cluster.registry.check(plan)
    from workflows.migrate import migrate as call  # noqa: PLC0415  (Celery is slow to import: bad input is told at once)
    from workflows.survey import check_workers  # noqa: PLC0415

    check_workers(plan)
    bookmark, migration = cluster.ledger.bookmark(), str(uuid4())
    cluster.ledger.open(migration, plan)  # so that it can be looked at and aborted while its message is queued
    call.apply_async(kwargs=plan.to_json(), task_id=migration)
    if detach:
        output.as_json({"id": migration}) if json else console.print(migration)
        return
    state = live.silently(cluster.ledger, bookmark, migration) if json else _watch(cluster, bookmark, migration, plan)
    _report(cluster.find(migration), json=json)
    raise typer.Exit(state.exit_code)


def _said(pid: int | None, source: str | None, destination: str | None) -> tuple[int, str, str]:
    """Return what a single migration needs. Raises UsageError in the parser's words, since not all need them."""
    if pid is None:
        raise UsageError(
            "Missing argument 'PID'.", "Or say which ones: --command, --user, --cgroup, --unit, --all, --plan FILE."
        )
    if source is None or destination is None:
        raise UsageError(f"Missing option '{'--to' if source else '--from'}'.", "See --help.")
    return pid, source, destination


def _placed(cluster: Cluster, plan: Plan, *, say: bool, json: bool) -> Plan:
    """Return the plan with the best destination in the place of ``auto``. Raises Refused if none can take the tree."""
    cluster.registry.check_host(plan.source)
    from workflows.check import tree_bytes_of  # noqa: PLC0415

    named = None if plan.destination == AUTO else plan.destination
    item = Item(f"process {plan.pid}", plan.source, size_for(tree_bytes_of(plan)), named)
    (placement,) = place([item], cluster.registry.hosts(), cluster.batches.promised())
    if placement.destination is None:
        raise Refused(placement.why, "`sojourn hosts` shows what each of them has.", "NOWHERE")
    if say:
        told = {"pid": plan.pid, "source": plan.source, "destination": placement.destination, "why": placement.why}
        output.as_json(told) if json else console.print(placement.why, soft_wrap=True)
    return replace(plan, destination=placement.destination)


def _watch(cluster: Cluster, bookmark: str, migration: str, plan: Plan) -> State:
    try:
        return live.watch(cluster.ledger, bookmark, migration, plan.describe())
    except KeyboardInterrupt:
        console.print(f"The migration goes on. See how it ends: sojourn show {migration}")
        raise


def _report(account: Account, *, json: bool) -> None:
    if json:
        output.as_json(account.result)
        return
    console.print(timeline.draw(account.steps))
    result = account.result or {}
    if account.state in {State.COMPLETED, State.CLEANUP_PENDING}:
        console.print(_arrived(account, result), soft_wrap=True)
        return
    failure = account.failure
    message = failure.message if failure else "Nobody recorded why."
    where = where_it_runs(account.state, account.owner)
    output.fail(MigrationError(f"{account.state}: {message} {where}", failure.hint if failure else ""), as_json=False)
    console.print(f"[dim]{escape(account.id)}[/]")


def _arrived(account: Account, result: Json) -> str:
    moved = f"{megabytes(result['pages_bytes'])} of memory and {megabytes(result['images_bytes'])} of images"
    times = f"Downtime {milliseconds(result['downtime_ms'])} of {milliseconds(result['total_ms'])} in all"
    return f"[bold green]✓[/] {account.plan.describe()}: {account.state}. {times}; {moved}.  [dim]{account.id}[/]"
