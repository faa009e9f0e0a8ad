"""Arguments and options that several commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from sojourn.cli import completion

Source = Annotated[
    str, typer.Option("--from", metavar="HOST", help="The host where it runs.", autocompletion=completion.hosts)
]
Destination = Annotated[
    str, typer.Option("--to", metavar="HOST", help="The host where it shall run.", autocompletion=completion.hosts)
]
Mode = Annotated[str, typer.Option(help="How: stop-and-copy.")]
TcpEstablished = Annotated[bool, typer.Option(help="Move established TCP connections along.")]
ShellJob = Annotated[bool, typer.Option(help="The tree belongs to a shell's session or terminal.")]
FileLocks = Annotated[bool, typer.Option(help="Move file locks along.")]

#: Instead of a PID: processes by what they are (``sojourn.selector``).
Command = Annotated[
    str | None, typer.Option("--command", metavar="PATTERN", help="All whose command line has this regular expression.")
]
User = Annotated[str | None, typer.Option("--user", metavar="USER", help="All of a user, by name or uid.")]
Cgroup = Annotated[str | None, typer.Option("--cgroup", metavar="PATH", help="All in this cgroup and below it.")]
Unit = Annotated[str | None, typer.Option("--unit", metavar="UNIT", help="All of this systemd unit.")]
All = Annotated[bool, typer.Option("--all", help="All of the host that can be migrated.")]


def chosen(**options: bool) -> dict[str, bool]:
    """Return those that were switched on: a line of a plan says nothing of the others."""
    return {name: True for name, on in options.items() if on}


Id = Annotated[str, typer.Argument(help="The migration's id, or how it begins.", autocompletion=completion.migrations)]
