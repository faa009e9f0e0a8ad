"""An operator steps in: ``sojourn abort`` and ``sojourn resolve``."""

from __future__ import annotations

import getpass
import socket
from typing import Annotated

import typer
from rich.markup import escape

from sojourn.cli import output
from sojourn.cli.cluster import Cluster
from sojourn.cli.options import Id
from sojourn.cli.output import console
from sojourn.errors import UsageError
from sojourn.ledger import Account
from sojourn.model import Role, State, where_it_runs

AsJson = Annotated[bool, typer.Option("--json", help="Print the migration as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(abort)
    app.command()(resolve)


def abort(migration: Id, json: AsJson = False) -> None:
    """Give a migration up: at once before the images have left, after that if the destination has not taken it.

    Also while it is queued. Before `released` the source decides alone and the answer comes at once, even if the
    destination is dead. After it the destination's verdict decides, and the answer says which way it went. If a host
    stays silent for 10 s, the migration is told to be in doubt; what was asked waits in that host's queue.

    Exit status: 0 it was given up, the process runs on the source; 2 no such migration, or it has ended; 12 in doubt;
    1 it was too late, the process runs on the destination (16 if clean-up is pending there). Any other end has the
    code that it has for `sojourn migrate`.
    """
    cluster = Cluster()
    account = _unended(cluster, migration)
    from workflows.intervene import abort as start  # noqa: PLC0415  (Celery is slow to import: bad input is told at once)

    answer = start(cluster, account, _who())
    _report(answer.account, answer.silent, json=json)
    raise typer.Exit(0 if answer.account.state is State.ABORTED else answer.account.state.exit_code or 1)


def resolve(
    migration: Id,
    destination_is_dead: Annotated[
        bool, typer.Option(help="The destination is gone for good; resume the original.")
    ] = False,
    source_is_dead: Annotated[bool, typer.Option(help="The source is gone for good; the destination goes on.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Decide what nobody else can: one of the two hosts will never answer again.

    Exactly one of them must be named. Say so only of a host that is switched off, and stays so: if it still runs the
    process, there will be two.

    It says what it will do and asks. Who said so and when is kept in the journals and shown by `sojourn show`. If the
    dead host comes back after all, the word waits there for it: a destination refuses, or ends what runs there of the
    process once the original runs; a source retires its original if the destination has taken the process.

    Exit status: 0 the process runs; 2 usage; 12 in doubt; 13 lost; 14 the other host does not answer; 130 not agreed
    to; 1 anything else.
    """
    if destination_is_dead == source_is_dead:
        raise UsageError("Say which host is dead: --destination-is-dead or --source-is-dead.")
    cluster = Cluster()
    account = _unended(cluster, migration)
    gone, left = (Role.DESTINATION, Role.SOURCE) if destination_is_dead else (Role.SOURCE, Role.DESTINATION)
    cluster.registry.check_host(account.plan.host_of(left))
    from workflows.intervene import resolve as start  # noqa: PLC0415
    from workflows.intervene import what_a_word_does  # noqa: PLC0415

    _ask(what_a_word_does(cluster, account, gone), account.plan.host_of(gone), yes=yes)
    answer = start(cluster, account, gone, _who())
    _report(answer.account, answer.silent, json=json)
    raise typer.Exit(0 if answer.account.owner else answer.account.state.exit_code or 1)


def _ask(what: str, host: str, *, yes: bool) -> None:
    """Say what will be done, and go on if that is agreed to; on stderr, so that JSON stays whole."""
    typer.echo(what, err=True)
    if not yes and not typer.confirm(f"Is {host} dead for good?", err=True):
        raise typer.Abort


def _unended(cluster: Cluster, migration: str) -> Account:
    account = cluster.find(migration)
    if account.state.definite:
        where = where_it_runs(account.state, account.owner)
        raise UsageError(f"Migration {account.id} has ended: {account.state}. {where}")
    return account


def _report(ended: Account, silent: str, *, json: bool) -> None:
    if silent:
        output.warn(f"{silent} does not answer; what was asked waits for it.")
    if json:
        output.as_json(ended.to_json())
        return
    why = f" {ended.failure.message}" if ended.failure else ""
    where = where_it_runs(ended.state, ended.owner)
    console.print(escape(f"{ended.plan.describe()}: {ended.state}. {where}{why}"), soft_wrap=True)


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
