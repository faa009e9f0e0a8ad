"""The process's arrival on the destination: CRIU's restore, and the destination's verdict."""

from __future__ import annotations

import contextlib

from sojourn.criu import ended_connections, parent_death, restored
from sojourn.errors import CriuFailed, ImagesIncomplete, PhaseConflict
from sojourn.migration import carried, life, names, remains, settling
from sojourn.migration.context import Migration
from sojourn.migration.rebuilding import Rebuilding, resumed_at
from sojourn.model import Member, Phase, Role, Verdict
from sojourn.preflight import pids, same_file, sockets
from sojourn.preflight.files import SHARED_FILE
from sojourn.state.facts import Facts
from sojourn.system import process

#: How the journal holds a tree that must be ended here.
FENCED = ("tree", "fenced")


def restore(migration: Migration, deadline_s: float) -> Facts:
    """Rebuild the tree and let it run, if the journal accepts it.

    Return when it ran, and how it ended if it did so at once. Raises PhaseConflict before anything
    is touched: for a message that comes too late, when a tree may run here already or CRIU be at
    work on it; or if an operator has given the process back to the source. Raises StoreUnreachable
    if that cannot be known. Raises CriuFailed, FreezeTooLong, CommandTimedOut; what is left of the
    tree then is for ``refuse`` to clear away.
    """
    migration.read_resolution()
    if not may_restore(migration):
        raise PhaseConflict(f"Too late to restore on {migration.host.name}: {_why_not(migration)}.")
    # What an earlier attempt made has the PIDs that this one needs.
    process.kill([Member(who) for who in remains.made_here(migration)])
    names.clear_away(migration)
    check_pids(migration)
    names.check(migration)
    _check_files(migration)
    lazy = migration.facts.get("lazy", False)
    if lazy:
        settling.prepare_again(migration)
    carried.place(migration)
    _part_from_parent(migration)
    ended_connections.make_plain(migration.directory.images, sockets.is_address)
    # Recorded before CRIU begins: by these facts anybody can find later what it has made.
    found = Facts(
        occupied=remains.existing(remains.tree_pids(migration)),
        restore_began=process.ticks_since_boot(),
        restore_boot=process.boot_id(),
    )
    # It is so already where an earlier attempt died, and nothing of that one is at work.
    if migration.phase is Phase.RESTORING:
        migration.learn(**found)
    else:
        migration.become(Phase.RESTORING, **found)
    with (
        contextlib.closing(Rebuilding(migration)) as rebuilding,
        contextlib.closing(life.root_of(migration)) as root,
    ):
        exit_code = rebuilding.exit_code(root, deadline_s)
        migration.refresh()
        if exit_code != 0 or migration.phase is not Phase.RESTORED:
            rebuilding.raise_for(exit_code)
        ran = resumed_at(migration)
        return Facts(resumed_at=ran) | life.ended(root, ran, life.AT_ONCE_S)


def _part_from_parent(migration: Migration) -> None:
    """Turn the root's parent-death signal off: its parent here is CRIU, which ends at once."""
    signal = parent_death.turn_off(migration.directory.images)
    if signal:
        migration.learn(parent_death_signal=signal)


def check_pids(migration: Migration) -> None:
    """Raise CriuFailed, naming the owner, if a PID that the restore needs is taken here.

    This is known before CRIU starts. Only the existence of each PID is checked, since a frozen tree
    may be waiting; the owner is looked up only if there is one. A tree in a PID namespace of its
    own needs none.
    """
    needed = migration.facts.get("needed_pids", [])
    taken = remains.existing([*needed, *remains.tree_pids(migration)] if needed else [])
    for finding in pids.taken(taken):
        raise CriuFailed(
            f"On {migration.host.name}: {finding.sentence}", finding.hint, finding.code
        )


def _check_files(migration: Migration) -> None:
    """Raise CriuFailed if a file that the tree writes has another content here.

    Its original is frozen, so that what the source has read is what the tree left in it.
    """
    wanted = migration.facts.get("digests", {})
    here = same_file.digests(wanted)
    for path, content in wanted.items():
        if here.get(path) != content:
            raise CriuFailed(
                f"On {migration.host.name}: {path}, which process {migration.plan.pid} writes, has "
                f"another content than on {migration.plan.source}.",
                SHARED_FILE,
                "FILE_DIFFERS",
            )


