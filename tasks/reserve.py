"""reserve and release, on both hosts: the tmpfs for the images, and a place among the frozen trees.

Both are noted in the journal before they are taken; taking or giving back twice has no effect. If
the worker or Redis dies between the two, the tmpfs stays mounted and noted as held until
``release`` runs; a host that dies loses its tmpfs by itself. The process runs on untouched.

With ``stop_unit`` the source also keeps the process's supervisor from starting it again, which
``resume`` undoes (``sojourn/migration/unit.py``).
"""

from __future__ import annotations

from sojourn.errors import Refused, SojournError, Temporary
from sojourn.migration import permission, settling, unit
from sojourn.migration.context import Migration
from sojourn.model import Role
from sojourn.state.message import Outcome
from sojourn.system.memory import free_bytes
from sojourn.transfer.image_directory import size_for
from tasks.step import step


# A reload of systemd may take most of that, with ``stop_unit``.
@step(deadline_s=60, retries=8)
def reserve(migration: Migration) -> Outcome:
    """Take a slot and mount the tmpfs, sized from the tree's memory on the destination."""
    permission.check(migration)
    # First what may have to be waited for: an attempt that is retried has nothing to undo.
    _take_slot(migration)
    _check_room(migration, _needed_bytes(migration))
    size = _size_bytes(migration)
    # The journal first: nothing would ever unmount a tmpfs that was not noted.
    migration.host.journal.hold(migration.entry, "mount", str(migration.directory.images))
    migration.directory.make(size)
    # Last: from here on the process is without its supervisor.
    stopped = unit.stop(migration) if migration.role is Role.SOURCE else ""
    return Outcome(f"a tmpfs of {size // 2**20} MB is ready for the images{stopped}")


# Twelve attempts take two minutes: so long memory may still come into place from that tmpfs, where
# no ``settle`` has waited for it.
@step(deadline_s=60, undo=True, retries=12)
def release(migration: Migration) -> Outcome:
    """End what still runs for this migration, unmount its tmpfs, free its slot. The logs stay."""
    if migration.is_deciding():
        raise SojournError(
            f"CRIU is at work on {migration.host.name}; what it needs is kept until it is done."
        )
    migration.clear()
    # Where it ended without ``settle``: the process is lost, whatever the verdict was.
    lost = settling.loss(migration)
    return Outcome(f"nothing of it is left on {migration.host.name} but its logs", lost)


def _take_slot(migration: Migration) -> None:
    slots = migration.host.settings.freeze_slots
    if not migration.host.journal.take_slot(migration.entry, slots):
        raise Temporary(
            f"All {slots} places for frozen trees on {migration.host.name} are taken.",
            "Wait for the other migrations, or raise `freeze_slots`.",
        )


def _size_bytes(migration: Migration) -> int:
    """Return how large the tmpfs may grow; it takes no more memory than what is written to it."""
    if migration.role is Role.SOURCE and migration.plan.post_copy:
        # The tree may have come to share or to lock more of its memory since it was examined.
        return _needed_bytes(migration) + size_for(migration.facts["tree_bytes"])
    return _needed_bytes(migration)


def _needed_bytes(migration: Migration) -> int:
    """Return how much memory the images are expected to take at most."""
    if migration.role is Role.SOURCE:
        # In post-copy what can never come later is dumped into this tmpfs.
        facts = migration.facts
        return size_for(facts.get("never_lazy_bytes", 0)) + facts.get("memory_bytes", 0)
    return migration.host.settings.images_bytes or size_for(migration.facts["tree_bytes"])


def _check_room(migration: Migration, size: int) -> None:
    free = free_bytes()
    if size > free:
        there = migration.role is Role.DESTINATION
        raise Refused(
            f"{migration.host.name} has {free // 2**20} MB of memory free; "
            f"the images need {size // 2**20} MB.",
            "Choose another destination, or free memory there." if there else "Free memory there.",
        )
