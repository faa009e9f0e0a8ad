"""The doctor: looks at this host and says what would keep migrations from going well. It changes nothing.

Each check is a function that takes what it looks at and returns a finding, or several. A check that fails to look tells
that as its finding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sojourn.criu import Criu
from sojourn.doctor import cluster, machine, place
from sojourn.doctor.finding import Finding, Level, failure
from sojourn.errors import SojournError, UsageError
from sojourn.registry import Registry
from sojourn.settings import Settings, config_file, load
from sojourn.store import Store

__all__ = ["Finding", "Level", "examine"]

PROC = Path("/proc")

#: How long a worker may take to announce its host, and how often the registry is asked for that.
STARTING_S, ASK_AGAIN_S = 20.0, 0.5

AS_ROOT = "Run it as root: sudo sojourn doctor"

Answer = Finding | Iterable[Finding]


def examine() -> Iterator[Finding]:
    """Yield what is found on this host, one thing after the other, as it is looked at."""
    for name, check in _of_the_machine():
        yield from _asked(name, check)
    yield from _asked("settings", lambda: place.settings_file(config_file()))
    try:
        settings = load()
    except UsageError as error:
        yield failure("settings", error.message, error.hint)
        return
    except OSError as error:
        yield failure("settings", f"{config_file()} can not be read: {error.strerror}.", AS_ROOT)
        return
    for name, check in (*_of_the_place(settings), *_of_the_cluster(settings)):
        yield from _asked(name, check)


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


def _of_the_cluster(settings: Settings) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Yield the checks that need Redis; where it does not answer, the first says so and the others are left out."""
    store = Store.of(settings)
    yield "redis", lambda: cluster.redis(store)
    try:
        hosts = Registry(store).hosts()
    except SojournError:
        return
    yield "clock", lambda: cluster.clock(store)
    yield "worker", lambda: _worker(settings, Registry(store))
    yield "peers", lambda: list(cluster.peers(settings, Criu(settings.criu).version(), hosts))
    yield "reach", lambda: list(cluster.reachable(settings.host, hosts))


def _worker(settings: Settings, registry: Registry) -> Finding:
    """Look at our worker; one that runs but has not announced itself may just have started, and is waited for."""
    file = settings.runtime_dir / "worker.pid"
    pid = int(file.read_text()) if file.exists() else None
    until = time.monotonic() + STARTING_S
    while not (told := registry.hosts().get(settings.host)) and cluster.is_running(pid) and time.monotonic() < until:
        time.sleep(ASK_AGAIN_S)
    return cluster.worker(settings, told, pid)


def _asked(name: str, check: Callable[[], Answer]) -> Iterable[Finding]:
    try:
        answer = check()
    except SojournError as error:
        return [failure(name, error.message, error.hint)]
    except OSError as error:
        return [failure(name, f"That could not be looked at: {error}.", AS_ROOT)]
    return [answer] if isinstance(answer, Finding) else answer
