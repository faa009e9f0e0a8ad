"""What a restore left on the destination, and whether that counts as the process running here.

CRIU may die, or its host crash, at any instant of a restore. What it made is found by the tree's
PIDs, by the time at which the restore began, and by the boot in which it did; how far CRIU came is
in its log. Where that does not suffice nothing is guessed: an operator decides.
"""

from __future__ import annotations

from sojourn.criu import restored
from sojourn.errors import Temporary
from sojourn.migration.context import Migration
from sojourn.model import Identity, Role
from sojourn.system import process


def is_here(migration: Migration) -> bool:
    """Return whether a committed tree counts as running here; in doubt an operator decides.

    With the destination declared dead nothing may be left of it. With the source declared dead,
    what there is of it is all that there will ever be. Raises Temporary without such a decision.
    """
    try:
        return _has_woken(migration)
    except Temporary:
        if migration.is_declared_dead(Role.DESTINATION):
            return False
        if not migration.is_declared_dead(Role.SOURCE) or migration.at_work():
            raise
    # An operator has decided, so what is there counts, be it mixed or unclear.
    migration.learn(partial=_runs_partly(migration))
    return bool(migration.facts["partial"])


def made_here(migration: Migration) -> list[Identity]:
    """Return the processes that the restore made here, never those of another migration or boot."""
    facts = migration.facts
    if not is_of_this_boot(migration):
        return []
    made = restored.members(tree_pids(migration), facts["restore_began"], facts["occupied"])
    # A later migration may have brought a tree with the same PIDs after this restore had failed.
    return [who for who in made if who.start_time <= facts.get("restore_ended", who.start_time)]


def is_of_this_boot(migration: Migration) -> bool:
    """Whether this host has not been down since the restore began, whose tree would have died."""
    return bool(migration.facts.get("restore_boot") == process.boot_id())


def tree_pids(migration: Migration) -> list[int]:
    """Return the tree's PIDs: as the source recorded them, or else as the images name them."""
    if "pids" in migration.facts:
        return list(migration.facts["pids"])
    # CRIU writes one ``core-<id>.img`` per thread, and a process's first thread has its PID.
    return [
        int(name[5:-4]) for name in migration.facts.get("manifest", {}) if name.startswith("core-")
    ]


def existing(pids: list[int]) -> list[int]:
    """Return those PIDs that processes of this host have now; before a restore they are others'."""
    return [pid for pid in pids if process.exists(pid)]


def _runs_partly(migration: Migration) -> bool:
    if not is_of_this_boot(migration):
        return False
    return _found(migration) not in {restored.State.GONE, restored.State.STUCK}


def _has_woken(migration: Migration) -> bool:
    """Return whether a committed tree runs although CRIU died before ``restored`` was written.

    If none of its instructions has run, ``accepted`` may be taken back: the source acts on
    ``restored`` alone, and still holds the frozen original. Raises Temporary while CRIU works, and
    where it cannot be known: nothing is guessed.
    """
    if not is_of_this_boot(migration):
        raise Temporary(
            f"{migration.host.name} crashed while it let the tree go, "
            "which may have run there for a moment; the original stays frozen.",
            f"See docs/troubleshooting.md, then: sojourn resolve {migration.id}",
        )
    if migration.at_work():
        raise Temporary(
            f"CRIU has committed and is still at work on {migration.host.name}; ask again."
        )
    release = restored.release(migration.directory.work / "restore.log")
    if release in {restored.Release.DONE, restored.Release.FAILED}:
        return release is restored.Release.DONE
    found = _found(migration)
    if found is restored.State.RUNNING:
        return True
    if release is restored.Release.NOT_BEGUN and found is restored.State.STUCK:
        return False
    raise Temporary(
        f"CRIU died on {migration.host.name} while it let the tree go, now {found}; "
        "the original stays frozen.",
        f"See docs/criu-deaths.md, then: sojourn resolve {migration.id}",
    )


def _found(migration: Migration) -> restored.State:
    """Return what there is of the tree now."""
    return restored.state(
        tree_pids(migration), migration.facts["restore_began"], migration.facts["occupied"]
    )
