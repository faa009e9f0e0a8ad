"""The cluster as this host sees it: Redis, its clock, our own worker, and the other hosts."""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sojourn import __version__, processor
from sojourn.doctor.finding import Finding, failure, ok, warning
from sojourn.errors import StoreUnreachable
from sojourn.preflight.finding import named
from sojourn.registry import HostInfo, series
from sojourn.settings import Settings
from sojourn.store import Store

#: Tests run with this Redis and with later ones.
OLDEST_REDIS = 7

#: How far a clock may be from Redis's before timelines of two hosts make people wonder.
SKEW_S = 1.0

#: How often Redis's clock is asked; the quickest answer tells most exactly.
CLOCK_TRIES = 5

#: How long a peer may take to answer or refuse a connection.
REACH_S = 2.0

#: Where the kernel says from which ports it hands out free ones (ip(7)), as ``page_server`` uses them.
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

#: ``IP_RECVERR``, ``IPV6_RECVERR`` and the origins ``SO_EE_ORIGIN_ICMP…`` of include/uapi/linux/{in,in6,errqueue}.h.
IP_RECVERR, IPV6_RECVERR, FROM_ICMP = 11, 25, {2, 3}


def redis(store: Store) -> Finding:
    """Look whether Redis answers and keeps what it is told. Raises StoreUnreachable if it does not answer."""
    store.ping()
    try:
        said = store.about()
    except StoreUnreachable as error:
        advice = "Let the user of `redis_url` send INFO, if that shall be looked at."
        return warning("redis", f"Redis answers, but does not tell of itself: {error.message}", advice)
    return judged(said)


def judged(said: Mapping[str, object]) -> Finding:
    """Judge what Redis says of itself (https://redis.io/docs/latest/commands/info)."""
    version, policy = str(said["redis_version"]), said["maxmemory_policy"]
    if said["role"] != "master":
        return failure("redis", "This Redis is a replica: it takes no writes.", "Name the primary in `redis_url`.")
    if said["maxmemory"] and policy != "noeviction":
        sentence = f"Redis {version} throws keys away when its memory is full (maxmemory-policy {policy})."
        return failure("redis", sentence, "Set maxmemory-policy noeviction.")
    if int(version.split(".", maxsplit=1)[0]) < OLDEST_REDIS:
        return warning("redis", f"Redis {version} is older than what is tested.", f"Install {OLDEST_REDIS}.0 or later.")
    if not said["aof_enabled"]:
        sentence = f"Redis {version} forgets the queue, and what is cordoned, when it is started again."
        return warning("redis", sentence, "Set appendonly yes.")
    return ok("redis", f"Redis {version} answers, and keeps what it is told (AOF)")


def clock(store: Store) -> Finding:
    """Compare our clock with Redis's, as exactly as the quickest of some answers tells. Raises StoreUnreachable."""
    apart, unsure = min((_skew(store) for _ in range(CLOCK_TRIES)), key=lambda each: each[1])
    if abs(apart) > SKEW_S + unsure:
        way = "ahead of" if apart > 0 else "behind"
        return warning(
            "clock",
            f"This host's clock is {abs(apart):.1f} s {way} Redis's. Nothing is decided by it, but timelines and "
            "logs of two hosts will not fit together.",
            "Let chrony or systemd-timesyncd keep the time on all hosts.",
        )
    return ok("clock", f"within {abs(apart) + unsure:.3f} s of Redis's")


def worker(settings: Settings, told: HostInfo | None, pid: int | None) -> Finding:
    """Look whether our worker runs (``pid`` is what it left) and announces this host as it is set up now."""
    name, runs = settings.host, is_running(pid)
    if told is None:
        said = "runs but does not announce itself: can it reach Redis?" if runs else "does not run."
        return failure(
            "worker", f"The worker of {name} {said}", "systemctl start sojourn-worker; journalctl -u sojourn-worker"
        )
    if not runs:
        advice = "systemctl start sojourn-worker; or, if another host bears that name, give this one another."
        return failure("worker", f"{name} is announced, but its worker does not run here.", advice)
    ours = {"address": settings.address, "Sojourn": __version__, "kernel": platform.release(), "key": settings.cluster}
    theirs = {"address": told.address, "Sojourn": told.sojourn, "kernel": told.kernel, "key": told.cluster}
    stale = [f"{what} {theirs[what]} instead of {ours[what]}" for what in ours if theirs[what] != ours[what]]
    if stale:
        advice = "If only this host bears that name: systemctl restart sojourn-worker"
        return warning("worker", f"The worker announces {named(stale)}.", advice)
    return ok("worker", f"it runs as process {pid}, and announces {name} at {told.address}")


def is_running(pid: int | None) -> bool:
    """Whether the process is there that a worker has left the PID of."""
    return pid is not None and Path(f"/proc/{pid}").exists()


