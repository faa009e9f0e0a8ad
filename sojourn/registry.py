"""The registry: which hosts there are, and what each of them can do. A worker announces its host while it lives.

Keys:

``sojourn:hosts``        set: names of all hosts that ever announced themselves
``sojourn:host:<name>``  JSON of HostInfo; expires a few announcements after the last one
``sojourn:room:<name>``  text: how many migrations the host lets out and in at once, for the queue; expires with it
``sojourn:pace:<source>:<destination>``  JSON of Pace: the last migration between the two that had a measurable size
``sojourn:cordoned``     set: names of the hosts to which nothing new may go; stays until they are uncordoned
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from sojourn.errors import HostUnreachable, Refused, UsageError
from sojourn.model import Plan
from sojourn.store import Store

KNOWN = "sojourn:hosts"
CORDONED = "sojourn:cordoned"
ROOM = "sojourn:room:"

#: The code of a refusal because of that.
IS_CORDONED = "CORDONED"

#: A host is gone when it has missed so many announcements.
MISSED = 3

#: A smaller migration says nothing of the way between two hosts: its time goes elsewhere.
MEASURABLE_BYTES = 16_000_000


@dataclass(frozen=True)
class HostInfo:
    """What a host says of itself. ``running`` counts migrations that are not final in its journal.

    ``cluster`` is the same on hosts with the same key. ``load`` is the load average of the last minute, ``cpu_flags``
    what its processor can do for programs, and the two ``max_`` how many migrations it lets out and in at once.
    ``certified_until`` is when its certificate ends, in seconds since 1970, None where it has none. ``cordoned`` is
    said by an operator, not by the host.
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

    @property
    def encrypts(self) -> bool:
        """Whether it talks inside TLS, and only to hosts that do."""
        return self.certified_until is not None

    @property
    def is_past_its_certificate(self) -> bool:
        """Whether its certificate had ended when it said so, by its own clock; others would not believe it."""
        return self.certified_until is not None and self.certified_until < self.announced


@dataclass(frozen=True)
class Pace:
    """A migration that arrived: how many bytes of memory crossed, and how long its tree was frozen."""

    pages_bytes: int
    frozen_ms: float


