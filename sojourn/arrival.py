"""The process's arrival on the destination: CRIU's restore, and the destination's verdict on it."""

from __future__ import annotations

import shlex
from pathlib import Path

from sojourn import action, criu, process, rebuilt
from sojourn.errors import FreezeTooLong, ImagesIncomplete, PhaseConflict, Temporary
from sojourn.host import Migration
from sojourn.model import Identity, Member, Phase, Verdict
from sojourn.run import Child, spawn

#: How long CRIU may take to let an accepted tree go, in seconds; milliseconds is what it needs.
LETTING_GO_S = 30


def restore(migration: Migration, deadline_s: float) -> float:
    """Rebuild the tree and let it run, if the journal accepts it; return when it ran, in seconds since the epoch.

    Raises PhaseConflict before anything is touched, for a message that comes too late: a tree may run here already, or
    CRIU be at work on it. Raises CriuFailed, FreezeTooLong, CommandTimedOut; what is left of the tree then is for
    ``refuse`` to clear away.
    """
    directory = migration.directory
    if not may_restore(migration):
        raise PhaseConflict(f"Too late to restore on {migration.host.name}: the migration is {migration.phase} there.")
    process.kill([Member(who) for who in _remains(migration)])
    occupied, now = _existing(_pids(migration)), process.ticks_since_boot()
    migration.learn(occupied=occupied, restore_began=now, restore_boot=process.boot_id())
    command = migration.host.criu.restore(
        migration.plan,
        images=directory.images,
        work=directory.work,
        script=migration.host.action_script,
        auto_dedup=migration.host.settings.auto_dedup,
    )
    environment = action.environment(migration.host.journal.path, migration.id, _resumed_file(migration))
    if migration.phase is not Phase.RESTORING:
        migration.become(Phase.RESTORING)
    child = spawn(command, output=directory.work / "restore.out", env=environment)
    returncode = _exit_code(child, migration, deadline_s)
    migration.refresh()
    if returncode != 0 or migration.phase is not Phase.RESTORED:
        raise criu.failure("restore", returncode, shlex.join(child.argv), directory.work / "restore.log")
    return resumed_at(migration)


def resumed_at(migration: Migration) -> float:
    """Return when the tree ran again, in seconds since the epoch: CRIU's action script leaves a file at that moment."""
    file = _resumed_file(migration)
    return file.stat().st_mtime if file.exists() else migration.entry.updated  # a crash of the host takes the file


def _resumed_file(migration: Migration) -> Path:
    return migration.directory.work / "resumed"


def _exit_code(child: Child, migration: Migration, deadline_s: float) -> int:
    """Return CRIU's exit code. At the deadline it is ended with its whole process group, but first the word is written.

    A tree that was accepted meanwhile is being let go, a matter of milliseconds. If CRIU hangs even there it is ended
    too (CommandTimedOut), and ``refuse`` judges by what it left.
    """
    if not child.ended_within(deadline_s) and _refused_in_time(migration):
        child.kill()
        raise FreezeTooLong(
            f"CRIU was still rebuilding process {migration.plan.pid} on {migration.host.name} after {deadline_s:.1f} s "
            "and was ended with all it had started.",
            "Allow more with `--max-freeze`, or look what kept CRIU.",
        )
    return child.wait(LETTING_GO_S)


def _refused_in_time(migration: Migration) -> bool:
    """Write ``refused`` unless CRIU's action script was faster; say whether it stands."""
    migration.refresh()
    if migration.phase is not Phase.RESTORING:
        return False
    try:
        migration.become(Phase.REFUSED)
    except PhaseConflict:
        return False
    return True


def may_restore(migration: Migration) -> bool:
    """Whether the destination can roll forward by itself: it holds all images, and no restore has used them up."""
    if migration.phase is Phase.RESTORING:
        again = not migration.host.settings.auto_dedup and not migration.at_work()
        return again and _holds_everything(migration)
    return migration.phase is Phase.RESERVED and _holds_everything(migration)


def refuse(migration: Migration) -> Verdict:
    """Say no for good if it is not too late, clear away what a failed restore left, and return the verdict.

    Raises Temporary while there is none yet, PhaseConflict if CRIU's action script was faster: ask again then.
    """
    if migration.phase is Phase.RESTORED:
        return Verdict.RESTORED
    if migration.phase is Phase.ACCEPTED and _has_woken(migration):
        migration.become(Phase.RESTORED)
        return Verdict.RESTORED
    # First the word, then the deed: what is killed here can not be accepted or restored any more.
    if "restore_ended" not in migration.facts:
        migration.learn(restore_ended=process.ticks_since_boot())
    if migration.phase is not Phase.REFUSED:
        migration.become(Phase.REFUSED)
    migration.end_processes()
    process.kill([Member(who) for who in _remains(migration)])
    for ghost in rebuilt.ghosts(migration.directory.work / "restore.log"):
        ghost.unlink(missing_ok=True)
    return Verdict.REFUSED


def _has_woken(migration: Migration) -> bool:
    """Tell whether a committed tree runs although nobody wrote ``restored``: CRIU was killed or failed too early.

    If none of its instructions has run, ``accepted`` may be taken back: the source acts on ``restored`` alone, and
    still holds the frozen original. Raises Temporary while CRIU works, and where it can not be told: never by guess.
    """
    if migration.facts.get("restore_boot") != process.boot_id():
        return False  # the tree died with this host: the original is all there is
    if migration.at_work():
        raise Temporary(f"CRIU has committed and is still at work on {migration.host.name}; ask again.")
    came = rebuilt.release(migration.directory.work / "restore.log")
    if came is not rebuilt.Release.UNFINISHED:
        return came is rebuilt.Release.DONE
    found = rebuilt.state(_pids(migration), migration.facts["restore_began"], migration.facts["occupied"])
    if found is rebuilt.State.RUNNING:
        return True
    raise Temporary(
        f"CRIU died on {migration.host.name} while it let the tree go, now {found}; the original stays frozen.",
        f"See docs/criu-deaths.md, then: sojourn resolve {migration.id}",
    )


def _remains(migration: Migration) -> list[Identity]:
    """Return what a restore made here and did not finish; never what a later migration or another boot has made."""
    facts = migration.facts
    if facts.get("restore_boot") != process.boot_id():
        return []
    made = rebuilt.members(_pids(migration), facts["restore_began"], facts["occupied"])
    return [who for who in made if who.start_time <= facts.get("restore_ended", who.start_time)]


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
