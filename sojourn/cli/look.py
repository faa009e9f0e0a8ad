"""One migration looked at: ``sojourn show``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from sojourn.cli import doubt, output, timeline
from sojourn.cli.options import Id
from sojourn.cli.output import coloured, console
from sojourn.cluster.account import NoticeRecord
from sojourn.cluster.client import Cluster
from sojourn.decision import sentence

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(show)


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
        notices = [asdict(notice) for notice in account.notices]
        output.as_json(account.to_json() | {"asked_by": account.asked_by, "notices": notices})
        return
    console.print(
        f"[bold]{account.plan.describe()}[/]  {coloured(account.state)}  [dim]{account.id}[/]"
    )
    console.print(account.where, soft_wrap=True)
    console.print(f"[dim]mode[/] {account.plan.how}", soft_wrap=True)
    if account.asked_by:
        console.print(f"[dim]asked for by[/] {escape(account.asked_by)}", soft_wrap=True)
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
    for notice in account.notices:
        console.print(_called(notice), soft_wrap=True)
    if account.doubt:
        console.print(doubt.draw(account.doubt), soft_wrap=True)


def _called(notice: NoticeRecord) -> str:
    """Return what became of the call after the end."""
    colour = {"delivered": "green", "failed": "yellow"}.get(notice.outcome, "red")
    again = ", it is tried again" if notice.outcome == "failed" else ""
    return (
        f"[dim]on_end[/] {escape(notice.state)}: [{colour}]{escape(notice.outcome)}[/] from "
        f"{escape(notice.host)}, attempt {notice.tries}{again}: {escape(notice.answer)}"
    )
