"""The daemons: ``sojourn worker`` and ``sojourn flower``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from sojourn.errors import SojournError
from sojourn.settings import load, override


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(worker)
    app.command()(flower)


def worker(
    host: Annotated[
        str | None, typer.Option(metavar="NAME", help="This host's name, and its queue's.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Where other hosts reach this one.")
    ] = None,
) -> None:
    """Run the worker of this host until it is asked to end (SIGTERM).

    Exit status: 0; 1 if CRIU is missing; 2 usage.
    """
    from sojourn.migration.context import Host
    from workers.host import start

    # Before the first use of the settings: they are read once.
    override(host=host, address=address)
    start(Host(load()))


def flower(
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=1, max=65535, help="Where to listen, instead of `flower_port`."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="The address to listen on, instead of `flower_address`.")
    ] = None,
) -> None:
    """Run Flower, the web pages of migrations and workers, until it is asked to end (SIGTERM).

    Exit status: 0; 2 usage, such as an address that others can reach without `flower_auth`; 1 if
    Flower is not installed.
    """
    # Flower is an extra: its absence is one sentence, not an ImportError.
    if find_spec("flower") is None:
        raise SojournError(
            "Flower is not installed.", "Install Sojourn with it: pip install 'sojourn[flower]'."
        )
    override(flower_port=None if port is None else str(port), flower_address=address)
    from sojourn.log import configure
    from web.app import serve

    configure(load().log_format)
    serve(load())
