"""An operator steps in: ``sojourn abort`` and ``sojourn resolve``."""

from __future__ import annotations

import getpass
import socket
import time
from typing import Annotated

import typer
from rich.markup import escape

from sojourn.cli import output
from sojourn.cli.cluster import Cluster
from sojourn.cli.options import Id
from sojourn.cli.output import console
from sojourn.errors import Aborted, UsageError
from sojourn.ledger import Account
from sojourn.model import Failure, Json, Message, Role, State, Verdict, dead, where_it_runs
from sojourn.queue import Standing

AsJson = Annotated[bool, typer.Option("--json", help="Print the migration as JSON.")]

#: How long an abort waits for what is in doubt, or for a silent host; what was asked waits in its queue.
SILENCE_S = 10

#: Where a migration stands in the queue before it has begun.
WAITS = {Standing.WAITING, Standing.LATER}

#: How long the host that is left may take to act on an operator's word; doubts may be told meanwhile.
ACT_S = 60


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
    start(Message(account.id, account.plan), waits=cluster.queue.standing(account.id) in WAITS)
    _await_end(cluster, bookmark, account, SILENCE_S)
    ended = cluster.find(account.id)
    _report(ended, json=json)
    raise typer.Exit(0 if ended.state is State.ABORTED else ended.state.exit_code or 1)


def resolve(
    migration: Id,
    destination_is_dead: Annotated[bool, typer.Option(help="The destination is gone for good; resume here.")] = False,
    source_is_dead: Annotated[bool, typer.Option(help="The source is gone for good; go on without it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: AsJson = False,
) -> None:
    """Decide what nobody else can: one of the two hosts will never answer again.

    Say so only of a host that is switched off, and stays so: if it still runs the process, there will be two.
    Exit status: 0 the process runs; 2 usage; 12 in doubt; 13 lost; 14 the other host does not answer; 130 not agreed
    to; 1 anything else.
    """
    if destination_is_dead == source_is_dead:
        raise UsageError("Say which host is dead: --destination-is-dead or --source-is-dead.")
    cluster = Cluster()
    account = _unended(cluster, migration)
    gone, left = (Role.DESTINATION, Role.SOURCE) if destination_is_dead else (Role.SOURCE, Role.DESTINATION)
    cluster.registry.check_host(account.plan.host_of(left))
    _ask(cluster, account, gone, yes=yes)
    from workflows.recover import resolve as start  # noqa: PLC0415

    bookmark, word = cluster.ledger.bookmark(), _word(gone)
    cluster.ledger.tell_word(account.id, word)
    verdict = {"verdict": Verdict.REFUSED} if gone is Role.DESTINATION else {}
    start(Message(account.id, account.plan, word | verdict), gone)
    _await_end(cluster, bookmark, account, ACT_S)
    ended = cluster.find(account.id)
    _report(ended, json=json)
    raise typer.Exit(0 if ended.owner else ended.state.exit_code or 1)


def _word(gone: Role) -> Json:
    """Return the operator's word as facts, which the ledger, the messages and the journals keep."""
    return {"resolved": dead(gone), "resolved_by": _who(), "resolved_at": time.time()}


def _ask(cluster: Cluster, account: Account, gone: Role, *, yes: bool) -> None:
    """Say what will be done, and go on if that is agreed to; on stderr, so that JSON stays whole."""
    plan = account.plan
    host = plan.host_of(gone)
    act = {
        Role.DESTINATION: f"The original, process {plan.pid}, will run on {plan.source}; {host} will never run it.",
        Role.SOURCE: f"{plan.destination} goes on alone if it has all of process {plan.pid}; if not, it is lost.",
    }[gone]
    answers = f"The worker of {host} answers: is it dead? " if host in cluster.registry.alive() else ""
    typer.echo(f"{act} {answers}If {host} still runs the process, there will be two of it.", err=True)
    if not yes and not typer.confirm(f"Is {host} dead for good?", err=True):
        raise typer.Abort


def _unended(cluster: Cluster, migration: str) -> Account:
    account = cluster.find(migration)
    if account.state.definite:
        where = where_it_runs(account.state, account.owner)
        raise UsageError(f"Migration {account.id} has ended: {account.state}. {where}")
    return account


def _await_end(cluster: Cluster, bookmark: str, account: Account, patience_s: float) -> None:
    """Wait for an end that is known; after ``patience_s`` one in doubt, or kept by a silent host, will do."""
    until = time.monotonic() + patience_s
    for event in cluster.ledger.follow(bookmark):
        if event and event.migration == account.id and event.kind == "state" and State(event.data["state"]).definite:
            return
        if time.monotonic() > until and _is_in_doubt(cluster, account):
            return


def _is_in_doubt(cluster: Cluster, account: Account) -> bool:
    """Whether nobody knows how it ended; tell so where a host stays silent."""
    state, silent = cluster.find(account.id).state, _silent(cluster, account)
    if silent and not state.definite:
        cluster.ledger.tell_doubt(account.id)
        output.warn(f"{silent} does not answer; what was asked waits for it.")
    return state.final or bool(silent)


def _silent(cluster: Cluster, account: Account) -> str:
    """Return which of the two hosts do not answer, in words."""
    alive = cluster.registry.alive()
    return " and ".join(host for host in (account.plan.source, account.plan.destination) if host not in alive)


def _report(ended: Account, *, json: bool) -> None:
    if json:
        output.as_json(ended.to_json())
        return
    why = f" {ended.failure.message}" if ended.failure else ""
    where = where_it_runs(ended.state, ended.owner)
    console.print(escape(f"{ended.plan.describe()}: {ended.state}. {where}{why}"), soft_wrap=True)


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
