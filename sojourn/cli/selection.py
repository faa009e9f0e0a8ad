"""Which migrations a list shows: by state, hosts, mode, command line and time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from sojourn.cli import completion
from sojourn.errors import UsageError
from sojourn.model import State

#: Seconds in the units of ``--since``.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

#: What a time is written like.
EXAMPLES = "Write for example 90m, 12h, 3d, 2026-01-31, or 2026-01-31T12:00+01:00."

Last = Annotated[
    int,
    typer.Option("--last", metavar="N", min=1, max=10_000, help="How many at most, newest first."),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN",
        help="Only what was requested since: 90m, 12h, 3d ago, or a date such as 2026-01-31 or "
        "2026-01-31T12:00+01:00; without a zone, in this machine's.",
    ),
]
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="Only those in this state, such as running or lost; can be repeated.",
        autocompletion=completion.states,
    ),
]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="HOST", help="Only those from or to this host.", autocompletion=completion.hosts
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="HOST", help="Only those from this host.", autocompletion=completion.hosts
    ),
]
To = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="HOST", help="Only those to this host.", autocompletion=completion.hosts
    ),
]
OfMode = Annotated[
    str | None,
    typer.Option(
        "--mode", metavar="MODE", help="Only those in this mode.", autocompletion=completion.modes
    ),
]
OfCommand = Annotated[
    str | None,
    typer.Option(
        "--command",
        metavar="PATTERN",
        help="Only those whose command line matches this regular expression.",
    ),
]


@dataclass(frozen=True)
class Route:
    """Which hosts and which mode are asked for; None asks for all."""

    host: str | None = None
    source: str | None = None
    destination: str | None = None
    mode: str | None = None

    def has(self, source: str, destination: str, mode: str) -> bool:
        """Whether a migration of these hosts and this mode is asked for."""
        return (
            self.host in {None, source, destination}
            and self.source in {None, source}
            and self.destination in {None, destination}
            and self.mode in {None, mode}
        )

    def __bool__(self) -> bool:
        return self != Route()


def instant(since: str | None) -> float:
    """Return what ``--since`` means, in seconds since the epoch; 0 without it.

    Raises UsageError.
    """
    if since is None:
        return 0
    # A span first: what is left is a date, of which Python accepts many forms (ISO 8601).
    if span := re.fullmatch(r"(\d{1,9})([smhdw])", since):
        return time.time() - int(span[1]) * UNITS[span[2]]
    try:
        return datetime.fromisoformat(since).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f"{since!r} is not a time.", EXAMPLES) from None


def states_of(names: Sequence[str] | None) -> frozenset[State]:
    """Return the states with these names, written with blanks or hyphens. Raises UsageError."""
    known = {state.word: state for state in State}
    found = {name.replace(" ", "-"): name for name in names or ()}
    for name, given in found.items():
        if name not in known:
            raise UsageError(f"There is no state {given!r}.", f"States: {', '.join(known)}.")
    return frozenset(known[name] for name in found)


def matching(pattern: str | None) -> Callable[[str], bool]:
    """Return whether a command line matches a pattern, which it does without one.

    Raises UsageError.
    """
    if pattern is None:
        return lambda _: True
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}.") from None
    return lambda command: compiled.search(command) is not None
