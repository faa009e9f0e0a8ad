"""What a host announces of itself in the registry, where the cluster reads which hosts there are.

An announcement expires after a few that did not come, so a host whose worker has died disappears
by itself; one whose worker ends on purpose is withdrawn at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time

from sojourn import __version__
from sojourn.cluster.registry import HostInfo
from sojourn.doctor import Level, place
from sojourn.errors import StoreUnreachable
from sojourn.migration.context import Host
from sojourn.security.tls import Certificates
from sojourn.settings import Settings
from sojourn.system import cpu, memory
from workers import identity

log = logging.getLogger("sojourn.worker")


def announce(host: Host, criu: str, *, again: bool) -> bool:
    """Announce the host until the next announcement is due; without Redis only log it.

    ``again``: this worker has done so before. Return whether Redis took it. Raises NameTaken,
    JournalLost.
    """
    mark = identity.kept_mark(host)
    try:
        identity.guard(host, announced=again)
        cordon = not again and _begins_cordoned(host.settings)
        host.registry.announce(describe(host, criu), host.settings.announce_s, mark, cordon=cordon)
    except StoreUnreachable as error:
        log.warning("%s", error)
        return False
    if cordon:
        log.info("%s begins cordoned: nothing goes here until `sojourn uncordon`.", host.name)
    if not again:
        _remember(host.settings)
    return True


def _begins_cordoned(settings: Settings) -> bool:
    """Whether this host is to be cordoned now: at its first announcement, and at no later one."""
    return settings.cordoned and not settings.announced.exists()


def _remember(settings: Settings) -> None:
    """Remember that this host has announced itself, so that no later start cordons it."""
    # A full disk does not keep a host from working: at worst its next start cordons it once more.
    with contextlib.suppress(OSError):
        settings.announced.touch()


def withdraw(host: Host) -> None:
    """Take the announcement back; without Redis it expires."""
    with contextlib.suppress(StoreUnreachable):
        host.registry.withdraw(host.name)


def describe(host: Host, criu: str) -> HostInfo:
    """Return what this host is now; ``criu`` is the version found when its worker started."""
    return HostInfo(
        name=host.name,
        cluster=host.settings.cluster,
        address=host.settings.address,
        sojourn=__version__,
        criu=criu,
        kernel=platform.release(),
        machine=platform.machine(),
        cpus=os.cpu_count() or 1,
        memory_bytes=memory.total_bytes(),
        free_bytes=memory.free_bytes(),
        running=len(host.journal.unfinished()),
        announced=time.time(),
        load=cpu.load(),
        cpu_flags=cpu.flags(),
        certified_until=_certified_until(host.settings),
        max_outgoing=host.settings.max_outgoing,
        max_incoming=host.settings.max_incoming,
        identity=identity.of(host),
    )


def warn_of_certificates(settings: Settings) -> None:
    """Log a warning if memory crosses the network readable, or soon cannot be sent at all."""
    found = place.certificates(settings)
    if found.level is not Level.OK:
        log.warning("%s %s", found.sentence, found.advice)


def _certified_until(settings: Settings) -> float | None:
    """Return when our certificate ends, read each time since it may have been renewed."""
    if settings.certificates is None:
        return None
    # Imported here: it takes 0.25 s and 8 MB that a host without certificates need not spend.
    from sojourn.security.pki import ends

    return ends(Certificates(settings.certificates).host)
