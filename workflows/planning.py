"""What the lines of a batch mean: which trees, where each shall go, what stays and why.

Nothing here touches anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from sojourn.cluster.batches import who
from sojourn.cluster.placement import Item, place
from sojourn.cluster.planfile import SKIPPED, SOME_PID, Line, bad_lines, duplicates
from sojourn.errors import SojournError, UsageError
from sojourn.migration.context import Host
from sojourn.model import Json, Plan
from sojourn.system.alarm import TimedOut, at_most
from sojourn.transfer.image_directory import size_for
from workflows.survey import SeenTree, read_trees

#: Why something stays, for machines: no host can take it, or it cannot migrate.
NOWHERE, CANNOT_MOVE = "NOWHERE", "CANNOT_MOVE"

#: How long all patterns of a batch may take to match, in seconds; all command lines of a thousand
#: hosts take less than one.
MATCHED_WITHIN_S = 10.0


@dataclass(frozen=True)
class Wanted:
    """A tree that a line means, the command of its root if that was found, and how large it is."""

    line: Line
    pid: int
    name: str
    bytes: int


@dataclass(frozen=True)
class Placed:
    """A tree that a line means, where it shall go (None: nowhere), and why, in one sentence."""

    tree: Wanted
    destination: str | None
    why: str


@dataclass(frozen=True)
class Found:
    """What the lines of a batch mean: the trees that have a place, and what stays and why.

    ``waiting`` are those among what stays that no host can take now.
    """

    placed: list[Placed]
    stays: list[Json]
    waiting: list[Placed]


#: The trees that are meant, the lines that are wrong, and what stays.
Selected = tuple[list[Wanted], list[tuple[int, str]], list[Json]]


def find(lines: Sequence[Line], reports: list[Json] | Json, host: Host, *, is_drain: bool) -> Found:
    """Return what the lines mean, by the hosts' surveys.

    Raises one UsageError for all malformed lines.
    """
    # Celery makes a chain of a chord of one, whose answer comes by itself.
    surveys = reports if isinstance(reports, list) else [reports]
    trees = {survey["host"]: read_trees(survey) for survey in surveys}
    wanted, wrong, stays = _in_time(lines, trees)
    placed = list(_placed(wanted, host))
    nowhere = [(place.tree, place.why) for place in placed if not place.destination]
    if is_drain:
        stays += [
            _stay(tree.pid, tree.name, tree.line.source, why, NOWHERE) for tree, why in nowhere
        ]
    else:
        wrong += [
            (tree.line.number, f"line {tree.line.number}: {why.removesuffix('.')}")
            for tree, why in nowhere
        ]
        wrong += duplicates((tree.line.number, tree.pid, tree.line.source) for tree in wanted)
    if wrong:
        raise bad_lines(wrong)
    waiting = [place for place in placed if not place.destination]
    return Found([place for place in placed if place.destination], stays, waiting)


def _in_time(lines: Sequence[Line], trees: dict[str, list[SeenTree]]) -> Selected:
    """Return what ``_wanted`` does, within a time. Raises UsageError."""
    # A pattern can take years on one command line.
    try:
        with at_most(MATCHED_WITHIN_S):
            return _wanted(lines, trees)
    except TimedOut:
        raise UsageError(
            f"The regular expressions take longer than {MATCHED_WITHIN_S:g} s to match.",
            "Write them without repetitions of repetitions, such as (a+)+.",
        ) from None


def _wanted(lines: Sequence[Line], trees: dict[str, list[SeenTree]]) -> Selected:
    """Return the trees that the lines mean, the lines that are wrong, and what ``all`` leaves."""
    wanted, wrong, stays = [], [], []
    for line in lines:
        if line.pid is not None:
            wanted.append(_named(line, line.pid, trees.get(line.source, [])))
            continue
        seen, kept = _without_skipped(line, trees.get(line.source, []))
        stays += kept
        picked = line.selector.pick(seen)
        wanted += [
            Wanted(line, tree.pid, tree.command, size_for(tree.memory_bytes))
            for tree in picked.chosen
        ]
        wrong += [
            (line.number, f"line {line.number}: process {tree.pid} {tree.verdict}")
            for tree in picked.refused
        ]
        if line.selector.all:
            stays += [
                _stay(tree.pid, tree.command, line.source, tree.verdict, CANNOT_MOVE)
                for tree in seen
                if tree.verdict
            ]
        elif not picked.chosen and not picked.refused:
            sentence = f"line {line.number}: {line.source} has no {line.selector.describe()}"
            wrong.append((line.number, sentence))
    return wanted, wrong, stays


def _without_skipped(line: Line, trees: Sequence[SeenTree]) -> tuple[list[SeenTree], list[Json]]:
    """Return the trees that the line may mean, and what it says shall stay."""
    left, stays = [], []
    for tree in trees:
        why = next((one for one in line.skip if any(map(one.matches, tree.members))), None)
        if why is None:
            left.append(tree.asked_for(line.options))
        else:
            sentence = f"shall stay: it is skipped by {why.describe()}"
            stays.append(_stay(tree.pid, tree.command, line.source, sentence, SKIPPED))
    return left, stays


def _named(line: Line, pid: int, seen: Sequence[SeenTree]) -> Wanted:
    """Return the tree of a line that names a PID, without name and size if its host has none."""
    tree = next((tree for tree in seen if any(member.pid == pid for member in tree.members)), None)
    if tree is None:
        return Wanted(line, pid, "", 0)
    return Wanted(line, pid, tree.command, size_for(tree.memory_bytes))


def _placed(wanted: Sequence[Wanted], host: Host) -> Iterator[Placed]:
    """Yield where each tree shall go: to its line's destination if that can be, or the best one."""
    # A plan may have thousands of lines for a few pairs of hosts, and each check asks Redis.
    check = cache(lambda source, destination: _refusal(host, source, destination))
    items = [
        Item(who(tree.pid, tree.name), tree.line.source, tree.bytes)
        for tree in wanted
        if tree.line.destination is None
    ]
    best = iter(place(items, host.registry.hosts(), host.batches.promised()))
    for tree in wanted:
        if tree.line.destination is None:
            found = next(best)
            yield Placed(tree, found.destination, found.why)
        else:
            why_not = check(tree.line.source, tree.line.destination)
            why = why_not or f"{tree.line.destination} was asked for."
            yield Placed(tree, None if why_not else tree.line.destination, why)


def _refusal(host: Host, source: str, destination: str) -> str:
    """Return why nothing can go from one host to another; empty if nothing speaks against it."""
    try:
        host.registry.check(Plan(SOME_PID, source, destination))
    except SojournError as error:
        return error.message
    return ""


def _stay(pid: int, command: str, source: str, why: str, code: str) -> Json:
    return {"pid": pid, "command": command, "source": source, "why": why, "code": code}
