"""Placement: to which host a tree should go, and why; a pure function of the registry's snapshot.

A host must be able to take the tree: it answers, it is not cordoned, it has the source's key, its
CRIU, kernel and processor are compatible with the source's, and the memory is free, after
everything that is planned already. Of those that can, the one wins that keeps most memory free;
among about equals the one with the lower load; then the one whose name comes first. So items that
are placed one after another spread over the hosts, and equal input always has equal results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sojourn.cluster.compatibility import incompatibilities, series
from sojourn.cluster.registry import HostInfo

#: Free memory is compared in steps of this size: within one, the load decides.
STEP_BYTES = 256 * 2**20

#: A snapshot of the registry: None for a host that no longer announces itself.
Hosts = Mapping[str, HostInfo | None]


@dataclass(frozen=True)
class Item:
    """A tree to be placed: its name, for people and for the caller, and what it needs.

    ``bytes`` is all the memory it takes at its destination, images included (``images.size_for``).
    If a ``destination`` is given, only that one is considered.
    """

    name: str
    source: str
    bytes: int
    destination: str | None = None


@dataclass(frozen=True)
class Planned:
    """Memory that is reserved already, for a migration that is queued or under way to a host."""

    destination: str
    bytes: int


@dataclass(frozen=True)
class Placement:
    """Where an item goes, None if no host can take it, and why, in one sentence.

    ``against`` has a sentence for each host that cannot.
    """

    item: Item
    destination: str | None
    why: str
    against: Mapping[str, str]


def place(items: Iterable[Item], hosts: Hosts, planned: Iterable[Planned] = ()) -> list[Placement]:
    """Place the items in the caller's order, each after what those before it reserve."""
    room = _Room(hosts, planned)
    return [room.place(item) for item in items]


def place_elsewhere(
    item: Item, failed: Collection[str], hosts: Hosts, planned: Iterable[Planned]
) -> Placement:
    """Place an item on another host than those on which it has failed."""
    others = {name: info for name, info in hosts.items() if name not in failed}
    (placement,) = place([item], others, planned)
    return placement


class _Room:
    """What is left on each host while items are placed."""

    def __init__(self, hosts: Hosts, planned: Iterable[Planned]) -> None:
        self._hosts = hosts
        self._free = {name: info.free_bytes for name, info in hosts.items() if info}
        self._coming = dict.fromkeys(hosts, 0)
        self._compatible: dict[tuple[str, str], str] = {}
        for reservation in planned:
            self._reserve(reservation.destination, reservation.bytes)

    def place(self, item: Item) -> Placement:
        considered = [item.destination] if item.destination else sorted(self._hosts)
        against = {name: why for name in considered if (why := self._why_not(item, name))}
        able = [name for name in considered if name not in against]
        if not able:
            return Placement(item, None, _nowhere(item, against), against)
        best = min(able, key=lambda name: self._rank(item, name))
        why = self._why(item, best, len(able))
        self._reserve(best, item.bytes)
        return Placement(item, best, why, against)

    def _reserve(self, name: str, size: int) -> None:
        # A batch may have reserved memory on a host that has vanished from the registry.
        if name in self._free:
            self._free[name] -= size
            self._coming[name] += 1

    def _why_not(self, item: Item, name: str) -> str:
        """Return why a host cannot take the item, in one sentence; empty if it can."""
        pair = (item.source, name)
        # Two hosts are compared once, however many items there are.
        if pair not in self._compatible:
            self._compatible[pair] = why_not(*pair, self._hosts)
        free = self._free.get(name, 0)
        if self._compatible[pair] or item.bytes <= free:
            return self._compatible[pair]
        left = f"{_megabytes(max(0, free))} of memory left{self._after_planned(name)}"
        return f"{name} has {left}, not {_megabytes(item.bytes)}."

    def _rank(self, item: Item, name: str) -> tuple[int, float]:
        """Return the key by which the best host is the least.

        Most memory left comes first, then the lowest load; among equals ``min`` takes the first.
        """
        return -((self._free[name] - item.bytes) // STEP_BYTES), self._load(name)

    def _load(self, name: str) -> float:
        """Return the tasks per processor of a host, those included that are coming to it."""
        info = self._hosts[name]
        return (info.load + self._coming[name]) / max(1, info.cpus) if info else 0.0

    def _why(self, item: Item, name: str, able: int) -> str:
        left = _megabytes(self._free[name] - item.bytes)
        left = f"{left} of memory stay free there{self._after_planned(name)}"
        load = f"{self._load(name):.2f} tasks per processor"
        if item.destination:
            return f"{name} was requested and can take it: {left}, at {load}."
        if able == 1:
            return f"{name} is the only host that can take it: {left}, at {load}."
        return f"{name} is the best of {able} hosts that can take it: {left}, at {load}."

    def _after_planned(self, name: str) -> str:
        coming = self._coming[name]
        return f" after {coming} planned" if coming else ""


def why_not(source: str, destination: str, hosts: Hosts) -> str:
    """Return why nothing can be placed from one host to another, in one sentence; empty if it can.

    This is stricter than the check of a migration whose hosts an operator named: an older kernel
    may lack what CRIU used on the newer.
    """
    if destination == source:
        return f"{destination} is where it runs already."
    here, there = hosts.get(source), hosts.get(destination)
    if here is None:
        return f"{_absent(source, hosts)}, so it is unknown what fits."
    if there is None:
        return f"{_absent(destination, hosts)}."
    if there.cordoned:
        return f"{destination} is cordoned."
    return _incompatible(here, there)


def _absent(name: str, hosts: Hosts) -> str:
    return f"{name} does not answer" if name in hosts else f"There is no host {name}"


def _incompatible(here: HostInfo, there: HostInfo) -> str:
    reasons = incompatibilities(here.endpoint, there.endpoint)
    return reasons[0].sentence if reasons else _unequal(here, there)


def _unequal(here: HostInfo, there: HostInfo) -> str:
    """Return why what runs here could not run there, in one sentence; empty if it could."""
    lacking = sorted(set(here.cpu_flags) - set(there.cpu_flags))
    if here.machine != there.machine:
        return f"{there.name} is a machine of another kind: {there.machine}, not {here.machine}."
    if series(there.kernel) < series(here.kernel):
        return f"{there.name} has kernel {there.kernel}, older than {here.kernel}."
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        return f"{there.name}'s processor lacks {', '.join(lacking[:3])}{more}."
    return ""


def _nowhere(item: Item, against: Mapping[str, str]) -> str:
    others = [why for name, why in against.items() if name != item.source or item.destination]
    return f"No host can take {item.name}: {' '.join(others) or 'there is no other.'}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
