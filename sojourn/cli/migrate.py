"""``sojourn migrate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.markup import escape

from sojourn import units, window
from sojourn.cli import completion, doubt, gone, live, many, output, timeline
from sojourn.cli.options import (
    All,
    Bandwidth,
    Cgroup,
    Command,
    FileLocks,
    MaxFreeze,
    Mode,
    ShellJob,
    Skip,
    StopUnit,
    TcpEstablished,
    Timeout,
    Unit,
    User,
    chosen,
    limited,
    skipped,
)
from sojourn.cli.output import console
from sojourn.cluster.account import Account
from sojourn.cluster.client import Cluster
from sojourn.cluster.placement import Item, place
from sojourn.cluster.planfile import AUTO
from sojourn.cluster.records import complete
from sojourn.errors import MigrationError, ProcessGone, Refused, UsageError
from sojourn.model import Failure, Json, Plan, State, where_it_runs
from sojourn.transfer.image_directory import size_for

EPILOG = (
    "Exit status: 0 the process runs on the destination; 2 usage; 10 refused by preflight; 11 "
    "rolled back, the process runs on the source; 12 in doubt; 14 host unreachable; 16 finished on "
    "the destination, clean-up pending; 1 anything else."
)


Pid = Annotated[
    int | None,
    typer.Argument(help="The process, by its PID on the source; its children move along."),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="HOST", help="The host where it runs.", autocompletion=completion.hosts
    ),
]
Destination = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="HOST",
        help="The host where it shall run; auto: the best one.",
        autocompletion=completion.destinations,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="Migrate all processes of this plan, CSV or JSON."),
]
Closure = Annotated[
    bool,
    typer.Option(
        help="Instead of the process, move the one whose tree has all that it shares with others."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show where it would go and why, and touch nothing.")
]
Detach = Annotated[bool, typer.Option(help="Print the id and return at once.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the finished migration as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EPILOG)(migrate)


def migrate(
    pid: Pid = None,
    source: Source = None,
    destination: Destination = None,
    plan_file: PlanFile = None,
    command: Command = None,
    user: User = None,
    cgroup: Cgroup = None,
    unit: Unit = None,
    everything: All = False,
    mode: Mode = None,
    tcp_established: TcpEstablished = False,
    shell_job: ShellJob = False,
    file_locks: FileLocks = False,
    stop_unit: StopUnit = False,
    max_freeze: MaxFreeze = None,
    bandwidth: Bandwidth = None,
    closure: Closure = False,
    skip: Skip = None,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    detach: Detach = False,
    json: AsJson = False,
) -> None:
    """Move a running process, with its children and its memory, to another host; or many.

    If the hosts have no room for it now, it waits in the queue: `sojourn queue` shows why. With
    --plan, move all processes of a plan file as one batch; with --command, --user, --cgroup, --unit
    or --all, all that match (every one of several selectors). The exit status of a batch is that of
    `sojourn drain`.
    """
    given = {"command": command, "user": user, "cgroup": cgroup, "unit": unit}
    selectors: Json = {name: value for name, value in given.items() if value is not None}
    selectors |= {"all": True} if everything else {}
    options = chosen(
        mode=mode,
        tcp_established=tcp_established,
        shell_job=shell_job,
        file_locks=file_locks,
        stop_unit=stop_unit,
        max_freeze_s=max_freeze,
        bandwidth_mbit=bandwidth,
    )
    if closure and (plan_file or selectors):
        raise UsageError("--closure is of one process, named by its PID.", "See --help.")
    if skip and not selectors:
        raise UsageError("--skip goes with a selector, such as --all.", "See --help.")
    if timeout is not None and not (plan_file or selectors):
        raise UsageError("--timeout is of a batch: --plan, or a selector.", "See --help.")
    if plan_file:
        if selectors or options or (pid, source, destination) != (None, None, None):
            raise UsageError(
                "A plan file names processes, hosts and their options: give none beside --plan."
            )
        how = {"dry_run": dry_run, "detach": detach, "json": json}
        many.migrate_plan(plan_file, timeout_s=timeout, **how)
    elif selectors:
        line = {"pid": pid, **selectors, "source": source, "destination": destination}
        line |= options | ({"skip": skipped(skip)} if skip else {})
        how = {"dry_run": dry_run, "detach": detach, "json": json}
        many.migrate_lines([line], timeout_s=timeout, **how)
    else:
        required = _required(pid, source, destination)
        plan = Plan(*required, **limited(**options))
        try:
            plan = _closed(plan, json=json) if closure else plan
            _migrate_one(plan, dry_run=dry_run, detach=detach, json=json)
        except Refused as refused:
            # Asked for the size of the tree, the source has found that there is none.
            raise gone.refusal(Cluster(), plan) if _is_gone(refused) else refused from None


def _migrate_one(plan: Plan, *, dry_run: bool, detach: bool, json: bool) -> None:
    cluster = Cluster()
    if dry_run or plan.destination == AUTO:
        plan = _placed(cluster, plan, show=dry_run, json=json)
    if dry_run:
        return
    # The registry knows what hosts announced last; whether their workers answer is asked of them.
    cluster.registry.check(plan)
    from sojourn.client import migrate as call
    from workflows.survey import check_workers

    check_workers(plan)
    bookmark, migration = cluster.ledger.bookmark(), str(uuid4())
    call.apply_async(kwargs=plan.to_json(), task_id=migration)
    if detach:
        output.as_json({"id": migration}) if json else console.print(migration)
        return
    state = (
        live.silently(cluster.ledger, bookmark, migration)
        if json
        else _watch(cluster, bookmark, migration, plan)
    )
    _report(cluster.find(migration), json=json)
    raise typer.Exit(state.exit_code)


def _required(pid: int | None, source: str | None, destination: str | None) -> tuple[int, str, str]:
    """Return what a single migration needs. Raises UsageError in the words of the parser.

    The parser itself cannot require them, since a plan or a selector takes their place.
    """
    if pid is None:
        raise UsageError(
            "Missing argument 'PID'.",
            "Or select processes: --command, --user, --cgroup, --unit, --all, --plan FILE.",
        )
    if source is None or destination is None:
        raise UsageError(f"Missing option '{'--to' if source else '--from'}'.", "See --help.")
    return pid, source, destination


def _closed(plan: Plan, *, json: bool) -> Plan:
    """Return the plan for the process whose tree has all that the requested one shares."""
    Cluster().registry.check_host(plan.source)
    from workflows.check import closed

    found = closed(plan)
    if found.pid != plan.pid and not json:
        sentence = f"Process {plan.pid} moves with all that it shares, as the tree of {found.pid}."
        console.print(sentence, soft_wrap=True)
    return found


def _placed(cluster: Cluster, plan: Plan, *, show: bool, json: bool) -> Plan:
    """Return the plan with the best host in place of ``auto``. Raises Refused if there is none."""
    cluster.registry.check_host(plan.source)
    from workflows.check import tree_bytes_of

    # The choice counts the memory that other batches have been promised but do not use yet.
    named = None if plan.destination == AUTO else plan.destination
    item = Item(f"process {plan.pid}", plan.source, size_for(tree_bytes_of(plan)), named)
    (placement,) = place([item], cluster.registry.hosts(), cluster.batches.promised())
    if placement.destination is None:
        raise Refused(placement.why, "`sojourn hosts` shows the capacity of each.", "NOWHERE")
    if show:
        choice = {
            "pid": plan.pid,
            "source": plan.source,
            "destination": placement.destination,
            "why": placement.why,
        }
        output.as_json(choice) if json else console.print(placement.why, soft_wrap=True)
    return replace(plan, destination=placement.destination)


def _watch(cluster: Cluster, bookmark: str, migration: str, plan: Plan) -> State:
    try:
        return live.watch(cluster.ledger, bookmark, migration, plan)
    except KeyboardInterrupt:
        console.print(f"The migration goes on. Show it with: sojourn show {migration}")
        raise


def _report(account: Account, *, json: bool) -> None:
    if json:
        # In doubt it has no result yet, but all that is known of it.
        output.as_json(account.result or account.to_json())
        return
    failure = account.failure
    if failure and _is_gone(failure) and account.state is State.REFUSED:
        # Of a PID that was mistyped nobody wants to see the steps.
        output.fail(gone.refusal(Cluster(), account.plan), as_json=False)
        return
    console.print(timeline.draw(account))
    result = complete(account.result or {})
    if account.state in {State.COMPLETED, State.CLEANUP_PENDING}:
        console.print(_arrived(account, result), soft_wrap=True)
        return
    message = failure.message if failure else "No reason was recorded."
    where = where_it_runs(account.state, account.owner)
    output.fail(
        MigrationError(f"{account.state}: {message} {where}", failure.hint if failure else ""),
        as_json=False,
    )
    if account.doubt:
        console.print(doubt.draw(account.doubt), soft_wrap=True)
    console.print(f"[dim]{escape(account.id)}[/]")


def _is_gone(failure: Failure | Refused) -> bool:
    return failure.code == ProcessGone.code


def _arrived(account: Account, result: Json) -> str:
    memory, images = units.size(result["pages_bytes"]), units.size(result["images_bytes"])
    downtime, total = units.span(result["downtime_ms"]), units.span(result["total_ms"])
    return (
        f"[bold green]✓[/] {account.plan.describe()}: {account.state}. "
        f"Downtime {downtime} of {total} in all; {memory} of memory and {images} of images."
        f"{_needed(account, result)}  [dim]{account.id}[/]"
    )


def _needed(account: Account, result: Json) -> str:
    """Return for how long both hosts were needed after the process ran; empty if they were not."""
    if not account.plan.post_copy or result.get("settled_ms") is None:
        return ""
    more = units.span(result["settled_ms"])
    return f" Both hosts were needed for {more} more; {window.waited(result)}."
