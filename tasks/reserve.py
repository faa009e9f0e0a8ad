"""reserve and release, on both hosts: the tmpfs for the images, and a place among the frozen trees.

Both are noted in the journal before they are taken, and taking or giving back twice is harmless. If the worker
or Redis dies between the two, the tmpfs stays mounted and noted as held until ``release`` runs; a
host that dies loses its tmpfs by itself. The process runs on untouched.
"""

from __future__ import annotations

from sojourn.action import install
from sojourn.errors import Refused, SojournError, Temporary
from sojourn.host import Migration
from sojourn.images import SMALL_IMAGES_BYTES, size_for
from sojourn.memory import free_bytes
from sojourn.model import Outcome, Role
from tasks.step import step


@step(deadline_s=30, retries=8)
def reserve(migration: Migration) -> Outcome:
    """Take a slot and mount the tmpfs, sized from the tree's memory on the destination."""
    _take_slot(migration)
    if migration.role is Role.DESTINATION:
        install(migration.host.action_script)
    size = _size_bytes(migration)
    _check_room(migration, size)
    migration.host.journal.hold(migration.entry, "mount", str(migration.directory.images))
    migration.directory.make(size)
    return Outcome(f"a tmpfs of {size // 2**20} MB is ready for the images")


@step(deadline_s=60, undo=True)
def release(migration: Migration) -> Outcome:
    """End what still runs for this migration, unmount its tmpfs, give the slot back. The logs stay."""
    if migration.is_deciding():
        raise SojournError(f"CRIU is at work on {migration.host.name}; what it needs is kept until it is done.")
    migration.clear()
    return Outcome(f"nothing of it is left on {migration.host.name} but its logs")


def _take_slot(migration: Migration) -> None:
    slots = migration.host.settings.freeze_slots
    if not migration.host.journal.take_slot(migration.entry, slots):
        raise Temporary(
            f"All {slots} places for frozen trees on {migration.host.name} are taken.",
            "Wait for the other migrations, or raise `freeze_slots`.",
        )


def _size_bytes(migration: Migration) -> int:
    if migration.role is Role.SOURCE:
        return SMALL_IMAGES_BYTES
    return migration.host.settings.images_bytes or size_for(migration.facts["tree_bytes"])


def _check_room(migration: Migration, size: int) -> None:
    free = free_bytes()
    if size > free:
        raise Refused(
            f"{migration.host.name} has {free // 2**20} MB of memory free; the images need {size // 2**20} MB.",
            "Choose another destination, or free memory there.",
        )
