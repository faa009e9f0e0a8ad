"""The registry: which hosts there are, and what each can do, as their workers announce it.

Keys:

``sojourn:hosts``        set: names of all hosts that ever announced themselves
``sojourn:host:<name>``  JSON of HostInfo, sealed by that host; expires a few announcements after
                         the last one
``sojourn:room:<name>``  text: how many migrations the host lets out and in at once, for the queue;
                         expires with it
``sojourn:pace:<source>:<destination>``  JSON of Pace: the last migration between the two that had a
                                         measurable size, and no limit of its bandwidth
``sojourn:window:<source>:<destination>``  JSON of Window: the same of the last one in post-copy
``sojourn:journal:<name>``  JSON of Mark: how far that host's journal was, sealed by that host
``sojourn:cordons``      hash: name of a host to which nothing new may go to its cordon, sealed;
                         stays until the host is uncordoned

A host whose announcement it has not sealed itself is silent, and a cordon that nobody has sealed is
none. The queue's scripts cannot check a seal: by what is forged they make wait for a while, and no
host takes more than its own slots allow.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from sojourn.cluster import records
from sojourn.cluster.compatibility import Endpoint, incompatibilities
from sojourn.cluster.doubt import Contact
from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import HostUnreachable, Refused, UsageError
from sojourn.model import HOST_NAME, Json, Plan
from sojourn.state.mark import Mark

KNOWN = "sojourn:hosts"
CORDONED = "sojourn:cordons"
ROOM = "sojourn:room:"

#: The code of a refusal because the destination is cordoned.
IS_CORDONED = "CORDONED"

#: What seals name an announcement, a cordon, and how far a journal was.
ANNOUNCEMENT, CORDON, MARK = "announcement", "cordon", "mark"

#: How many hosts are read at most: whoever writes to Redis can add names without end.
MOST_HOSTS = 5_000

#: How many hosts an error names.
NAMED = 20

#: How many announcements a host may miss before it counts as silent.
MISSED = 3

#: A smaller migration does not show how fast memory crosses: most of its time goes elsewhere.
MEASURABLE_BYTES = 16_000_000


@dataclass(frozen=True)
class HostInfo:
    """What a host announces about itself.

    ``running`` counts migrations that are not final in its journal. ``cluster`` is the same on
    hosts with the same key. ``load`` is the load average of the last minute, ``cpu_flags`` what its
    processor offers to programs, and the two ``max_`` how many migrations it lets out and in at
    once. ``certified_until`` is when its certificate ends, in seconds since 1970, None where it has
    none. ``identity`` distinguishes machines of one name. ``cordoned`` is an operator's decision,
    which the registry adds.
    """

    name: str
    address: str
    sojourn: str
    criu: str
    kernel: str
    machine: str
    cpus: int
    memory_bytes: int
    free_bytes: int
    running: int
    announced: float
    load: float = 0.0
    cpu_flags: tuple[str, ...] = ()
    max_outgoing: int = 0
    max_incoming: int = 0
    cordoned: bool = False
    cluster: str = ""
    certified_until: float | None = None
    identity: str = ""

    @property
    def endpoint(self) -> Endpoint:
        """What decides whether it can talk to another host.

        Whether its certificate had ended when it announced itself is by its own clock.
        """
        until = self.certified_until
        ended = until is not None and until < self.announced
        return Endpoint(self.name, self.cluster, self.criu, until is not None, ended)


@dataclass(frozen=True)
class Pace:
    """How many bytes of memory a migration moved, and how long its tree was frozen."""

    pages_bytes: int
    frozen_ms: float


@dataclass(frozen=True)
class Window:
    """How many bytes of memory came after the process ran, in post-copy, and how long that took."""

    pages_bytes: int
    settled_ms: float


class Registry:
    """Reads and writes the registry.

    ``cluster`` is what hosts with the caller's key announce; without one, their keys are not
    compared with the caller's.
    """

    def __init__(self, store: Store, cluster: str = "") -> None:
        self._store, self._caller = store, Endpoint("this machine", cluster)
        self._sealed = Sealed(store)

    def announce(
        self, info: HostInfo, every_s: float, mark: Mark | None = None, *, cordon: bool = False
    ) -> None:
        """Announce a host, in its name, until it misses some, with how far its journal is.

        With ``cordon`` nobody sees it announced before it is cordoned. Raises StoreUnreachable.
        """
        seal = replace(self._sealed.seal, host=info.name)
        announced = seal.close(ANNOUNCEMENT, info.name, asdict(info))
        marked = seal.close(MARK, info.name, mark.to_json()) if mark else None
        room = f"{info.max_outgoing} {info.max_incoming}"
        # Both keys expire together: the queue must see no room on a host that is silent.
        expiry = ("PX", int(MISSED * every_s * 1000))
        self._store.write(
            [
                ("SADD", KNOWN, info.name),
                *([("HSET", CORDONED, info.name, self._cordon(info.name))] if cordon else []),
                ("SET", _key(info.name), announced, *expiry),
                ("SET", ROOM + info.name, room, *expiry),
                *([("SET", _mark(info.name), marked)] if marked else []),
            ]
        )

    def announced(self, name: str) -> HostInfo | None:
        """Return what a host announces, None if it is silent. Raises StoreUnreachable."""
        return self._announced_by([name])[name]

    def mark(self, name: str) -> Mark | None:
        """Return how far a host's journal was, as it has left it. Raises StoreUnreachable."""
        (text,) = self._store.values([_mark(name)])
        return Mark.of(self._sealed.content(MARK, name, text, by=name)) if text else None

    def contacts(self, names: Sequence[str]) -> dict[str, Contact]:
        """Return of hosts whether they answer, and when they did last. Raises StoreUnreachable."""
        # The mark is written with each announcement, and does not expire.
        marks = self._store.values([_mark(name) for name in names])
        hosts = self._announced_by(names)
        found = {}
        for name, text in zip(names, marks, strict=True):
            opened = self._sealed.opened(MARK, name, text, by=name) if text else None
            # Without the key nothing of the seal is known, and its time is 0.
            found[name] = Contact(hosts[name] is not None, opened.at or None if opened else None)
        return found

    def withdraw(self, name: str) -> None:
        """Remove the announcement of a host that is shut down on purpose."""
        self._store.write([("DEL", _key(name), ROOM + name)])

    def hosts(self) -> dict[str, HostInfo | None]:
        """Return all hosts by name, None for one that is silent. Raises StoreUnreachable."""
        return self._announced_by(sorted(self._known()))

    def alive(self) -> dict[str, HostInfo]:
        """Return the hosts that announce themselves. Raises StoreUnreachable."""
        return {name: info for name, info in self.hosts().items() if info}

    def are_alive(self, *names: str) -> bool:
        """Whether all these hosts announce themselves. Raises StoreUnreachable."""
        return None not in self._announced_by(names).values()

    def _known(self) -> set[str]:
        """Return the names of all hosts, at most ``MOST_HOSTS``; others are no names."""
        names = self._store.some_members(KNOWN, MOST_HOSTS)
        return {name for name in names if HOST_NAME.fullmatch(name)}

    def check_host(self, name: str) -> HostInfo:
        """Return what a host announces.

        Raises UsageError for an unknown host, HostUnreachable if it is silent, Refused if it has
        another key than the caller.
        """
        return self._with_our_key(_present(name, self.hosts()))

    def least_busy(self) -> str:
        """Return the host with the fewest migrations under way, of those with the caller's key.

        Raises HostUnreachable if none announces itself.
        """
        for info in sorted(self.alive().values(), key=lambda info: info.running):
            with contextlib.suppress(Refused):
                return self._with_our_key(info).name
        raise HostUnreachable("No host announces itself.", "Start a worker: sojourn worker.")

    def remember(self, source: str, destination: str, pace: Pace, keep_s: float) -> None:
        """Keep how fast a migration was, if that can be measured. Raises StoreUnreachable."""
        self._keep(_pace(source, destination), pace, keep_s)

    def pace(self, source: str, destination: str) -> Pace | None:
        """Return how fast the last one between two hosts was, if known. Raises StoreUnreachable."""
        kept = self._kept(_pace(source, destination))
        return records.of(Pace, kept)

    def remember_window(self, source: str, destination: str, window: Window, keep_s: float) -> None:
        """Keep how long the window of a migration was, if it can be measured by that.

        Raises StoreUnreachable.
        """
        self._keep(_window(source, destination), window, keep_s)

    def window(self, source: str, destination: str) -> Window | None:
        """Return how long the last one between two hosts was, if known. Raises StoreUnreachable."""
        kept = self._kept(_window(source, destination))
        return records.of(Window, kept)

    def _keep(self, key: str, measured: Pace | Window, keep_s: float) -> None:
        if measured.pages_bytes >= MEASURABLE_BYTES:
            self._store.put(key, json.dumps(asdict(measured)), expire_s=keep_s)

    def _kept(self, key: str) -> Json | None:
        (value,) = self._store.values([key])
        return records.mapping(value)

    def cordon(self, name: str) -> None:
        """Let nothing new go to a host, silent or not. Raises UsageError for an unknown host."""
        self._check_known(name)
        self._store.put_fields(CORDONED, {name: self._cordon(name)})

    def uncordon(self, name: str) -> None:
        """Let migrations go to a host again. Raises UsageError for an unknown host."""
        self._check_known(name)
        self._store.write([("HDEL", CORDONED, name)])

    def _cordon(self, name: str) -> str:
        return self._sealed.text(CORDON, name, {"host": name})

    def check(self, plan: Plan) -> None:
        """Refuse a plan that cannot work between its hosts, before anything is sent to them.

        Raises UsageError for an unknown host, HostUnreachable for one whose worker is down, and
        Refused if one of them has another key than the caller, if the destination is cordoned, or
        if the two cannot talk to each other.
        """
        hosts = self._two(plan)
        source, destination = (
            self._with_our_key(_present(name, hosts)) for name in (plan.source, plan.destination)
        )
        if destination.cordoned:
            raise Refused(
                f"{destination.name} is cordoned: nothing new goes there.",
                "Uncordon it, or choose another destination.",
                IS_CORDONED,
            )
        _check_compatible(source.endpoint, destination.endpoint)

    def _with_our_key(self, info: HostInfo) -> HostInfo:
        """Return the host, unless it would refuse all messages of the caller. Raises Refused."""
        # Of the caller only the key is known, so nothing else is compared.
        _check_compatible(self._caller, Endpoint(info.name, info.cluster))
        return info

    def _two(self, plan: Plan) -> dict[str, HostInfo | None]:
        """Return the two hosts of a plan if both announce themselves, else all that are known."""
        two = self._announced_by([plan.source, plan.destination])
        # All hosts are read only where one is missing: the error names those that are known.
        return self.hosts() if None in two.values() else two

    def _announced_by(self, names: Sequence[str]) -> dict[str, HostInfo | None]:
        values = self._store.values([_key(name) for name in names])
        hosts = {
            name: self._read(name, value) if value else None
            for name, value in zip(names, values, strict=True)
        }
        cordoned = self._cordoned()
        return hosts | {
            name: replace(info, cordoned=True) for name in cordoned if (info := hosts.get(name))
        }

    def is_cordoned(self, name: str) -> bool:
        """Whether nothing new may go to a host, silent or not. Raises StoreUnreachable."""
        text = self._store.field(CORDONED, name)
        return bool(text and self._sealed.content(CORDON, name, text))

    def _cordoned(self) -> set[str]:
        found = self._store.some_fields(CORDONED, MOST_HOSTS).items()
        return {name for name, text in found if self._sealed.content(CORDON, name, text)}

    def _read(self, name: str, value: str) -> HostInfo | None:
        """Read an announcement, None for one that this host has not made."""
        if self._is_strangers(value):
            return _read(name, value)
        announced = self._sealed.content(ANNOUNCEMENT, name, value, by=name)
        return _read(name, value) if announced else None

    def _is_strangers(self, value: str) -> bool:
        """Whether a host announces that it has another key: it is named, and never used."""
        theirs = (records.mapping(value) or {}).get("cluster")
        ours = self._caller.cluster
        return bool(ours and theirs and theirs != ours)

    def _check_known(self, name: str) -> None:
        if not HOST_NAME.fullmatch(name) or not self._store.is_member(KNOWN, name):
            raise _unknown(name, sorted(self._known()))


