"""Selectors: which of a host's processes are meant, by PID, command, user, cgroup, systemd unit, or all of them.

A selector is matched against every process of every tree that could be migrated; a match anywhere inside a tree selects
the tree, once, by its root, since a tree moves as a whole. Pure: what is on the host is read by whoever asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Generic, Protocol, TypeVar

from sojourn.errors import UsageError
from sojourn.model import PID_MAX, Json


@dataclass(frozen=True)
class Process:
    """What a selector looks at; ``user`` is the uid, ``user_name`` empty if it has none, ``cgroup`` a path."""

    pid: int
    command: str
    user: int
    user_name: str
    cgroup: str


class Tree(Protocol):
    """A tree as preflight sees it: its root, all its processes, and what speaks against migrating it, if anything."""

    @property
    def pid(self) -> int:
        """The root's PID."""

    @property
    def verdict(self) -> str:
        """Why it can not be migrated; empty if nothing speaks against it."""

    @property
    def members(self) -> Sequence[Process]:
        """All processes of the tree, the root among them."""


AnyTree = TypeVar("AnyTree", bound=Tree)


@dataclass(frozen=True)
class Picked(Generic[AnyTree]):
    """The trees that were meant: those that can be migrated, and those that preflight says no to."""

    chosen: tuple[AnyTree, ...]
    refused: tuple[AnyTree, ...]


@dataclass(frozen=True)
class Selector:
    """Which processes are meant; of several conditions all must hold for the same process.

    ``command`` is a regular expression that is found anywhere in the command line. ``user`` is a name or a uid.
    ``cgroup`` is a path as in ``/proc/PID/cgroup``: that group and those below it. ``unit`` is a systemd unit, a
    ``.service`` unless it says otherwise. ``all`` stands alone. Raises UsageError for one that makes no sense.
    """

    pid: int | None = None
    command: str | None = None
    user: str | None = None
    cgroup: str | None = None
    unit: str | None = None
    all: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.all, bool):
            raise UsageError(f"all is true or false, not {self.all!r}.")
        given = [name for name, value in self.to_json().items() if name != "all" and value is not None]
        if self.all and given:
            raise UsageError(f"All processes, or only those by {given[0]}: not both.")
        if not self.all and not given:
            raise UsageError("Nothing says which processes are meant.", f"Say one of: {', '.join(NAMES)}.")
        for name in given:
            _check(name, getattr(self, name))

    @classmethod
    def from_json(cls, data: Json) -> Selector:
        """Build a selector from untrusted JSON. Raises UsageError."""
        unknown = sorted(set(data) - set(NAMES))
        if unknown:
            raise UsageError(f"Processes can not be selected by {unknown[0]!r}.", f"Possible: {', '.join(NAMES)}.")
        return cls(**data)

    def to_json(self) -> Json:
        """Return the selector as plain JSON, without what was not said."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}

    def describe(self) -> str:
        """Return the selector as people would say it."""
        if self.all:
            return "all processes"
        return " and ".join(f"{name} {value}" for name, value in self.to_json().items())

    def matches(self, process: Process) -> bool:
        """Whether a process is meant."""
        return (
            self.pid in {None, process.pid}
            and (self.command is None or re.search(self.command, process.command) is not None)
            and self.user in {None, process.user_name, str(process.user)}
            and (self.cgroup is None or _below(process.cgroup, self.cgroup))
            and (self.unit is None or _unit_name(self.unit) in process.cgroup.split("/"))
        )

    def pick(self, trees: Iterable[AnyTree]) -> Picked[AnyTree]:
        """Return the trees of a host in which a process is meant, each once, in the order in which they came.

        With ``all`` those that preflight refuses are not meant: it is preflight that says what is migratable.
        """
        meant = [tree for tree in trees if any(self.matches(each) for each in tree.members)]
        once = list({tree.pid: tree for tree in meant}.values())
        refused = () if self.all else tuple(tree for tree in once if tree.verdict)
        return Picked(tuple(tree for tree in once if not tree.verdict), refused)


#: By what processes can be selected.
NAMES = tuple(each.name for each in fields(Selector))


def _check(name: str, value: object) -> None:
    if name == "pid":
        if not isinstance(value, int) or isinstance(value, bool) or not 1 < value <= PID_MAX:
            raise UsageError(f"{value!r} is not a PID of a process: PIDs go from 2 to {PID_MAX}.")
        return
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} is a text, not {value!r}.")
    if name == "cgroup" and not value.startswith("/"):
        raise UsageError(f"A cgroup is a path that begins with /, not {value!r}.")
    if name == "command":
        _check_pattern(value)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}.") from None


def _below(path: str, group: str) -> bool:
    """Whether a cgroup is the group or below it; the root group is above all."""
    return f"{path}/".startswith(f"{group.rstrip('/')}/")


def _unit_name(unit: str) -> str:
    """Return the unit's full name, which is a directory in the path of its cgroup."""
    return unit if "." in unit else f"{unit}.service"