class Registry:
    """Reads and writes the registry, for whoever has the key of a ``cluster``; without one none is asked for."""

    def __init__(self, store: Store, cluster: str = "") -> None:
        self._store, self._cluster = store, cluster

    def announce(self, info: HostInfo, every_s: float) -> None:
        """Say that the host is there, until it misses some announcements. Raises StoreUnreachable."""
        room = f"{info.max_outgoing} {info.max_incoming}"
        kept = ("PX", int(MISSED * every_s * 1000))
        said = [("SET", _key(info.name), json.dumps(asdict(info)), *kept), ("SET", ROOM + info.name, room, *kept)]
        self._store.write([("SADD", KNOWN, info.name), *said])

    def withdraw(self, name: str) -> None:
        """Say that the host goes away on purpose."""
        self._store.write([("DEL", _key(name), ROOM + name)])

    def hosts(self) -> dict[str, HostInfo | None]:
        """Return all hosts by name, None for one that no longer announces itself. Raises StoreUnreachable."""
        return self._said_by(sorted(self._store.members(KNOWN)))

    def alive(self) -> dict[str, HostInfo]:
        """Return the hosts that announce themselves. Raises StoreUnreachable."""
        return {name: info for name, info in self.hosts().items() if info}

    def check_host(self, name: str) -> HostInfo:
        """Return what a host says of itself.

        Raises UsageError if nobody knows it, HostUnreachable if it is silent, Refused if it has another key.
        """
        return self._ours(_present(name, self.hosts()))

    def remember(self, source: str, destination: str, pace: Pace, keep_s: float) -> None:
        """Keep how fast a migration between two hosts was, unless it was too small to tell. Raises StoreUnreachable."""
        if pace.pages_bytes >= MEASURABLE_BYTES:
            self._store.put(_pace(source, destination), json.dumps(asdict(pace)), expire_s=keep_s)

    def pace(self, source: str, destination: str) -> Pace | None:
        """Return how fast the last one between two hosts was, None if nobody knows. Raises StoreUnreachable."""
        (value,) = self._store.values([_pace(source, destination)])
        return Pace(**json.loads(value)) if value else None

    def cordon(self, name: str) -> None:
        """Let nothing new go to a host, at once and whether it answers or not. Raises UsageError if nobody knows it."""
        self._check_known(name)
        self._store.add_to_set(CORDONED, name)

    def uncordon(self, name: str) -> None:
        """Let migrations go there again. Raises UsageError if nobody knows the host."""
        self._check_known(name)
        self._store.remove_from_set(CORDONED, name)

    def check(self, plan: Plan) -> None:
        """Refuse a plan that can not work between these hosts, before anything is sent to them.

        Raises UsageError for a host that nobody knows, HostUnreachable for one whose worker is down, and
        Refused if one of them has another key, the destination is cordoned, or the two can not talk to each other.
        """
        hosts = self._two(plan)
        source, destination = (self._ours(_present(name, hosts)) for name in (plan.source, plan.destination))
        if destination.cordoned:
            raise Refused(
                f"{destination.name} is cordoned: nothing new goes there.",
                "Uncordon it, or choose another destination.",
                IS_CORDONED,
            )
        _check_languages(source, destination)

    def _ours(self, info: HostInfo) -> HostInfo:
        """Refuse a host that would refuse all our messages; nothing is compared where one side does not tell."""
        if self._cluster and info.cluster and info.cluster != self._cluster:
            raise Refused(
                f"The worker of host {info.name} has another key than this one.",
                "Put the same `key` into sojourn.toml on every machine of the cluster, and start that worker again.",
                "OTHER_KEY",
            )
        return info

    def _two(self, plan: Plan) -> dict[str, HostInfo | None]:
        """Return the two hosts of a plan if both announce themselves, else all that are known."""
        two = self._said_by([plan.source, plan.destination])
        return self.hosts() if None in two.values() else two

    def _said_by(self, names: Sequence[str]) -> dict[str, HostInfo | None]:
        values = self._store.values([_key(name) for name in names])
        said = {name: _read(value) if value else None for name, value in zip(names, values, strict=True)}
        cordoned = self._store.members(CORDONED)
        return said | {name: replace(info, cordoned=True) for name in cordoned if (info := said.get(name))}

    def is_cordoned(self, name: str) -> bool:
        """Whether nothing new may go to a host, whether it answers or not. Raises StoreUnreachable."""
        return name in self._store.members(CORDONED)

    def _check_known(self, name: str) -> None:
        known = sorted(self._store.members(KNOWN))
        if name not in known:
            raise _unknown(name, known)


def _unknown(name: str, known: Iterable[str]) -> UsageError:
    return UsageError(f"There is no host {name}.", f"Known hosts: {', '.join(known) or 'none'}.")


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


def _check_languages(source: HostInfo, destination: HostInfo) -> None:
    """Raise Refused if their certificates do not fit, or if the page server's header differs, as since CRIU 4.2."""
    for host in (source, destination):
        if host.is_past_its_certificate:
            raise Refused(
                f"The certificate of {host.name} has ended, or can not be read.",
                f"Issue a new one: sojourn pki issue {host.name}. It counts at once.",
                "CERTIFICATES",
            )
    if source.encrypts != destination.encrypts:
        one, other = (source, destination) if source.encrypts else (destination, source)
        raise Refused(
            f"{one.name} has certificates and {other.name} has none: one would encrypt, and the other would not.",
            f"Issue them (sojourn pki issue {other.name}), name them in `certificates` there, and restart its worker.",
            "CERTIFICATES",
        )
    if series(source.criu) != series(destination.criu):
        raise Refused(
            f"{source.name} has CRIU {source.criu} and {destination.name} has {destination.criu}; "
            "they do not understand each other.",
            "Install the same major and minor version of CRIU on both hosts.",
            "CRIU_VERSION",
        )


def _read(value: str) -> HostInfo:
    """Read an announcement, perhaps of another version of Sojourn: what is not known here is passed over."""
    known = {each.name for each in fields(HostInfo)}
    said = {name: each for name, each in json.loads(value).items() if name in known}
    return HostInfo(**said | {"cpu_flags": tuple(said.get("cpu_flags", ()))})


def series(version: str) -> list[str]:
    """Return major and minor version, which must be the same on both hosts of a migration."""
    return version.split(".")[:2]


def _pace(source: str, destination: str) -> str:
    return f"sojourn:pace:{source}:{destination}"


def _key(name: str) -> str:
    return f"sojourn:host:{name}"