def may_restore(migration: Migration) -> bool:
    """Whether the destination can roll forward alone: with all images, which no restore used up.

    Never once an operator has declared it dead: the source has the process back. Nor if the memory
    was to come from an original that is gone.
    """
    if migration.is_declared_dead(Role.DESTINATION) or settling.is_original_gone(migration):
        return False
    if migration.phase is Phase.RESTORING:
        # With ``auto_dedup`` CRIU frees the pages that it has restored: they are not here any more.
        again = not migration.host.settings.auto_dedup and not migration.at_work()
        return again and _holds_everything(migration)
    return migration.phase is Phase.RESERVED and _holds_everything(migration)


def _why_not(migration: Migration) -> str:
    if migration.is_declared_dead(Role.DESTINATION):
        return "an operator has declared this host dead"
    if settling.is_original_gone(migration):
        return f"the original on {migration.plan.source} is gone"
    return f"the migration is {migration.phase} there"


def refuse(migration: Migration) -> Verdict:
    """Refuse for good if it is not too late, clear away a failed restore, and return the verdict.

    Raises Temporary while there is none yet, PhaseConflict if the commit was faster: ask
    again then.
    """
    if migration.phase is Phase.RESTORED:
        return Verdict.REFUSED if migration.facts.get("fenced") else Verdict.RESTORED
    if migration.phase is Phase.ACCEPTED and remains.is_here(migration):
        migration.become(Phase.RESTORED)
        return Verdict.RESTORED
    # Written first, done afterwards: what is killed here cannot be accepted or restored any more.
    if "restore_ended" not in migration.facts:
        migration.learn(restore_ended=process.ticks_since_boot())
    if migration.phase is not Phase.REFUSED:
        migration.become(Phase.REFUSED)
    migration.end_processes()
    process.kill([Member(who) for who in remains.made_here(migration)])
    # After the tree, which must not run on without.
    settling.end(migration)
    # Files that were open and deleted on the source, which CRIU made again for the restore.
    for ghost in restored.ghosts(migration.directory.work / "restore.log"):
        ghost.unlink(missing_ok=True)
    names.clear_away(migration)
    carried.remove(migration)
    return Verdict.REFUSED


def aftermath(migration: Migration) -> Facts:
    """Return what people must know beside the verdict: the process died, or may not be whole."""
    facts, here = migration.facts, migration.host.name
    if "memory_lost" in facts:
        return settling.loss(migration)
    if migration.phase is not Phase.RESTORED or facts.get("fenced"):
        return {}
    if not remains.is_of_this_boot(migration):
        return {"died_on": here}
    if facts.get("partial"):
        warning = (
            f"{here}: CRIU died while it let the tree go. "
            "By an operator's decision what there is of it goes on; look at it."
        )
        return {"pending": [warning]}
    return {}


def fence(migration: Migration) -> int:
    """End what runs here of a process that an operator gave to the source; return how many ended.

    Nothing else ends a tree that has run. It must be known that the source has resumed, so that one
    copy is left. Raises PhaseConflict if it is not.
    """
    resumed = migration.facts.get("source_phase") == Phase.RESUMED
    if not (resumed and migration.is_declared_dead(Role.DESTINATION)):
        raise PhaseConflict(
            f"No operator has given the process back to {migration.plan.source}; it stays as it is."
        )
    if not migration.facts.get("fenced") and refuse(migration) is Verdict.REFUSED:
        return 0
    # Held first: if the worker dies before the kill, the reconciler finds the row and finishes it.
    migration.host.journal.hold(migration.entry, *FENCED)
    migration.learn(fenced=True)
    return end_fenced(migration)


def end_fenced(migration: Migration) -> int:
    """End what is left of a fenced tree; return how many processes that were. Safe to repeat."""
    killed = process.kill(process.descent(remains.made_here(migration)))
    carried.remove(migration)
    migration.host.journal.let_go(migration.entry, *FENCED)
    return killed


def _holds_everything(migration: Migration) -> bool:
    manifest, plan = migration.facts.get("manifest"), migration.plan
    has_memory = plan.post_copy or migration.facts.get("page_server_exit") == 0
    if manifest is None or not has_memory:
        return False
    try:
        migration.directory.check(manifest)
    except ImagesIncomplete:
        return False
    return True
