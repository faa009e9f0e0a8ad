"""The process's arrival on the destination: CRIU's restore, and the destination's verdict on it."""

from __future__ import annotations

import contextlib
import shlex

from sojourn import action, criu, process
from sojourn.errors import ImagesIncomplete, ProcessGone, Temporary
from sojourn.host import Migration
from sojourn.model import Member, Phase, Verdict
from sojourn.run import spawn


def restore(migration: Migration, deadline_s: float) -> float:
    """Rebuild the tree and let it run, if the journal accepts it; return when it ran, in seconds since the epoch.

    Raises CriuFailed, CommandTimedOut; what is left of the tree then is for ``refuse`` to clear away.
    """
    directory, resumed = migration.directory, migration.directory.work / "resumed"
    if migration.phase is Phase.RESTORING:
        _clear_away(migration)
    migration.learn(occupied=_existing(_pids(migration)), restore_began=process.ticks_since_boot())
    command = migration.host.criu.restore(
        migration.plan,
        images=directory.images,
        work=directory.work,
        script=migration.host.action_script,
        auto_dedup=migration.host.settings.auto_dedup,
    )
    environment = action.environment(migration.host.journal.path, migration.id, resumed)
    if migration.phase is not Phase.RESTORING:
        migration.become(Phase.RESTORING)
    child = spawn(command, output=directory.work / "restore.out", env=environment)
    with migration.holding_restore(process.identity(child.pid)):
        returncode = child.wait(deadline_s)
    migration.refresh()
    if returncode != 0 or migration.phase is not Phase.RESTORED:
        raise criu.failure("restore", returncode, shlex.join(child.argv), directory.work / "restore.log")
    return resumed.stat().st_mtime


def may_restore(migration: Migration) -> bool:
    """Whether the destination can roll forward by itself: it holds all images, and no restore has used them up."""
    fresh = migration.phase is Phase.RESERVED
    again = migration.phase is Phase.RESTORING and not migration.host.settings.auto_dedup
    return (fresh or again) and not migration.is_restoring() and _holds_everything(migration)


def refuse(migration: Migration) -> Verdict:
    """Say no for good if it is not too late, clear away what a failed restore left, and return the verdict.

    Raises Temporary while there is none yet.

    ``accepted`` is taken back only when CRIU has ended without ``restored``: it committed, failed in its last
    steps and killed the tree itself (``out_kill_network_unlocked`` in CRIU's cr-restore.c), so no instruction
    of it ran, and the source still holds the frozen original because it acts on ``restored`` alone.
    """
    if migration.phase is Phase.RESTORED:
        return Verdict.RESTORED
    if migration.phase is Phase.ACCEPTED:
        if migration.is_restoring():
            raise Temporary(f"CRIU has committed and is still at work on {migration.host.name}; ask again.")
        _clear_away(migration)
    if migration.phase is not Phase.REFUSED:
        migration.become(Phase.REFUSED)
    migration.end_processes()
    _clear_away(migration)
    return Verdict.REFUSED


def _clear_away(migration: Migration) -> None:
    """Kill what a restore made here and did not finish: processes of the tree's PIDs that began after it did."""
    occupied, began = migration.facts.get("occupied", []), migration.facts.get("restore_began")
    if began is None:
        return
    for pid in _pids(migration):
        with contextlib.suppress(ProcessGone):
            if pid not in occupied and process.stat(pid).start_time >= began:
                process.kill([Member(process.identity(pid))])


def _holds_everything(migration: Migration) -> bool:
    manifest = migration.facts.get("manifest")
    if manifest is None or migration.facts.get("page_server_exit") != 0:
        return False
    try:
        migration.directory.check(manifest)
    except ImagesIncomplete:
        return False
    return True


def _pids(migration: Migration) -> list[int]:
    """Return the tree's PIDs: as the source told them, or by the images, one ``core-<id>.img`` per thread."""
    if "pids" in migration.facts:
        return list(migration.facts["pids"])
    return [int(name[5:-4]) for name in migration.facts.get("manifest", {}) if name.startswith("core-")]


def _existing(pids: list[int]) -> list[int]:
    """Return those PIDs that belong to processes of this host already; they must never be taken for the tree's."""
    return [pid for pid in pids if process.exists(pid)]
