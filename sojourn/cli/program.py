"""The program ``sojourn``: its own options, its help, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Annotated, cast

import typer
from typer.core import TyperGroup

from sojourn import __version__
from sojourn.cli.catalogue import GROUPS, Catalogue
from sojourn.environment import export, variable
from sojourn.errors import SojournError, UsageError
from sojourn.model import Untyped

#: Options that stand before the command; behind it the parser does not know them.
OWN_OPTIONS = ("--config", "--cluster")

#: The width of help, on terminals that have as much.
HELP_WIDTH = 100


class Commands(TyperGroup):
    """The commands in groups, none of which is imported before it is needed."""

    def __init__(self, **attributes: Untyped) -> None:
        super().__init__(**attributes)
        self.commands = cast("MutableMapping[str, Untyped]", Catalogue())

    def format_commands(self, ctx: Untyped, formatter: Untyped) -> None:  # noqa: ARG002
        """Write the commands under the headings of their groups."""
        widest = max(map(len, self.commands))
        for heading, group in GROUPS.items():
            with formatter.section(heading):
                # Padded, so that the second column of all groups is one.
                rows = [(name.ljust(widest), summary) for name, (_, summary) in group.items()]
                formatter.write_dl(rows)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if that was asked for."""
    if wanted:
        sys.stdout.write(f"sojourn {__version__}\n")
        raise typer.Exit


def names_of_clusters(incomplete: str) -> list[str]:
    """Return the named clusters that begin this way, for completion in a shell."""
    from sojourn.settings import clusters

    return [name for name in clusters() if name.startswith(incomplete)]


app = typer.Typer(
    name="sojourn",
    cls=Commands,
    pretty_exceptions_enable=False,
    # Plain help: what rich would draw around it takes longer than most commands.
    rich_markup_mode=None,
    context_settings={"max_content_width": HELP_WIDTH, "help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="sojourn COMMAND --help shows the options and the exit status of a command.")
def options(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The settings, instead of /etc/sojourn/sojourn.toml."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The settings of a named cluster: ~/.config/sojourn/NAME.toml or "
            "/etc/sojourn/clusters/NAME.toml.",
            autocompletion=names_of_clusters,
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001  (its callback prints it)
        bool,
        typer.Option(
            "--version", is_eager=True, callback=print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Move running Linux processes between hosts without putting their memory on a disk."""
    if config is None and cluster is None:
        return
    if config is not None and cluster is not None:
        raise UsageError("Give --config or --cluster, not both.")
    from sojourn.settings import config_of, override

    override(config=str(config if cluster is None else config_of(cluster)))


def run() -> int:
    """Run the command line and return its exit status. Raises KeyboardInterrupt."""
    # A usage error is raised while options are still parsed, so these are looked for by hand.
    as_json = not {"--json", "json", "jsonl"}.isdisjoint(sys.argv)
    # To look for plugins, pydantic would read what is known of every package that is installed.
    export({"PYDANTIC_DISABLE_PLUGINS": "1"})
    try:
        # Standalone, Typer would print errors in its own way and choose the exit status.
        status = app(_words(), prog_name="sojourn", standalone_mode=False) or 0
        sys.stdout.flush()
    except SojournError as error:
        return _failed(error, as_json=as_json)
    except typer.TyperException as error:
        return _failed(_usage(error), as_json=as_json)
    except typer.Abort:
        return 130
    except BrokenPipeError:
        return _unread()
    except Exception as error:  # operators get a sentence, developers the traceback
        if variable("SOJOURN_DEBUG"):
            raise
        return _failed(_defect(error), as_json=as_json)
    return int(status)


def _words() -> list[str]:
    """Return the words of the command line; a group of commands alone asks for its help."""
    words = sys.argv[1:]
    return [*words, "--help"] if words in ([], ["lab"], ["pki"]) else words


def _failed(error: SojournError, *, as_json: bool) -> int:
    """Report a failure and return its exit status."""
    # Not before: most commands that succeed in a pipe never load what draws on terminals.
    from sojourn.cli import output

    output.fail(error, as_json=as_json)
    return error.exit_code


def _usage(error: typer.TyperException) -> UsageError:
    message = error.format_message()
    for option in OWN_OPTIONS:
        if message.startswith(f"No such option: {option}"):
            return UsageError(message, f"It stands before the command: sojourn {option} ...")
    return UsageError(message, "See --help.")


def _defect(error: Exception) -> SojournError:
    return SojournError(
        f"A defect of Sojourn: {error!r}",
        "SOJOURN_DEBUG=1 in front of the command shows where.",
    )


def _unread() -> int:
    """End quietly when nobody reads on, as after ``| head``; return the exit status."""
    # Python would write what is left at its end, and report that it cannot.
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return 1
