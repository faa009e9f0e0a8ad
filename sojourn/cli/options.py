"""Arguments and options that several commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

Source = Annotated[str, typer.Option("--from", metavar="HOST", help="The host where it runs.")]
Destination = Annotated[str, typer.Option("--to", metavar="HOST", help="The host where it shall run.")]
Mode = Annotated[str, typer.Option(help="How: stop-and-copy.")]
TcpEstablished = Annotated[bool, typer.Option(help="Move established TCP connections along.")]
ShellJob = Annotated[bool, typer.Option(help="The tree belongs to a shell's session or terminal.")]
FileLocks = Annotated[bool, typer.Option(help="Move file locks along.")]

Id = Annotated[str, typer.Argument(help="The migration's id, or how it begins.")]
