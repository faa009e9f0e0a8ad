"""Which hosts take migrations: ``sojourn cordon`` and ``uncordon``."""

from __future__ import annotations

from typing import Annotated

import typer

from sojourn.cli import completion
from sojourn.cli.output import console
from sojourn.cluster.client import Cluster

HostName = Annotated[
    str, typer.Argument(metavar="HOST", help="The host.", autocompletion=completion.hosts)
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(cordon)
    app.command()(uncordon)


def cordon(host: HostName) -> None:
    """Let no new migration go to a host; those under way go on.

    Exit status: 0; 2 no such host.
    """
    Cluster().registry.cordon(host)
    from workflows.audit import note_of_host

    note_of_host("cordon", host)
    console.print(f"{host} is cordoned: nothing new goes there.")


def uncordon(host: HostName) -> None:
    """Let migrations go to a host again.

    Exit status: 0; 2 no such host.
    """
    Cluster().registry.uncordon(host)
    from workflows.audit import note_of_host

    note_of_host("uncordon", host)
    console.print(f"{host} takes migrations again.")
