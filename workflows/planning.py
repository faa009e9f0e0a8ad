"""Finding out what the lines of a batch mean: which trees, where each shall go, what stays and why; touches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from sojourn.errors import SojournError
from sojourn.host import Host
from sojourn.images import size_for
from sojourn.model import Json, Plan
from sojourn.placement import Item, place
from sojourn.planfile import SOME_PID, Line, bad_lines, duplicates
from workflows.survey import SeenTree, read_trees


@dataclass(frozen=True)
class Wanted:
    """A tree that a line means: of which line, how large it is, and what is asked for."""

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

    def to_json(self) -> Json:
        """Return what people are shown before anything begins."""
        hosts = {"source": self.tree.line.source, "destination": self.destination}
        return {"pid": self.tree.pid, "command": self.tree.name, **hosts, "why": self.why}


@dataclass(frozen=True)
class Found:
    """What the lines of a batch mean: the trees that have a place, and what stays where it is and why."""

    placed: list[Placed]
    stays: list[Json]


def find(lines: Sequence[Line], told: list[Json] | Json, host: Host, *, is_drain: bool) -> Found:
    """Return what the lines mean, by what the hosts have told. Raises one UsageError for all bad lines."""
    surveys = told if isinstance(told, list) else [told]  # Celery makes a chain of a chord of one
    wanted, wrong, stays = _wanted(lines, {each["host"]: read_trees(each) for each in surveys})
    placed = list(_placed(wanted, host))
    nowhere = [(one.tree, one.why) for one in placed if not one.destination]
    if is_drain:
        stays += [_stay(tree.pid, tree.name, tree.line.source, why) for tree, why in nowhere]
    else:
        wrong += [(tree.line.number, f"line {tree.line.number}: {why.removesuffix('.')}") for tree, why in nowhere]
        wrong += duplicates((one.line.number, one.pid, one.line.source) for one in wanted)
    if wrong:
        raise bad_lines(wrong)
    return Found([one for one in placed if one.destination], stays)


def _wanted(
    lines: Sequence[Line], trees: dict[str, list[SeenTree]]
) -> tuple[list[Wanted], list[tuple[int, str]], list[Json]]:
    """Return which trees the lines mean, which lines mean none or one that is refused, and what ``all`` passes over."""
    wanted, wrong, stays = [], [], []
    for line in lines:
        seen = trees.get(line.source, [])
        if line.pid is not None:
            wanted.append(_named(line, line.pid, seen))
            continue
        picked = line.selector.pick(seen)
        wanted += [Wanted(line, tree.pid, tree.command, size_for(tree.memory_bytes)) for tree in picked.chosen]
        wrong += [(line.number, f"line {line.number}: process {tree.pid} {tree.verdict}") for tree in picked.refused]
        if line.selector.all:
            stays += [_stay(tree.pid, tree.command, line.source, tree.verdict) for tree in seen if tree.verdict]
        elif not picked.chosen and not picked.refused:
            wrong.append((line.number, f"line {line.number}: {line.source} has no {line.selector.describe()}"))
    return wanted, wrong, stays


def _named(line: Line, pid: int, seen: Sequence[SeenTree]) -> Wanted:
    """Return what a line that names a PID means; of what size it is is known only if the host was asked."""
    tree = next((tree for tree in seen if any(member.pid == pid for member in tree.members)), None)
    return Wanted(line, pid, f"process {pid}", size_for(tree.memory_bytes) if tree else 0)


def _placed(wanted: Sequence[Wanted], host: Host) -> Iterator[Placed]:
    """Yield where each shall go: where its line says, if that can be, or to the best place."""
    check = cache(lambda source, destination: _refusal(host, source, destination))
    items = [Item(one.name, one.line.source, one.bytes) for one in wanted if one.line.destination is None]
    best = iter(place(items, host.registry.hosts(), host.batches.promised()))
    for one in wanted:
        if one.line.destination is None:
            found = next(best)
            yield Placed(one, found.destination, found.why)
        else:
            why_not = check(one.line.source, one.line.destination)
            why = why_not or f"{one.line.destination} was asked for."
            yield Placed(one, None if why_not else one.line.destination, why)


def _refusal(host: Host, source: str, destination: str) -> str:
    """Return why nothing can go from one host to another; empty if nothing speaks against it."""
    try:
        host.registry.check(Plan(SOME_PID, source, destination))
    except SojournError as error:
        return error.message
    return ""


def _stay(pid: int, command: str, source: str, why: str) -> Json:
    return {"pid": pid, "command": command, "source": source, "why": why}
