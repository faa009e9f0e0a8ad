"""One machine for each name, with the journal that it had: checked before a worker does anything.

Two machines of one name would share its queue: steps of one migration would be done on both. So a
worker that finds another machine announced under its name does not start; both are named. If Redis
was away then, it ends as soon as it finds the other one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time

from sojourn.cluster import age
from sojourn.cluster.registry import MISSED, HostInfo
from sojourn.errors import NameTaken, StoreUnreachable
from sojourn.migration.context import Host
from sojourn.state.mark import Mark
from sojourn.system.process import boot_id

log = logging.getLogger("sojourn.worker")

#: How often to look whether another machine announces itself again, in seconds.
LOOK_S = 0.5


def of(host: Host) -> str:
    """Return what distinguishes this machine from another of the same name, or of the same disk."""
    here = f"{host.journal.mark().identity} {boot_id()}"
    return hashlib.sha256(here.encode()).hexdigest()[:16]


def check(host: Host) -> None:
    """Check that this host may work. Raises JournalLost, NameTaken."""
    check_journal(host)
    try:
        other = another(host)
        if other and _renews(host, other):
            raise _taken(host, other)
    except StoreUnreachable as error:
        log.warning("%s Whether another machine has this host's name is not known yet.", error)


def check_journal(host: Host) -> None:
    """Check that the journal has all that this host recorded, as far as that is known."""
    mark, runtime_dir = host.journal.mark(), host.settings.runtime_dir
    known = [age.kept(runtime_dir)]
    try:
        known.append(host.registry.mark(host.name))
    except StoreUnreachable:
        log.warning("Redis does not answer: whether the journal is an older copy is not known yet.")
    for each in known:
        age.check(host.name, host.journal.path, mark, each)
    if mark.number == 0 and any(known):
        log.warning("The journal is empty, though %s had one: it was removed.", host.name)


def another(host: Host) -> HostInfo | None:
    """Return another machine that announces itself by this host's name. Raises StoreUnreachable."""
    found = host.registry.announced(host.name)
    return found if found and found.identity and found.identity != of(host) else None


def kept_mark(host: Host) -> Mark | None:
    """Keep how far the journal is in ``runtime_dir``; return it, to be kept in Redis too.

    That of an empty journal is not kept: the one that was removed may be put back.
    """
    mark = host.journal.mark()
    if not mark.number:
        return None
    if age.kept(host.settings.runtime_dir) != mark:
        with contextlib.suppress(OSError):  # the file system is full: what was kept before stands
            age.keep(host.settings.runtime_dir, mark)
    return mark


def guard(host: Host, *, announced: bool) -> None:
    """Report another machine of the same name.

    Raises StoreUnreachable; and, where this worker has not announced itself yet, NameTaken, or
    JournalLost by what Redis could not tell at the start.
    """
    if not announced:
        mark = host.journal.mark()
        age.check(host.name, host.journal.path, mark, host.registry.mark(host.name))
    other = another(host)
    if other and not announced:
        raise _taken(host, other)
    if other:
        log.error("%s", _taken(host, other))


def _renews(host: Host, other: HostInfo) -> bool:
    """Whether the other one lives: what a machine left that was replaced expires."""
    until = time.monotonic() + MISSED * host.settings.announce_s
    while time.monotonic() < until:
        now = another(host)
        if now is None:
            return False
        if now.announced != other.announced:
            return True
        time.sleep(LOOK_S)
    return False


def _taken(host: Host, other: HostInfo) -> NameTaken:
    return NameTaken(
        f"Two machines have the name {host.name}: this one, at {host.settings.address}, "
        f"and another one, at {other.address}.",
        "Give each a name of its own: `host` in sojourn.toml, and restart its worker.",
    )
