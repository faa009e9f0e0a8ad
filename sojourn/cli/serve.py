"""What runs for a long time: ``sojourn worker`` and ``sojourn flower``."""

from __future__ import annotations

from typing import Annotated

import typer

from sojourn.settings import load, override


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(worker)
    app.command()(flower)


def worker(
    host: Annotated[str | None, typer.Option(metavar="NAME", help="This host's name, and its queue's.")] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDR", help="Where other hosts reach this one.")] = None,
) -> None:
    """Run the worker of this host until it is asked to end (SIGTERM). Exit status: 0; 1 if CRIU is missing; 2 usage."""
    from sojourn.host import Host  # noqa: PLC0415
    from workers.host import start  # noqa: PLC0415

    override(host=host, address=address)
    start(Host(load()))


def flower(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 5555,
    address: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
) -> None:
    """Run Flower, the web page of the workers and their tasks. Exit status: 0; 1 if it is not installed."""
    from workflows.app import the_app  # noqa: PLC0415

    the_app().start(["flower", f"--address={address}", f"--port={port}"])
