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

from sojourn import __version__
from sojourn.cluster.compatibility import Endpoint, incompatibilities
from sojourn.cluster.registry import HostInfo
from sojourn.cluster.store import Store
from sojourn.doctor.finding import Finding, failure, ok, warning
from sojourn.errors import StoreUnreachable
from sojourn.preflight.finding import named
from sojourn.settings import Settings
from sojourn.system import cpu

#: Tests run with this Redis and with later ones.
OLDEST_REDIS = 7

#: How far a clock may be from Redis's before timelines of two hosts look wrong to people.
SKEW_S = 1.0

#: How many times Redis's clock is read; the quickest answer is the most exact one.
CLOCK_TRIES = 5

#: How long a peer may take to answer or refuse a connection.
REACH_S = 2.0

#: The range from which the kernel hands out free ports (ip(7)); page channels listen on such ports.
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

#: ``IP_RECVERR``, ``IPV6_RECVERR`` and the origins ``SO_EE_ORIGIN_ICMP…`` of
#: include/uapi/linux/{in,in6,errqueue}.h.
IP_RECVERR, IPV6_RECVERR, FROM_ICMP = 11, 25, {2, 3}


def redis(store: Store) -> Finding:
    """Check whether Redis answers and keeps its data. Raises StoreUnreachable if it is silent."""
    store.ping()
    try:
        info = store.about()
    except StoreUnreachable as error:
        advice = "Allow the user of `redis_url` the command INFO, so that this can be checked."
        return warning("redis", f"Redis answers, but refuses INFO: {error.message}", advice)
    return judged(info)


def judged(info: Mapping[str, object]) -> Finding:
    """Judge the answer to INFO (https://redis.io/docs/latest/commands/info)."""
    version, policy = str(info["redis_version"]), info["maxmemory_policy"]
    if info["role"] != "master":
        return failure(
            "redis",
            "This Redis is a replica: it takes no writes.",
            "Name the primary in `redis_url`.",
        )
    if info["maxmemory"] and policy != "noeviction":
        sentence = (
            f"Redis {version} evicts keys when its memory is full (maxmemory-policy {policy})."
        )
        return failure("redis", sentence, "Set maxmemory-policy noeviction.")
    if int(version.split(".", maxsplit=1)[0]) < OLDEST_REDIS:
        return warning(
            "redis",
            f"Redis {version} is older than what is tested.",
            f"Install {OLDEST_REDIS}.0 or later.",
        )
    if not info["aof_enabled"]:
        sentence = f"Redis {version} forgets the queue and all cordons when it is started again."
        return warning("redis", sentence, "Set appendonly yes.")
    return ok("redis", f"Redis {version} answers, and keeps its data (AOF)")


def clock(store: Store) -> Finding:
    """Compare our clock with Redis's, by the quickest of some answers. Raises StoreUnreachable."""
    skew_s, error_s = min((_skew(store) for _ in range(CLOCK_TRIES)), key=lambda skew: skew[1])
    if abs(skew_s) > SKEW_S + error_s:
        way = "ahead of" if skew_s > 0 else "behind"
        return warning(
            "clock",
            f"This host's clock is {abs(skew_s):.1f} s {way} Redis's. Nothing is decided by it, "
            "but timelines and logs of two hosts will not fit together.",
            "Let chrony or systemd-timesyncd keep the time on all hosts.",
        )
    return ok("clock", f"within {abs(skew_s) + error_s:.3f} s of Redis's")


def worker(settings: Settings, announced: HostInfo | None, pid: int | None) -> Finding:
    """Check whether our worker runs, as ``pid``, and announces this host as it is set up now."""
    name, runs = settings.host, is_running(pid)
    if announced is None:
        what = "runs but does not announce itself: can it reach Redis?" if runs else "does not run."
        return failure(
            "worker",
            f"The worker of {name} {what}",
            "systemctl start sojourn-worker; journalctl -u sojourn-worker",
        )
    if not runs:
        advice = (
            "systemctl start sojourn-worker; or, if another host has that name, rename this one."
        )
        return failure("worker", f"{name} is announced, but its worker does not run here.", advice)
    ours = {
        "address": settings.address,
        "Sojourn": __version__,
        "kernel": platform.release(),
        "key": settings.cluster,
    }
    theirs = {
        "address": announced.address,
        "Sojourn": announced.sojourn,
        "kernel": announced.kernel,
        "key": announced.cluster,
    }
    stale = [
        f"{what} {theirs[what]} instead of {ours[what]}"
        for what in ours
        if theirs[what] != ours[what]
    ]
    if stale:
        advice = "If no other host has that name: systemctl restart sojourn-worker"
        return warning("worker", f"The worker announces {named(stale)}.", advice)
    return ok("worker", f"it runs as process {pid}, and announces {name} at {announced.address}")


