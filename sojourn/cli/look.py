"""Looking without touching: ``sojourn list``, ``show``, ``hosts`` and ``ps``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sojourn.cli import completion, output, timeline
from sojourn.cli.cluster import Cluster
from sojourn.cli.options import Id
from sojourn.cli.output import coloured, console, megabytes, milliseconds
from sojourn.ledger import Account
from sojourn.model import Json, Plan, Role, dead, where_it_runs
from sojourn.registry import HostInfo

#: Terminals that are not so wide get fewer columns.
WIDE = 80

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("list")(list_migrations)
    app.command()(show)
    app.command()(hosts)
    app.command()(ps)


def list_migrations(
    count: Annotated[int, typer.Option("--last", min=1, max=10_000, help="How many, newest first.")] = 20,
    json: AsJson = False,
) -> None:
    """List migrations: running, queued and finished. Exit status: 0; 1 if Redis does not answer."""
    accounts = Cluster().ledger.latest(count)
    if json:
        output.as_json([account.to_json() for account in accounts])
        return
    console.print(_listed(accounts, wide=console.width >= WIDE))


def _listed(accounts: list[Account], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("id", "pid", "from", "to", "state", *(["runs on", "downtime", "asked"] if wide else ["downtime"])):
        table.add_column(column, no_wrap=column != "state")
    for account in accounts:
        downtime = milliseconds((account.result or {}).get("downtime_ms"))
        asked = time.strftime("%H:%M:%S", time.localtime(account.created))
        plan = account.plan
        end = [account.owner or "?", downtime, asked] if wide else [downtime]
        table.add_row(account.id[:8], str(plan.pid), plan.source, plan.destination, coloured(account.state), *end)
    return table


def show(
    migration: Id,
    json: AsJson = False,
) -> None:
    """Show one migration: where it stands, its timeline, why it failed. Exit status: 0; 2 if there is none."""
    account = Cluster().find(migration)
    if json:
        output.as_json(account.to_json())
        return
    console.print(f"[bold]{account.plan.describe()}[/]  {coloured(account.state)}  [dim]{account.id}[/]")
    console.print(where_it_runs(account.state, account.owner))
    if account.resolved:
        console.print(escape(_word(account.resolved, account.plan)), soft_wrap=True)
    console.print(timeline.draw(account.steps))
    if account.failure:
        failure = account.failure
        console.print(
            f"[bold red]{failure.code}[/] [red]{escape(failure.message)}[/]\n[dim]{escape(failure.hint)}[/]\n"
            f"[dim]The logs of both hosts:[/] sojourn logs {account.id[:8]}",
            soft_wrap=True,
        )


def hosts(json: AsJson = False) -> None:
    """List hosts and what each of them has. Exit status: 0; 1 if Redis does not answer."""
    known = Cluster().registry.hosts()
    if json:
        output.as_json({name: asdict(info) if info else None for name, info in known.items()})
        return
    console.print(_described(known, wide=console.width >= WIDE))


def _described(known: Mapping[str, HostInfo | None], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in (
        "host",
        "worker",
        *(["address", "criu", "kernel", "cpus"] if wide else []),
        "memory free",
        "migrations",
    ):
        table.add_column(column)
    for name, info in known.items():
        if info is None:
            table.add_row(name, "[red]down[/]")
            continue
        memory = f"{megabytes(info.free_bytes)} of {megabytes(info.memory_bytes)}"
        worker = "[yellow]cordoned[/]" if info.cordoned else "[green]up[/]"
        more = [info.address, info.criu, info.kernel, str(info.cpus)] if wide else []
        table.add_row(name, worker, *more, memory, str(info.running))
    return table


def ps(
    host: Annotated[str, typer.Argument(help="The host to look at.", autocompletion=completion.hosts)],
    json: AsJson = False,
) -> None:
    """List the processes of a host that could be migrated. Exit status: 0; 2 no such host; 14 host unreachable."""
    Cluster().registry.check_host(host)
    from workflows.survey import candidates_of  # noqa: PLC0415  (Celery takes a while to import: bad input is told at once)

    found = candidates_of(host)
    if json:
        output.as_json(found)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("pid", "uid", "processes", "memory", "sockets", "command", "verdict"):
        table.add_column(column, overflow="ellipsis")
    for each in found:
        verdict = f"[red]{escape(each['verdict'])}[/]" if each["verdict"] else "[green]migratable[/]"
        numbers = [str(each[key]) for key in ("pid", "user", "processes")]
        table.add_row(
            *(
                *numbers,
                megabytes(each["memory_bytes"]),
                str(each["sockets"]),
                escape(each["command"][:60]),
                verdict,
            )
        )
    console.print(table)


def _word(word: Json, plan: Plan) -> str:
    """Say which host an operator has declared dead, who and when."""
    role = Role.DESTINATION if word["resolved"] == dead(Role.DESTINATION) else Role.SOURCE
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(word["resolved_at"]))
    return f"{word['resolved_by']} said at {when} that {plan.host_of(role)}, the {role}, is dead for good"
