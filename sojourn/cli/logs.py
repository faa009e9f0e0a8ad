"""The logs of one migration, from both hosts: ``sojourn logs``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from sojourn import units
from sojourn.cli import completion, output
from sojourn.cli.options import Id
from sojourn.cli.output import complaints, console
from sojourn.cluster.account import Account
from sojourn.cluster.client import Cluster
from sojourn.criu.logs import Log
from sojourn.errors import HostUnreachable, UsageError
from sojourn.text import printable


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(logs)


def logs(
    migration: Id,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Only the logs on this host.", autocompletion=completion.hosts
        ),
    ] = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Only errors, with the lines around them.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what CRIU and the page channel logged of one migration on both hosts.

    The workers of the hosts read the files and send at most the last 256 kB of each, headed by
    host, path and size. Control characters are replaced. A host that does not answer is reported;
    the other's logs are shown all the same.

    Exit status: 0; 2 no such migration, or the host has no part in it; 14 a host does not answer.
    """
    account = Cluster().find(migration)
    hosts = _hosts(account, host)
    from workflows.logs import logs_of

    found = logs_of(account.id, hosts, only_errors=errors)
    if json:
        output.as_json(
            {
                name: None if logs is None else [asdict(log) for log in logs]
                for name, logs in found.items()
            }
        )
    else:
        for name, logs in found.items():
            _show(name, logs, only_errors=errors)
    if None in found.values():
        raise typer.Exit(HostUnreachable.exit_code)


def _hosts(account: Account, host: str | None) -> list[str]:
    hosts = [account.plan.source, account.plan.destination]
    if host is not None and host not in hosts:
        raise UsageError(
            f"Host {host} has no part in migration {account.id}.", f"It goes {' to '.join(hosts)}."
        )
    return [host] if host else hosts


def _show(host: str, found: list[Log] | None, *, only_errors: bool) -> None:
    if found is None:
        complaints.print(
            f"[bold red]{host} does not answer[/]: its logs are not shown. Does its worker run?"
        )
    elif not found:
        console.print(f"[bold]{host}[/]: {'no errors' if only_errors else 'no logs'}")
    for log in found or []:
        part = "" if log.whole else ", its errors" if only_errors else ", its end"
        console.print(
            f"[bold]{host}: {log.path}[/] [dim]({units.size(log.size_bytes)}{part})[/]",
            soft_wrap=True,
        )
        # Not by rich, which would take what stands in square brackets for markup.
        sys.stdout.write(printable(log.text).rstrip("\n") + "\n\n")
