"""Looking without touching: ``sojourn list``, ``show``, ``hosts`` and ``ps``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sojourn import units
from sojourn.cli import completion, doubt, output, timeline
from sojourn.cli.options import Id
from sojourn.cli.output import coloured, console
from sojourn.cluster.account import Account
from sojourn.cluster.client import Cluster
from sojourn.cluster.registry import HostInfo
from sojourn.decision import sentence

#: Terminals with fewer columns of text get fewer columns of the table.
WIDE, VERY_WIDE = 80, 100

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("list")(list_migrations)
    app.command()(show)
    app.command()(hosts)
    app.command()(ps)


def list_migrations(
    count: Annotated[
        int, typer.Option("--last", min=1, max=10_000, help="How many, newest first.")
    ] = 20,
    json: AsJson = False,
) -> None:
    """List migrations: running, queued and finished.

    Exit status: 0; 1 if Redis does not answer.
    """
    accounts = Cluster().ledger.latest(count)
    if json:
        output.as_json([account.to_json() for account in accounts])
        return
    console.print(_listed(accounts, console.width))


def _listed(accounts: list[Account], width: int) -> Table:
    wide, very_wide = width >= WIDE, width >= VERY_WIDE
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in (
        "id",
        "pid",
        "from",
        "to",
        "state",
        *(["mode"] if very_wide else []),
        *(["runs on", "downtime", "asked"] if wide else ["downtime"]),
    ):
        table.add_column(column, no_wrap=column != "state")
    for account in accounts:
        downtime = units.span((account.result or {}).get("downtime_ms"))
        asked = units.time_of_day(account.created)
        plan = account.plan
        end = [account.owner or "?", downtime, asked] if wide else [downtime]
        table.add_row(
            account.id[:8],
            str(plan.pid),
            plan.source,
            plan.destination,
            coloured(account.state),
            *([plan.mode] if very_wide else []),
            *end,
        )
    return table


def show(
    migration: Id,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Show where its freeze went, millisecond by millisecond."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Show one migration: its state, its timeline, and why it failed.

    With `--profile` show where the time went in which the process was frozen: what was done when on
    which host, CRIU's own work by its logs, messages, and what all of it adds up to. It is made
    when the migration has ended; both hosts are asked for what they know. Where one does not
    answer, the rest is shown.

    Exit status: 0; 2 no such migration, or no profile yet; 14 with `--profile`, a host does not
    answer.
    """
    account = Cluster().find(migration)
    if profile:
        # Not above: no other command needs what this imports.
        from sojourn.cli.profile import show as show_profile

        show_profile(account, as_json=json)
        return
    if json:
        output.as_json(account.to_json())
        return
    console.print(
        f"[bold]{account.plan.describe()}[/]  {coloured(account.state)}  [dim]{account.id}[/]"
    )
    console.print(account.where, soft_wrap=True)
    console.print(f"[dim]mode[/] {account.plan.how}", soft_wrap=True)
    if account.resolved:
        console.print(escape(sentence(account.resolved, account.plan)), soft_wrap=True)
    console.print(timeline.draw(account))
    if account.failure:
        failure = account.failure
        console.print(
            f"[bold red]{failure.code}[/] [red]{escape(failure.message)}[/]\n"
            f"[dim]{escape(failure.hint)}[/]\n"
            f"[dim]The logs of both hosts:[/] sojourn logs {account.id[:8]}",
            soft_wrap=True,
        )
    if account.doubt:
        console.print(doubt.draw(account.doubt), soft_wrap=True)


def hosts(json: AsJson = False) -> None:
    """List hosts and the capacity of each.

    Exit status: 0; 1 if Redis does not answer.
    """
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
        memory = f"{units.size(info.free_bytes)} of {units.size(info.memory_bytes)}"
        worker = "[yellow]cordoned[/]" if info.cordoned else "[green]up[/]"
        more = [info.address, info.criu, info.kernel, str(info.cpus)] if wide else []
        table.add_row(name, worker, *more, memory, str(info.running))
    return table


def ps(
    host: Annotated[
        str, typer.Argument(help="The host to look at.", autocompletion=completion.hosts)
    ],
    json: AsJson = False,
) -> None:
    """List the processes of a host that could be migrated, and why others could not.

    Exit status: 0; 2 no such host; 14 host unreachable.
    """
    Cluster().registry.check_host(host)
    from workflows.survey import candidates_of

    found = candidates_of(host)
    if json:
        output.as_json(found)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("pid", "uid", "processes", "memory", "sockets", "command", "verdict"):
        table.add_column(column, overflow="ellipsis")
    for tree in found:
        table.add_row(
            *(str(tree[key]) for key in ("pid", "user", "processes")),
            units.size(tree["memory_bytes"]),
            str(tree["sockets"]),
            escape(tree["command"][:60]),
            f"[red]{escape(tree['verdict'])}[/]" if tree["verdict"] else "[green]migratable[/]",
        )
    console.print(table)
