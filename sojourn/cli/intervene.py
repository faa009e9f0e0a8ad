"""An operator intervenes: ``sojourn abort`` and ``sojourn resolve``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from sojourn.cli import doubt, output
from sojourn.cli.options import Id, operator
from sojourn.cli.output import console
from sojourn.cluster.client import Cluster
from sojourn.errors import UsageError
from sojourn.model import Role, State
from sojourn.text import printable

if TYPE_CHECKING:
    # Workflows import Celery: a command that fails before it needs them need not wait for that.
    from workflows.intervene import Answer

AsJson = Annotated[bool, typer.Option("--json", help="Print the migration as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(abort)
    app.command()(resolve)


def abort(migration: Id, json: AsJson = False) -> None:
    """Abort a migration that is queued or under way; the process stays on its source.

    Before `released` the source decides alone, and the answer comes at once, even if the
    destination is dead. After it the destination's verdict decides, and the answer shows which way
    it went. If a host stays silent for 10 s, the migration is reported as in doubt; the request
    waits in that host's queue.

    Exit status: 0 it was aborted, the process runs on the source; 2 no such migration, or it has
    ended; 12 in doubt; 1 it was too late, the process runs on the destination (16 if clean-up is
    pending there). Any other end has the code that it has for `sojourn migrate`.
    """
    cluster = Cluster()
    account = cluster.find(migration)
    from workflows import intervene

    answer = intervene.abort(cluster, intervene.unended(account), operator())
    _report(answer, json=json)
    raise typer.Exit(
        0 if answer.account.state is State.ABORTED else answer.account.state.exit_code or 1
    )


def resolve(
    migration: Id,
    destination_is_dead: Annotated[
        bool, typer.Option(help="The destination is gone for good; resume the original.")
    ] = False,
    source_is_dead: Annotated[
        bool, typer.Option(help="The source is gone for good; the destination goes on.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Even if that host announces itself, or answered lately."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: AsJson = False,
) -> None:
    """Declare one of the two hosts of a migration dead, which only an operator can decide.

    Exactly one of them must be named. Declare only a host dead that is switched off and stays so:
    if it still runs the process, there will be two. One whose worker announces itself is not dead,
    nor one that has answered the other host within `patience_s`: that is refused, by the other host
    too, unless you add --force.

    The command shows what it will do and asks for confirmation. Who decided, and when, is kept in
    the journals and shown by `sojourn show`. If the dead host comes back after all, the decision
    waits there for it: a destination refuses, or ends what runs there of the process once the
    original runs; a source retires its original if the destination has taken the process.

    Exit status: 0 the process runs; 2 usage; 12 in doubt; 13 lost; 14 the other host does not
    answer; 130 not confirmed; 1 anything else.
    """
    if destination_is_dead == source_is_dead:
        raise UsageError("Name the dead host: --destination-is-dead or --source-is-dead.")
    cluster = Cluster()
    account = cluster.find(migration)
    from workflows import intervene

    intervene.unended(account)
    gone = Role.DESTINATION if destination_is_dead else Role.SOURCE
    # Checked before the question: an operator should not confirm what cannot be done.
    intervene.check_dead(cluster, account, gone, force=force)
    effect = intervene.effect_of_resolution(cluster, account, gone)
    _ask(effect, account.plan.host_of(gone), yes=yes)
    answer = intervene.resolve(cluster, account, gone, operator(), force=force)
    _report(answer, json=json)
    raise typer.Exit(0 if answer.account.owner else answer.account.state.exit_code or 1)


def _ask(effect: str, host: str, *, yes: bool) -> None:
    """Show the effect and ask for confirmation, on stderr so that stdout stays valid JSON."""
    typer.echo(printable(effect), err=True)
    if not yes and not typer.confirm(f"Is {host} dead for good?", err=True):
        raise typer.Abort


def _report(answer: Answer, *, json: bool) -> None:
    if not json:
        console.print(escape(answer.sentence), soft_wrap=True)
        if answer.account.doubt:
            console.print(doubt.draw(answer.account.doubt), soft_wrap=True)
        return
    if answer.silent:
        output.warn(f"{answer.silent} does not answer; the request waits in its queue.")
    output.as_json(answer.account.to_json())
