"""Lists of what there is: ``sojourn list``, ``hosts`` and ``ps``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from sojourn import units
from sojourn.cli import completion, listing, selection
from sojourn.cli.listing import AsJson, Cell, Column, Output, Row
from sojourn.model import Json

if TYPE_CHECKING:
    # What asks Redis is imported when it is asked: help and completion need not wait for it.
    from sojourn.cluster.account import Account
    from sojourn.cluster.registry import HostInfo

MIGRATIONS = (
    Column("id"),
    Column("pid"),
    Column("from"),
    Column("to"),
    Column("state", wraps=True),
    Column("mode", from_width=100),
    Column("runs on", from_width=80),
    Column("downtime", right=True),
    Column("asked", from_width=90),
    Column("command", from_width=120),
    Column("frozen", listing.ON_DEMAND, right=True),
    Column("in all", listing.ON_DEMAND, right=True),
    Column("memory", listing.ON_DEMAND, right=True),
    Column("failure", listing.ON_DEMAND),
    Column("batch", listing.ON_DEMAND),
)

HOSTS = (
    Column("host"),
    Column("worker"),
    Column("address", from_width=80),
    Column("criu", from_width=80),
    Column("kernel", from_width=80),
    Column("cpus", from_width=80, right=True),
    Column("memory free"),
    Column("migrations", right=True),
    Column("load", listing.ON_DEMAND, right=True),
    Column("sojourn", listing.ON_DEMAND),
    Column("certificate until", listing.ON_DEMAND),
)

PROCESSES = (
    Column("pid", right=True),
    Column("uid", right=True, from_width=70),
    Column("processes", right=True, from_width=80),
    Column("memory", right=True),
    Column("sockets", right=True, from_width=80),
    Column("command"),
    Column("verdict"),
    Column("started", listing.ON_DEMAND),
)

#: How much of a command line a table shows.
COMMAND = 60


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("list")(list_migrations)
    app.command()(hosts)
    app.command()(ps)


def list_migrations(
    count: selection.Last = 20,
    since: selection.Since = None,
    states: selection.States = None,
    host: selection.Host = None,
    source: selection.From = None,
    destination: selection.To = None,
    mode: selection.OfMode = None,
    command: selection.OfCommand = None,
    form: Output = None,
    json: AsJson = False,
) -> None:
    """List migrations: running, queued and finished; all of them, or those that are asked for.

    Exit status: 0; 2 usage; 1 if Redis does not answer.
    """
    from sojourn.cluster.client import Cluster

    route = selection.Route(host, source, destination, mode)
    wanted, matches = selection.states_of(states), selection.matching(command)
    start = selection.instant(since)
    filtered = bool(route or wanted or command)
    # Without a filter the first look finds all that is shown.
    newest = Cluster().ledger.newest(start, *(() if filtered else (min(count, 500),)))
    found = (
        account
        for account in newest
        if route.has(account.plan.source, account.plan.destination, account.plan.mode)
        and (not wanted or account.state in wanted)
        and matches(account.command)
    )
    rows = [_migration(account) for account in islice(found, count)]
    listing.show(MIGRATIONS, rows, listing.form_of(form, json=json))


def _migration(account: Account) -> Row:
    plan, result = account.plan, account.result or {}
    cells = (
        Cell(account.id[:8], plain=account.id),
        str(plan.pid),
        plan.source,
        plan.destination,
        listing.state(account.state),
        plan.mode,
        account.owner or "?",
        units.span(result.get("downtime_ms")),
        _instant(account.created),
        account.command[:COMMAND] or "-",
        units.span(result.get("frozen_ms")),
        units.span(result.get("total_ms")),
        units.size(result.get("pages_bytes")),
        account.failure.code if account.failure else "-",
        account.part["batch"] if account.part else "-",
    )
    return Row(account.id, cells, account.to_json)


def _instant(since_epoch_s: float) -> Cell:
    return Cell(units.when(since_epoch_s), plain=units.timestamp(since_epoch_s))


def hosts(form: Output = None, json: AsJson = False) -> None:
    """List hosts and the capacity of each.

    Exit status: 0; 1 if Redis does not answer.
    """
    from sojourn.cluster.client import Cluster

    known = Cluster().registry.hosts()
    whole = {name: asdict(info) if info else None for name, info in known.items()}
    rows = [_host(name, info) for name, info in known.items()]
    listing.show(HOSTS, rows, listing.form_of(form, json=json), lambda: whole)


def _host(name: str, info: HostInfo | None) -> Row:
    if info is None:
        silent: Json = {"name": name, "worker": "down"}
        return Row(name, (name, Cell("down", "red"), *["-"] * (len(HOSTS) - 2)), lambda: silent)
    worker = Cell("cordoned", "yellow") if info.cordoned else Cell("up", "green")
    until = info.certified_until
    cells = (
        name,
        worker,
        info.address,
        info.criu,
        info.kernel,
        str(info.cpus),
        f"{units.size(info.free_bytes)} of {units.size(info.memory_bytes)}",
        str(info.running),
        f"{info.load:.2f}",
        info.sojourn,
        "-" if until is None else _instant(until),
    )
    return Row(name, cells, lambda: {"worker": worker.text, **asdict(info)})


def ps(
    host: Annotated[
        str, typer.Argument(help="The host to look at.", autocompletion=completion.hosts)
    ],
    command: selection.OfCommand = None,
    user: Annotated[
        int | None, typer.Option(metavar="UID", help="Only those of this user.")
    ] = None,
    migratable: Annotated[
        bool, typer.Option("--migratable", help="Only those that can be migrated.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Only those that began since, as in `sojourn list`."),
    ] = None,
    form: Output = None,
    json: AsJson = False,
) -> None:
    """List the processes of a host that could be migrated, and why others could not.

    Exit status: 0; 2 usage, or no such host; 14 host unreachable.
    """
    from sojourn.cluster.client import Cluster

    matches, start = selection.matching(command), selection.instant(since)
    Cluster().registry.check_host(host)
    from workflows.survey import candidates_of

    found = (
        tree
        for tree in candidates_of(host)
        if matches(tree["command"])
        and user in {None, tree["user"]}
        and not (migratable and tree["verdict"])
        and (tree.get("started") or time.time()) >= start
    )
    listing.show(PROCESSES, list(_processes(found)), listing.form_of(form, json=json))


def _processes(found: Iterator[Json]) -> Iterator[Row]:
    for tree in found:
        verdict = tree["verdict"]
        cells = (
            *(str(tree[key]) for key in ("pid", "user", "processes")),
            units.size(tree["memory_bytes"]),
            str(tree["sockets"]),
            Cell(tree["command"][:COMMAND], plain=tree["command"]),
            Cell(verdict, "red") if verdict else Cell("migratable", "green"),
            _instant(tree["started"]) if tree.get("started") else "-",
        )
        yield Row(str(tree["pid"]), cells, partial(dict, tree))
