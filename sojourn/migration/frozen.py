"""The last look at the frozen tree, on the source: what only the freeze has made certain.

A check is made while the program runs, and it may confine itself or start a daemon since. Nothing
is written here: if the worker dies, or something is found, the phase is still ``freezing``, and the
tree is resumed on the source.
"""

from __future__ import annotations

import contextlib

from sojourn.criu import locks_image, pstree
from sojourn.errors import CriuFailed
from sojourn.migration.context import Migration
from sojourn.preflight import confinement, inspection, unread
from sojourn.preflight.finding import Finding
from sojourn.system import restraints


def prepare() -> None:
    """Do before the freeze what need not be done within; the first time takes some 0.2 s."""
    with contextlib.suppress(restraints.Unavailable):
        restraints.prepare()


def check(migration: Migration) -> None:
    """Raise CriuFailed, naming the process, if the restore would lose something of the tree."""
    for entry in pstree.torn(pstree.read(migration.directory.images)):
        raise CriuFailed(
            f"On {migration.host.name}: process {entry.pid} was adopted by process {entry.parent}, "
            f"which was never in its session, {entry.session}; on another host it would not be its "
            "child any more.",
            f"See what helps: `{inspection.command(migration.plan)}`.",
            "TREE_TORN",
        )
    _check_leases(migration)
    pids = [member.identity.pid for member in migration.entry.tree]
    lost = confinement.found_in(pids) or _doubled(migration, pids)
    if lost:
        raise CriuFailed(f"On {migration.host.name}: {lost.sentence}", lost.hint, lost.code)


def _doubled(migration: Migration, pids: list[int]) -> Finding | None:
    return next(unread.in_frozen(pids, migration.facts.get("shared_fifos", [])), None)


def _check_leases(migration: Migration) -> None:
    seen = {(pid, descriptor) for pid, descriptor in migration.facts.get("leases", [])}
    for pid, descriptor in locks_image.leases(migration.directory.images) - seen:
        raise CriuFailed(
            f"On {migration.host.name}: process {pid} took a lease on a file (descriptor "
            f"{descriptor}) after the checks were made, and the restore might break it.",
            f"See what helps: `{inspection.command(migration.plan)}`.",
            "LEASE",
        )
