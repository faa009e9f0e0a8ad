"""The doctor examines this host for what would keep migrations from going well; it changes nothing.

A check is a function that takes what it examines and returns a finding, or several. Where a check
itself fails, that is its finding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sojourn.cluster import refused
from sojourn.cluster.ledger import Ledger
from sojourn.cluster.registry import Registry
from sojourn.cluster.store import Store
from sojourn.criu.commands import Criu
from sojourn.doctor import cluster, machine, place, refusals
from sojourn.doctor.finding import Finding, Level, failure
from sojourn.errors import SojournError, UsageError
from sojourn.settings import Settings, config_file, load

__all__ = ["Finding", "Level", "examine"]

PROC = Path("/proc")

#: How long a worker may take to announce its host, and how often the registry is read meanwhile.
STARTING_S, ASK_AGAIN_S = 20.0, 0.5

AS_ROOT = "Run it as root: sudo sojourn doctor"

Answer = Finding | Iterable[Finding]


def examine() -> Iterator[Finding]:
    """Yield the findings on this host, one after another, as the checks are made."""
    for name, check in _of_the_machine():
        yield from _checked(name, check)
    yield from _checked("settings", lambda: place.settings_file(config_file()))
    try:
        settings = load()
    except UsageError as error:
        yield failure("settings", error.message, error.hint)
        return
    except OSError as error:
        yield failure("settings", f"{config_file()} cannot be read: {error.strerror}.", AS_ROOT)
        return
    for name, check in (*_of_the_place(settings), *_of_the_cluster(settings)):
        yield from _checked(name, check)


def _of_the_machine() -> Iterator[tuple[str, Callable[[], Answer]]]:
    effective, known = machine.effective_capabilities(PROC), machine.known_capabilities(PROC)
    yield "root", lambda: machine.privileges(os.geteuid(), effective, known)
    yield "kernel", lambda: machine.kernel(os.uname().release, PROC)
    yield "sysctl", lambda: machine.sysctls(PROC)
    yield "memory", lambda: machine.room(PROC)


def _of_the_place(settings: Settings) -> Iterator[tuple[str, Callable[[], Answer]]]:
    yield "criu", lambda: machine.criu(Criu(settings.criu), os.uname().release)
    yield "programs", lambda: machine.programs(settings.copy_images_with)
    yield "key", lambda: place.key(settings.key.get_secret_value())
    yield "address", lambda: place.address(settings)
    yield "certificates", lambda: place.certificates(settings)
    yield "state", lambda: place.state(settings.state_dir)
    yield "journal", lambda: place.journal(settings)
    yield "on_end", lambda: list(place.on_end(settings))
    yield "messages", lambda: refusals.of_messages(refused.kept(settings.runtime_dir))


def _of_the_cluster(settings: Settings) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Yield the checks that need Redis, or only the first of them where Redis does not answer."""
    store = Store.of(settings)
    yield "redis", lambda: cluster.redis(store)
    try:
        hosts = Registry(store, settings.cluster).hosts()
    except SojournError:
        return  # reported by the check before
    yield "clock", lambda: cluster.clock(store)
    yield "worker", lambda: _worker(settings, Registry(store, settings.cluster))
    yield "peers", lambda: list(cluster.peers(settings, Criu(settings.criu).version(), hosts))
    yield "reach", lambda: list(cluster.reachable(settings.host, hosts))
    yield "seals", lambda: refusals.of_records(Ledger(store, settings.keep_s).counted())


def _worker(settings: Settings, registry: Registry) -> Finding:
    """Examine our worker, after waiting for one that runs but has not announced itself yet."""
    file = settings.runtime_dir / "worker.pid"
    pid = int(file.read_text()) if file.exists() else None
    until = time.monotonic() + STARTING_S
    while (
        not (announced := registry.hosts().get(settings.host))
        and cluster.is_running(pid)
        and time.monotonic() < until
    ):
        time.sleep(ASK_AGAIN_S)
    return cluster.worker(settings, announced, pid)


def _checked(name: str, check: Callable[[], Answer]) -> Iterable[Finding]:
    try:
        answer = check()
    except SojournError as error:
        return [failure(name, error.message, error.hint)]
    except OSError as error:
        return [failure(name, f"This could not be examined: {error}.", AS_ROOT)]
    return [answer] if isinstance(answer, Finding) else answer
