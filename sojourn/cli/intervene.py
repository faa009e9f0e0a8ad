"""An operator steps in: ``sojourn abort`` and ``sojourn resolve``."""

from __future__ import annotations

import getpass
import socket
import time
from typing import Annotated

import typer

from sojourn.cli import live, output
from sojourn.cli.cluster import Cluster
from sojourn.cli.output import console
from sojourn.errors import Aborted, UsageError
from sojourn.ledger import Account
from sojourn.model import Failure, Json, Message, Role, State, Verdict, where_it_runs

Id = Annotated[str, typer.Argument(help="The migration's id, or how it begins.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the migration as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(abort)
    app.command()(resolve)


def abort(migration: Id, json: AsJson = False) -> None:
    """Give a migration up: at once before the images have left, after that if the destination has not taken it.

    Exit status: 0 it was given up, the process runs on the source; 2 no such migration, or it has ended; 12 in doubt;
    1 it was too late, the process runs on the destination.
    """
    cluster = Cluster()
    account = _unended(cluster, migration)
    from workflows.recover import abort as start  # noqa: PLC0415  (Celery is slow to import: bad input is told at once)

    cluster.ledger.tell_failure(account.id, Failure(Aborted.code, f"Aborted by {_who()}."))
    bookmark = cluster.ledger.bookmark()
    start(Message(account.id, account.plan))
    _report(cluster, bookmark, account, json=json, wanted=State.ABORTED)


def resolve(
    migration: Id,
    destination_is_dead: Annotated[bool, typer.Option(help="The destination is gone for good; resume here.")] = False,
    source_is_dead: Annotated[bool, typer.Option(help="The source is gone for good; go on without it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Decide what nobody else can: one of the two hosts will never answer again.

    Say so only of a host that is switched off, and stays so: if it still runs the process, there will be two.
    Exit status: 0 the process runs; 2 usage; 13 lost; 1 anything else.
    """
    if destination_is_dead == source_is_dead:
        raise UsageError("Say which host is dead: --destination-is-dead or --source-is-dead.")
    cluster = Cluster()
    account = _unended(cluster, migration)
    dead = Role.DESTINATION if destination_is_dead else Role.SOURCE
    _ask(account, dead, yes=yes)
    from workflows.recover import resolve as start  # noqa: PLC0415

    bookmark = cluster.ledger.bookmark()
    start(Message(account.id, account.plan, _word(dead)), dead)
    _report(cluster, bookmark, account, json=json, wanted=None)


def _word(dead: Role) -> Json:
    """Return the operator's word as facts, which both the message and the journal keep."""
    word: Json = {"resolved": f"{dead} is dead", "resolved_by": _who(), "resolved_at": time.time()}
    return word | ({"verdict": Verdict.REFUSED} if dead is Role.DESTINATION else {})


def _ask(account: Account, dead: Role, *, yes: bool) -> None:
    host = account.plan.host_of(dead)
    act = "resume the original" if dead is Role.DESTINATION else "let the destination go on alone"
    warning = f"If {host} still runs process {account.plan.pid}, there will be two of it."
    if not yes and not typer.confirm(f"{host} is dead for good: {act}? {warning}"):
        raise typer.Abort


def _unended(cluster: Cluster, migration: str) -> Account:
    account = cluster.find(migration)
    if account.state.final and account.state is not State.IN_DOUBT:
        where = where_it_runs(account.state, account.owner)
        raise UsageError(f"Migration {account.id} has ended: {account.state}. {where}")
    return account


def _report(cluster: Cluster, bookmark: str, account: Account, *, json: bool, wanted: State | None) -> None:
    live.silently(cluster.ledger, bookmark, account.id)
    ended = cluster.find(account.id)
    if json:
        output.as_json(ended.result)
    else:
        console.print(f"{ended.plan.describe()}: {ended.state}. {where_it_runs(ended.state, ended.owner)}")
    good = ended.state is wanted or (wanted is None and ended.owner is not None)
    raise typer.Exit(0 if good else ended.state.exit_code or 1)


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