def _unknown(name: str, known: Iterable[str]) -> UsageError:
    names = list(known)
    more = ", …" if len(names) > NAMED else ""
    listed = ", ".join(names[:NAMED]) + more if names else "none"
    return UsageError(f"There is no host {name}.", f"Known hosts: {listed}.")


def _present(name: str, hosts: Mapping[str, HostInfo | None]) -> HostInfo:
    if name not in hosts:
        raise _unknown(name, hosts)
    info = hosts[name]
    if info is None:
        raise HostUnreachable(
            f"The worker of host {name} does not answer.",
            "Start it there: systemctl start sojourn-worker, or sojourn worker.",
        )
    return info


def _check_compatible(one: Endpoint, other: Endpoint) -> None:
    """Raise Refused with the first reason why two endpoints cannot talk to each other, if any."""
    for reason in incompatibilities(one, other):
        raise Refused(reason.sentence, reason.hint, reason.code)


def _read(name: str, value: str | None) -> HostInfo | None:
    """Return a host's announcement, None if there is none, or it is none of this host."""
    info = records.read(HostInfo, value)
    return info if info and info.name == name else None


def _pace(source: str, destination: str) -> str:
    return f"sojourn:pace:{source}:{destination}"


def _window(source: str, destination: str) -> str:
    return f"sojourn:window:{source}:{destination}"


def _mark(name: str) -> str:
    return f"sojourn:journal:{name}"


def _key(name: str) -> str:
    return f"sojourn:host:{name}"