def is_running(pid: int | None) -> bool:
    """Whether there is a process with the PID from a worker's file."""
    return pid is not None and Path(f"/proc/{pid}").exists()


def peers(settings: Settings, criu: str, hosts: Mapping[str, HostInfo | None]) -> Iterator[Finding]:
    """Yield for every other host whether it differs so that nothing can move between the two."""
    others = {other: info for other, info in hosts.items() if other != settings.host}
    if not others:
        yield warning(
            "peers", "No other host has ever announced itself.", "Start a worker on another host."
        )
    for other, info in others.items():
        yield _silent(other) if info is None else _compared(info, criu, settings)


def reachable(name: str, hosts: Mapping[str, HostInfo | None]) -> Iterator[Finding]:
    """Yield for every other host whether ports that page channels may use can be reached."""
    first, last = map(int, PORT_RANGE.read_text().split())
    ports = (first, (first + last) // 2, last)
    for other, info in hosts.items():
        if other != name and info is not None:
            yield _reach(other, info.address, ports)


def _silent(name: str) -> Finding:
    return warning(
        "peers",
        f"{name} does not announce itself.",
        "Start its worker, if the host is still in use.",
    )


def _compared(info: HostInfo, criu: str, settings: Settings) -> Finding:
    missing = sorted(set(info.cpu_flags) - set(cpu.flags()))
    return (
        _mute(info, criu, settings)
        or _unlike(info, missing)
        or ok(
            "peers", f"{info.name}: CRIU {info.criu}, and a processor from which processes can come"
        )
    )


def _mute(info: HostInfo, criu: str, settings: Settings) -> Finding | None:
    """Return why the two hosts cannot talk to each other, if they cannot."""
    encrypts = settings.certificates is not None
    ours = Endpoint(settings.host, settings.cluster, criu, encrypts)
    reasons = incompatibilities(ours, info.endpoint)
    return failure("peers", reasons[0].sentence, reasons[0].hint) if reasons else None


def _unlike(info: HostInfo, missing: Sequence[str]) -> Finding | None:
    """Return a difference that may matter; ``missing`` are features of their processor only."""
    if info.machine != platform.machine():
        return warning(
            "peers",
            f"{info.name} is a {info.machine}: nothing can move between them.",
            "Put them into different clusters.",
        )
    if info.sojourn != __version__:
        sentence = f"{info.name} has Sojourn {info.sojourn} and this host {__version__}."
        return warning("peers", sentence, "Install the same version on all hosts.")
    if missing:
        sentence = (
            f"This processor lacks {named(missing)}, which that of {info.name} has: "
            "nothing can move from there."
        )
        advice = "Migrate in the other direction only, or hide these features on both."
        return warning("peers", sentence, advice)
    return None


def _reach(name: str, address: str, ports: Sequence[int]) -> Finding:
    stopped = {port: why for port in ports if (why := why_not(address, port))}
    if stopped:
        which = named(f"port {port} ({why})" for port, why in stopped.items())
        return failure(
            "reach",
            f"{name} at {address} cannot be reached on {which}.",
            f"Let this host through to ports {ports[0]} to {ports[-1]} there: "
            "page channels listen on a free one.",
        )
    return ok("reach", f"{name} at {address} can be reached on the ports of page channels")


def why_not(address: str, port: int) -> str:
    """Return why a connection attempt does not reach a port of a host; empty if it does.

    Most likely nothing listens there: a refusal by the host itself shows that the attempt came
    through. A firewall's refusal may look the same, but comes by ICMP (ip(7)).
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(REACH_S)
        six = family == socket.AF_INET6
        probe.setsockopt(
            *((socket.IPPROTO_IPV6, IPV6_RECVERR) if six else (socket.IPPROTO_IP, IP_RECVERR)), 1
        )
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
    """Whether the error came by ICMP: its origin is byte 4 of ``struct sock_extended_err``."""
    try:
        _, ancillary, _, _ = probe.recvmsg(256, 256, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except OSError:
        return False
    return any(
        struct.unpack_from("=IB", data)[1] in FROM_ICMP
        for _, _, data in ancillary
        if len(data) >= 5
    )


def _skew(store: Store) -> tuple[float, float]:
    """Return how far our clock is ahead of Redis's, and half the round trip: the error of that."""
    began = time.monotonic()
    redis_time = store.time()
    took = time.monotonic() - began
    return time.time() - took / 2 - redis_time, took / 2
