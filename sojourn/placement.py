"""Placement: to which host a tree should go, and why; a pure function over the registry's snapshot.

A host must be able to take the tree: it answers, it is not cordoned, it has the source's key, its CRIU, kernel and
processor are compatible with the source's, and the memory is there, after everything that is planned already. Of those
that can, the one wins that keeps most memory free; among about equals the one with less to do; then the one whose name
comes first. So what is placed one after another spreads by itself, and the same question always has the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sojourn.registry import HostInfo, series

#: Free memory that differs by less is called equal, and the load decides.
STEP_BYTES = 256 * 2**20

#: What the registry knows: None for a host that no longer announces itself.
Hosts = Mapping[str, HostInfo | None]


@dataclass(frozen=True)
class Item:
    """A tree that wants a place: who it is, for people and for the caller, and what it needs at its destination.

    ``bytes`` is what it takes there in all, images included (``images.size_for``). With a ``destination`` that was
    named, only that one is looked at.
    """

    name: str
    source: str
    bytes: int
    destination: str | None = None


@dataclass(frozen=True)
class Planned:
    """Memory that is promised already: a migration that is queued or under way to a host."""

    destination: str
    bytes: int


@dataclass(frozen=True)
class Placement:
    """Where an item goes and why, in one sentence; None if no host can take it. ``against`` says why not, per host."""

    item: Item
    destination: str | None
    why: str
    against: Mapping[str, str]


def place(items: Iterable[Item], hosts: Hosts, planned: Iterable[Planned] = ()) -> list[Placement]:
    """Place the items one after another, each with those before it in mind; the order is the caller's."""
    room = _Room(hosts, planned)
    return [room.place(item) for item in items]


class _Room:
    """What is left on each host while items are placed."""

    def __init__(self, hosts: Hosts, planned: Iterable[Planned]) -> None:
        self._hosts = hosts
        self._free = {name: info.free_bytes for name, info in hosts.items() if info}
        self._coming = dict.fromkeys(hosts, 0)
        self._compatible: dict[tuple[str, str], str] = {}
        for each in planned:
            self._promise(each.destination, each.bytes)

    def place(self, item: Item) -> Placement:
        asked = [item.destination] if item.destination else sorted(self._hosts)
        against = {name: why for name in asked if (why := self._why_not(item, name))}
        able = [name for name in asked if name not in against]
        if not able:
            return Placement(item, None, _nowhere(item, against), against)
        best = min(able, key=lambda name: self._rank(item, name))
        why = self._why(item, best, len(able))
        self._promise(best, item.bytes)
        return Placement(item, best, why, against)

    def _promise(self, name: str, size: int) -> None:
        if name in self._free:
            self._free[name] -= size
            self._coming[name] += 1

    def _why_not(self, item: Item, name: str) -> str:
        """Return why a host can not take the item, in one sentence; empty if it can."""
        pair = (item.source, name)
        if pair not in self._compatible:
            self._compatible[pair] = why_not(*pair, self._hosts)
        free = self._free.get(name, 0)
        if self._compatible[pair] or item.bytes <= free:
            return self._compatible[pair]
        return (
            f"{name} has {_megabytes(max(0, free))} of memory left{self._promised(name)}, not {_megabytes(item.bytes)}."
        )

    def _rank(self, item: Item, name: str) -> tuple[int, float]:
        """Most memory left first, then least to do; among equals ``min`` takes the first name."""
        return -((self._free[name] - item.bytes) // STEP_BYTES), self._busy(name)

    def _busy(self, name: str) -> float:
        """How much each processor has to do; what is coming will want to run too."""
        info = self._hosts[name]
        return (info.load + self._coming[name]) / max(1, info.cpus) if info else 0.0

    def _why(self, item: Item, name: str, able: int) -> str:
        left = f"{_megabytes(self._free[name] - item.bytes)} of memory stay free there{self._promised(name)}"
        load = f"{self._busy(name):.2f} tasks per processor"
        if item.destination:
            return f"{name} was asked for and can take it: {left}, at {load}."
        if able == 1:
            return f"{name} is the only host that can take it: {left}, at {load}."
        return f"{name} is the best of {able} hosts that can take it: {left}, at {load}."

    def _promised(self, name: str) -> str:
        coming = self._coming[name]
        return f" after {coming} planned" if coming else ""


def why_not(source: str, destination: str, hosts: Hosts) -> str:
    """Return why nothing can be placed from one host to another, in one sentence; empty if nothing speaks against it.

    Stricter than what is refused when an operator names both: an older kernel may lack what CRIU used on the newer.
    """
    if destination == source:
        return f"{destination} is where it runs already."
    here, there = hosts.get(source), hosts.get(destination)
    if here is None:
        return f"{_absent(source, hosts)}, so nobody knows what fits."
    if there is None:
        return f"{_absent(destination, hosts)}."
    if there.cordoned:
        return f"{destination} is cordoned."
    return _incompatible(here, there)


def _absent(name: str, hosts: Hosts) -> str:
    return f"{name} does not answer" if name in hosts else f"There is no host {name}"


def _incompatible(here: HostInfo, there: HostInfo) -> str:
    return _mute(here, there) or _unequal(here, there)


def _mute(here: HostInfo, there: HostInfo) -> str:
    """Return why the two could not talk to each other."""
    if here.cluster != there.cluster:
        return f"{there.name}'s worker has another key than {here.name}'s."
    if here.encrypts != there.encrypts:
        return f"Of {here.name} and {there.name} only one has certificates."
    if past := next((host.name for host in (here, there) if host.is_past_its_certificate), ""):
        return f"The certificate of {past} has ended."
    if series(here.criu) != series(there.criu):
        return f"{there.name} has CRIU {there.criu}, which does not understand {here.criu}."
    return ""


def _unequal(here: HostInfo, there: HostInfo) -> str:
    """Return why what runs here could not run there."""
    lacking = sorted(set(here.cpu_flags) - set(there.cpu_flags))
    if here.machine != there.machine:
        return f"{there.name} is a machine of another kind: {there.machine}, not {here.machine}."
    if _release(there.kernel) < _release(here.kernel):
        return f"{there.name} has kernel {there.kernel}, older than {here.kernel}."
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        return f"{there.name}'s processor lacks {', '.join(lacking[:3])}{more}."
    return ""


def _release(kernel: str) -> tuple[int, ...]:
    """Return the numbers that count of a kernel's release; ``6.18.5+deb13-amd64`` is (6, 18)."""
    return tuple(int(number) for number in re.findall(r"\d+", kernel)[:2])


def _nowhere(item: Item, against: Mapping[str, str]) -> str:
    others = [why for name, why in against.items() if name != item.source or item.destination]
    return f"No host can take {item.name}: {' '.join(others) or 'there is no other.'}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
