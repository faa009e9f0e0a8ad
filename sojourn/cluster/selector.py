"""Selectors: which processes of a host move, by PID, command, user, cgroup, systemd unit, or all.

A selector is matched against every process of every tree that could be migrated; a match anywhere
inside a tree selects the tree, once, by its root, since a tree moves as a whole. Pure functions:
the caller reads what is on the host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Generic, Protocol, TypeVar

from sojourn.errors import UsageError
from sojourn.model import PID_MAX, Json
from sojourn.text import quoted


@dataclass(frozen=True)
class Process:
    """What a selector matches: ``user`` is a uid, ``user_name`` may be empty, ``cgroup`` a path."""

    pid: int
    command: str
    user: int
    user_name: str
    cgroup: str


class Tree(Protocol):
    """A tree as preflight sees it: its root, its processes, and why it cannot be migrated."""

    @property
    def pid(self) -> int:
        """The root's PID."""

    @property
    def verdict(self) -> str:
        """Why it cannot be migrated; empty if it can."""

    @property
    def members(self) -> Sequence[Process]:
        """All processes of the tree, the root among them."""


AnyTree = TypeVar("AnyTree", bound=Tree)


@dataclass(frozen=True)
class Picked(Generic[AnyTree]):
    """The trees that were selected: those that can migrate, and those that preflight refuses."""

    chosen: tuple[AnyTree, ...]
    refused: tuple[AnyTree, ...]


@dataclass(frozen=True)
class Selector:
    """Which processes are selected; of several conditions all must hold for the same process.

    ``command`` is a regular expression, searched for anywhere in the command line. ``user`` is a
    name or a uid. ``cgroup`` is a path as in ``/proc/PID/cgroup``: that group and those below it.
    ``unit`` is a systemd unit, a ``.service`` if it has no suffix. ``all`` excludes the others.
    Raises UsageError for malformed values and combinations.
    """

    pid: int | None = None
    command: str | None = None
    user: str | None = None
    cgroup: str | None = None
    unit: str | None = None
    all: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.all, bool):
            raise UsageError(f"all is true or false, not {quoted(self.all)}.")
        given = [
            name for name, value in self.to_json().items() if name != "all" and value is not None
        ]
        if self.all and given:
            raise UsageError(f"All processes, or only those by {given[0]}: not both.")
        if not self.all and not given:
            raise UsageError("No processes are selected.", f"Give one of: {', '.join(NAMES)}.")
        for name in given:
            _check(name, getattr(self, name))

    @classmethod
    def from_json(cls, data: Json) -> Selector:
        """Build a selector from untrusted JSON. Raises UsageError."""
        unknown = sorted(set(data) - set(NAMES))
        if unknown:
            raise UsageError(
                f"Processes cannot be selected by {quoted(unknown[0])}.",
                f"Possible: {', '.join(NAMES)}.",
            )
        return cls(**data)

    @classmethod
    def parsed(cls, text: str) -> Selector:
        """Read one condition as people write it: ``unit=nginx``, or a PID. Raises UsageError."""
        name, _, value = text.partition("=") if "=" in text else ("pid", "", text)
        return cls.from_json({name: int(value) if name == "pid" and value.isdecimal() else value})

    def to_json(self) -> Json:
        """Return the selector as plain JSON, with only the conditions that it has."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None and value is not False
        }

    def describe(self) -> str:
        """Return the selector in words, for people."""
        if self.all:
            return "all processes"
        return " and ".join(f"{name} {value}" for name, value in self.to_json().items())

    def matches(self, process: Process) -> bool:
        """Whether a process is selected."""
        return (
            self.pid in {None, process.pid}
            and (self.command is None or re.search(self.command, process.command) is not None)
            and self.user in {None, process.user_name, str(process.user)}
            and (self.cgroup is None or _below(process.cgroup, self.cgroup))
            and (self.unit is None or _unit_name(self.unit) in process.cgroup.split("/"))
        )

    def pick(self, trees: Iterable[AnyTree]) -> Picked[AnyTree]:
        """Return the trees of a host in which a process is selected, once each, in their order.

        With ``all``, those that preflight refuses are not selected: everything that can be migrated
        is what was requested.
        """
        selected = [tree for tree in trees if any(map(self.matches, tree.members))]
        once = list({tree.pid: tree for tree in selected}.values())
        refused = () if self.all else tuple(tree for tree in once if tree.verdict)
        return Picked(tuple(tree for tree in once if not tree.verdict), refused)


#: The conditions by which processes can be selected.
NAMES = tuple(condition.name for condition in fields(Selector))


def _check(name: str, value: object) -> None:
    if name == "pid":
        if not isinstance(value, int) or isinstance(value, bool) or not 1 < value <= PID_MAX:
            raise UsageError(
                f"{quoted(value)} is not a PID of a process: PIDs go from 2 to {PID_MAX}."
            )
        return
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} is a text, not {quoted(value)}.")
    if name == "cgroup" and not value.startswith("/"):
        raise UsageError(f"A cgroup is a path that begins with /, not {quoted(value)}.")
    if name == "command":
        _check_pattern(value)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    # The others: nested too deeply, or with a repetition that is too large.
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{quoted(pattern)} is not a regular expression: {error}.") from None


def _below(path: str, group: str) -> bool:
    """Whether a cgroup is the group or below it; all cgroups are below the root group."""
    # With a slash at both ends, ``/system`` is not above ``/system.slice``.
    return f"{path}/".startswith(f"{group.rstrip('/')}/")


def _unit_name(unit: str) -> str:
    """Return the unit's full name, which is a component of its cgroup's path."""
    return unit if "." in unit else f"{unit}.service"
