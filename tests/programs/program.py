"""What the catalogue says of a program, and what became of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.programs.starts import Scene, Start


@dataclass(frozen=True)
class Way:
    """A way out that a finding shows, as an operator goes it: ``text`` is for the table.

    ``alpha`` and ``beta`` are scripts for the shell there; ``start`` starts the program anew.
    """

    text: str
    alpha: str = ""
    beta: str = ""
    start: Start | None = None


@dataclass(frozen=True)
class Program:
    """A program as people start it.

    All scripts are for the shell, and have a directory ``$D`` and a user ``$U``.

    ``both`` prepares the hosts, ``prepare`` the source. ``works`` succeeds while the program does
    its work, on whichever host. ``fill`` gives it something to remember, and ``state`` prints that:
    before and after the migration it must be the same, and not be empty. ``refused`` are the codes
    with which the first check stops it. ``user``: whom it runs as, by default.
    """

    name: str
    packages: tuple[str, ...]
    start: Start
    works: str = "true"
    state: str = ""
    fill: str = ""
    both: str = ""
    prepare: str = ""
    refused: tuple[str, ...] = ()
    way: Way | None = None
    user: str = "root"

    def scene(self, user: str) -> Scene:
        """Return what its scripts find, if ``user`` is who it runs as."""
        return Scene(re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-"), user)


@dataclass
class Result:
    """What became of one program."""

    name: str
    version: str
    how: str
    #: Codes of what stopped it at first.
    stopped: list[str] = field(default_factory=list)
    sentence: str = ""
    options: list[str] = field(default_factory=list)
    way: str = ""
    moved: bool = False
    frozen_ms: float | None = None
    #: What is not as it should be; empty if it was moved right or refused right.
    wrong: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others: one program may be started in several ways."""
        return self.name, self.how

    @property
    def outcome(self) -> str:
        """The outcome in a word or two."""
        if self.wrong:
            return "**wrong**"
        if not self.moved:
            return "refused"
        if self.way:
            return "refused, then moved"
        return "moved"
