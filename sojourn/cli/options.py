"""What several commands share: arguments, options, and the name of the operator who calls them."""

from __future__ import annotations

from typing import Annotated

import typer

from sojourn.cli import completion
from sojourn.cluster.selector import Selector
from sojourn.model import DEFAULT_MODE, Json
from sojourn.settings import load
from sojourn.system import caller

Source = Annotated[
    str,
    typer.Option(
        "--from", metavar="HOST", help="The host where it runs.", autocompletion=completion.hosts
    ),
]
Destination = Annotated[
    str,
    typer.Option(
        "--to", metavar="HOST", help="The host where it shall run.", autocompletion=completion.hosts
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="When the memory crosses: while the process is frozen (stop-and-copy), or while it "
        "runs on the destination already (post-copy).",
        show_default=DEFAULT_MODE,
        autocompletion=completion.modes,
    ),
]
TcpEstablished = Annotated[bool, typer.Option(help="Move established TCP connections along.")]
ShellJob = Annotated[bool, typer.Option(help="The tree belongs to a shell's session or terminal.")]
FileLocks = Annotated[bool, typer.Option(help="Move file locks along.")]
StopUnit = Annotated[
    bool,
    typer.Option(help="Keep the source's supervisor from starting the process there again."),
]
MaxFreeze = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Roll back when the freeze lasts longer, instead of `max_freeze_s`."
    ),
]
Bandwidth = Annotated[
    int | None,
    typer.Option(
        metavar="MBIT",
        help="Send at most this many megabits per second, instead of `bandwidth_mbit`.",
    ),
]

#: Instead of a PID: processes by what they are (``sojourn.cluster.selector``).
Command = Annotated[
    str | None,
    typer.Option(
        "--command",
        metavar="PATTERN",
        help="All whose command line matches this regular expression.",
    ),
]
User = Annotated[
    str | None, typer.Option("--user", metavar="USER", help="All of a user, by name or uid.")
]
Cgroup = Annotated[
    str | None, typer.Option("--cgroup", metavar="PATH", help="All in this cgroup and below it.")
]
Unit = Annotated[
    str | None, typer.Option("--unit", metavar="UNIT", help="All of this systemd unit.")
]
All = Annotated[bool, typer.Option("--all", help="All of the host that can be migrated.")]


Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        metavar="WHICH",
        help="What shall stay: a PID, or `unit=NAME`, `command=PATTERN`, `user=NAME`, "
        "`cgroup=PATH`. May be repeated.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Begin nothing new after that, and do not wait for what is under way then.",
    ),
]


def skipped(given: list[str] | None) -> list[Json]:
    """Return what shall stay, as selectors in JSON. Raises UsageError."""
    return [Selector.parsed(text).to_json() for text in given or []]


def chosen(**options: str | float | None) -> Json:
    """Return those that were given: a line of a plan leaves out the others."""
    # A zero was given too: it is refused with its own sentence.
    return {
        name: value for name, value in options.items() if value is not None and value is not False
    }


def limited(**given: str | float | None) -> Json:
    """Return a migration's options, with the settings' limits where it was given none."""
    return load().limits | {name: value for name, value in given.items() if value is not None}


def operator() -> str:
    """Return the person at this command line, as journals and ledger name operators."""
    return str(caller.current())


Id = Annotated[
    str,
    typer.Argument(
        help="The migration's id, or how it begins.", autocompletion=completion.migrations
    ),
]