def peers(settings: Settings, criu: str, hosts: Mapping[str, HostInfo | None]) -> Iterator[Finding]:
    """Yield how every other host differs from this one so that nothing can move between the two."""
    others = {other: info for other, info in hosts.items() if other != settings.host}
    if not others:
        yield warning("peers", "No other host has ever announced itself.", "Start a worker on another host.")
    for other, info in others.items():
        yield _silent(other) if info is None else _compared(info, criu, settings)


def reachable(name: str, hosts: Mapping[str, HostInfo | None]) -> Iterator[Finding]:
    """Yield for every other host whether connections from here come through to ports that a page channel may have."""
    first, last = map(int, PORT_RANGE.read_text().split())
    ports = (first, (first + last) // 2, last)
    for other, info in hosts.items():
        if other != name and info is not None:
            yield _reach(other, info.address, ports)


def _silent(name: str) -> Finding:
    return warning("peers", f"{name} does not announce itself.", "Start its worker, if the host is still in use.")


def _compared(info: HostInfo, criu: str, settings: Settings) -> Finding:
    missing = sorted(set(info.cpu_flags) - set(processor.flags()))
    return (
        _mute(info, criu, settings)
        or _unlike(info, missing)
        or ok("peers", f"{info.name}: CRIU {info.criu}, and a processor from which processes can come")
    )


def _mute(info: HostInfo, criu: str, settings: Settings) -> Finding | None:
    """Return why nothing can pass between that host and this one."""
    if info.cluster not in {"", settings.cluster}:
        sentence = f"{info.name} has another key than this host: each refuses the other's messages."
        return failure("peers", sentence, "Put the same `key` into sojourn.toml on both; restart their workers.")
    if info.encrypts != (settings.certificates is not None):
        which = "has certificates, and this host has none" if info.encrypts else "has no certificates, as this host has"
        sentence = f"{info.name} {which}: nothing can move between them."
        return failure("peers", sentence, "Give each its own (`sojourn pki issue`), and restart its worker.")
    if series(info.criu) != series(criu):
        return failure(
            "peers",
            f"{info.name} has CRIU {info.criu} and this host {criu}: nothing can move between them.",
            "Install the same major and minor version of CRIU on all hosts.",
        )
    return None


def _unlike(info: HostInfo, missing: Sequence[str]) -> Finding | None:
    """Return what differs so that it may matter; ``missing`` is what our processor lacks and theirs has."""
    if info.machine != platform.machine():
        return warning("peers", f"{info.name} is a {info.machine}: nothing can move between them.", "Keep them apart.")
    if info.sojourn != __version__:
        sentence = f"{info.name} has Sojourn {info.sojourn} and this host {__version__}."
        return warning("peers", sentence, "Install the same version on all hosts.")
    if missing:
        sentence = f"This processor lacks {named(missing)}, which that of {info.name} has: nothing can move from there."
        return warning("peers", sentence, "Let processes move the other way only, or hide these from both.")
    return None


def _reach(name: str, address: str, ports: Sequence[int]) -> Finding:
    stopped = {port: why for port in ports if (why := why_not(address, port))}
    if stopped:
        which = named(f"port {port} ({why})" for port, why in stopped.items())
        return failure(
            "reach",
            f"{name} at {address} can not be reached on {which}.",
            f"Let this host through to ports {ports[0]} to {ports[-1]} there: page channels listen on a free one.",
        )
    return ok("reach", f"{name} at {address} can be reached on the ports of page channels")


def why_not(address: str, port: int) -> str:
    """Return why a connection does not come through to a port at which, most likely, nobody listens; empty if it does.

    The host's own refusal says that it came through. A firewall's may look the same, but comes by ICMP (ip(7)).
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(REACH_S)
        six = family == socket.AF_INET6
        probe.setsockopt(*((socket.IPPROTO_IPV6, IPV6_RECVERR) if six else (socket.IPPROTO_IP, IP_RECVERR)), 1)
        try:
            probe.connect((address, port))
        except TimeoutError:
            return "no answer"
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                return os.strerror(error.errno or 0)
            return "a firewall refuses it" if _refused_by_icmp(probe) else ""
    return ""


def _refused_by_icmp(probe: socket.socket) -> bool:
    """Whether the error came by ICMP: ``struct sock_extended_err`` begins with its number and its origin."""
    try:
        _, ancillary, _, _ = probe.recvmsg(256, 256, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except OSError:
        return False
    return any(struct.unpack_from("=IB", data)[1] in FROM_ICMP for _, _, data in ancillary if len(data) >= 5)


def _skew(store: Store) -> tuple[float, float]:
    """Return how far our clock is ahead of Redis's, and how much of that the way there may be."""
    began = time.monotonic()
    there = store.time()
    took = time.monotonic() - began
    return time.time() - took / 2 - there, took / 2
