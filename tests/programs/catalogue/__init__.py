"""The programs, by what they are; in this order they are tried and listed."""

from __future__ import annotations

from tests.programs.catalogue import (
    databases,
    interactive,
    isolated,
    jobs,
    languages,
    servers,
    supervised,
    units,
)
from tests.programs.program import Program

CATALOGUE: list[Program] = [
    *databases.PROGRAMS,
    *servers.PROGRAMS,
    *languages.PROGRAMS,
    *supervised.PROGRAMS,
    *jobs.PROGRAMS,
    *interactive.PROGRAMS,
    *isolated.PROGRAMS,
    *units.PROGRAMS,
]

#: What the scripts of the catalogue need beside the programs themselves.
TOOLS = ("curl", "procps", "netcat-openbsd")


def packages() -> list[str]:
    """Return the packages that a host needs for the whole catalogue."""
    return sorted({*TOOLS, *(name for program in CATALOGUE for name in program.packages)})
