"""The command line. In ``main`` every failure becomes one sentence, a hint and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sojourn import __version__
from sojourn.cli import (
    capacity,
    check,
    doctor,
    history,
    intervene,
    lab,
    lists,
    logs,
    look,
    many,
    metrics,
    migrate,
    output,
    pki,
    serve,
    watch,
)
from sojourn.errors import SojournError, UsageError
from sojourn.settings import variable


def print_version(wanted: bool) -> None:
    """Print the version and exit, if that was asked for."""
    if wanted:
        sys.stdout.write(f"sojourn {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="sojourn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Move running Linux processes between hosts without putting their memory on a disk."""


app.add_typer(lab.app, name="lab")
app.add_typer(pki.app, name="pki")
migrate.add_to(app)
check.add_to(app)
doctor.add_to(app)
lists.add_to(app)
look.add_to(app)
watch.add_to(app)
history.add_to(app)
logs.add_to(app)
intervene.add_to(app)
many.add_to(app)
capacity.add_to(app)
metrics.add_to(app)
serve.add_to(app)


def main() -> None:
    """Run the command line; never returns."""
    # A usage error is raised while options are still parsed, so this one is looked for by hand.
    as_json = "--json" in sys.argv
    try:
        # Standalone, Typer would print errors in its own way and choose the exit code.
        sys.exit(app(standalone_mode=False) or 0)
    except SojournError as error:
        output.fail(error, as_json=as_json)
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        output.fail(UsageError(error.format_message(), "See --help."), as_json=as_json)
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)  # 128 + SIGINT, as a shell reports it
    except Exception as error:  # operators get a sentence, developers the traceback
        if variable("SOJOURN_DEBUG"):
            raise
        defect = SojournError(
            f"A defect of Sojourn: {error!r}",
            "SOJOURN_DEBUG=1 in front of the command shows where.",
        )
        output.fail(defect, as_json=as_json)
        sys.exit(1)
