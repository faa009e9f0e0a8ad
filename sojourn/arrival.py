"""The process's arrival on the destination: CRIU's restore, and the destination's verdict on it."""

from __future__ import annotations

import shlex
from pathlib import Path

from sojourn import action, criu, process, rebuilt
from sojourn.errors import CriuFailed, FreezeTooLong, ImagesIncomplete, PhaseConflict, Temporary
from sojourn.host import Migration
from sojourn.model import Identity, Json, Member, Phase, Role, Verdict
from sojourn.preflight import pids
from sojourn.run import Child, spawn

#: How long CRIU may take to let an accepted tree go, in seconds; milliseconds is what it needs.
LETTING_GO_S = 30


def restore(migration: Migration, deadline_s: float) -> float:
    """Rebuild the tree and let it run, if the journal accepts it; return when it ran, in seconds since the epoch.

    Raises PhaseConflict before anything is touched: for a message that comes too late, when a tree may run here already
    or CRIU be at work on it; or if an operator has given the process back to the source. StoreUnreachable if that can
    not be known. Raises CriuFailed, FreezeTooLong, CommandTimedOut; what is left of the tree then is for
    ``refuse`` to clear away.
    """
    directory = migration.directory
    migration.hear_operator()
    if not may_restore(migration):
        raise PhaseConflict(f"Too late to restore on {migration.host.name}: {_why_not(migration)}.")
    process.kill([Member(who) for who in _remains(migration)])
    check_pids(migration)
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


def check_pids(migration: Migration) -> None:
    """Raise CriuFailed, with the owner, if a PID that the restore needs is taken here: before CRIU is even started.

    Asks for each PID alone, since a frozen tree may be waiting; the owner is looked for only if there is one. A tree in
    a PID namespace of its own needs none.
    """
    needed = migration.facts.get("needed_pids", [])
    taken = _existing([*needed, *_pids(migration)] if needed else [])
    for finding in pids.taken(taken):
        raise CriuFailed(f"On {migration.host.name}: {finding.sentence}", finding.hint, finding.code)


def may_restore(migration: Migration) -> bool:
    """Whether the destination can roll forward by itself: it holds all images, and no restore has used them up.

    Never once an operator has declared it dead: the source has the process back.
    """
    if migration.is_declared_dead(Role.DESTINATION):
        return False
    if migration.phase is Phase.RESTORING:
        again = not migration.host.settings.auto_dedup and not migration.at_work()
        return again and _holds_everything(migration)
    return migration.phase is Phase.RESERVED and _holds_everything(migration)


def _why_not(migration: Migration) -> str:
    if migration.is_declared_dead(Role.DESTINATION):
        return "an operator has said that this host is dead"
    return f"the migration is {migration.phase} there"


def refuse(migration: Migration) -> Verdict:
    """Say no for good if it is not too late, clear away what a failed restore left, and return the verdict.

    Raises Temporary while there is none yet, PhaseConflict if CRIU's action script was faster: ask again then.
    """
    if migration.phase is Phase.RESTORED:
        return Verdict.REFUSED if migration.facts.get("gave_way") else Verdict.RESTORED
    if migration.phase is Phase.ACCEPTED and _is_here(migration):
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


def fate(migration: Migration) -> Json:
    """Return what people must be told beside the verdict: that the process has died since, or may not be whole."""
    facts, here = migration.facts, migration.host.name
    if migration.phase is not Phase.RESTORED or facts.get("gave_way"):
        return {}
    if not _is_of_this_boot(migration):
        return {"died_on": here}
    if facts.get("partial"):
        told = f"{here}: CRIU died while it let the tree go. An operator let go on what there is of it; look at it."
        return {"pending": [told]}
    return {}


def give_way(migration: Migration) -> int:
    """End what runs of the process here, because it runs on the source by an operator's word; return how many it was.

    Nothing else ends a tree that has run. It must be known that the source has resumed, so that one copy is left.
    Raises PhaseConflict if it is not.
    """
    resumed = migration.facts.get("source_phase") == Phase.RESUMED
    if not (resumed and migration.is_declared_dead(Role.DESTINATION)):
        raise PhaseConflict(f"Nobody has given the process back to {migration.plan.source}; it stays as it is.")
    if refuse(migration) is Verdict.REFUSED:
        return 0
    migration.learn(gave_way=True)
    return process.kill(process.descent(_remains(migration)))


def _is_here(migration: Migration) -> bool:
    """Tell whether a committed tree counts as running here. Where that can not be told, an operator's word decides.

    With the destination declared dead nothing may be left of it. With the source declared dead, what there is of it
    is all that there will ever be. Raises Temporary without such a word.
    """
    try:
        return _has_woken(migration)
    except Temporary:
        if migration.is_declared_dead(Role.DESTINATION):
            return False
        if not migration.is_declared_dead(Role.SOURCE) or migration.at_work():
            raise
    migration.learn(partial=_runs_partly(migration))
    return bool(migration.facts["partial"])


def _runs_partly(migration: Migration) -> bool:
    if not _is_of_this_boot(migration):
        return False
    return _found(migration) not in {rebuilt.State.GONE, rebuilt.State.STUCK}


def _found(migration: Migration) -> rebuilt.State:
    """Look what there is of the tree now."""
    return rebuilt.state(_pids(migration), migration.facts["restore_began"], migration.facts["occupied"])


def _is_of_this_boot(migration: Migration) -> bool:
    """Whether this host has not been down since the restore began: what that had made died with it."""
    return bool(migration.facts.get("restore_boot") == process.boot_id())


def _has_woken(migration: Migration) -> bool:
    """Tell whether a committed tree runs although nobody wrote ``restored``: CRIU was killed or failed too early.

    If none of its instructions has run, ``accepted`` may be taken back: the source acts on ``restored`` alone, and
    still holds the frozen original. Raises Temporary while CRIU works, and where it can not be told: never by guess.
    """
    if not _is_of_this_boot(migration):
        raise Temporary(
            f"{migration.host.name} crashed while it let the tree go, which may have run there for a moment; "
            "the original stays frozen.",
            f"See docs/troubleshooting.md, then: sojourn resolve {migration.id}",
        )
    if migration.at_work():
        raise Temporary(f"CRIU has committed and is still at work on {migration.host.name}; ask again.")
    came = rebuilt.release(migration.directory.work / "restore.log")
    if came in {rebuilt.Release.DONE, rebuilt.Release.FAILED}:
        return came is rebuilt.Release.DONE
    found = _found(migration)
    if found is rebuilt.State.RUNNING:
        return True
    if came is rebuilt.Release.NOT_BEGUN and found is rebuilt.State.STUCK:
        return False
    raise Temporary(
        f"CRIU died on {migration.host.name} while it let the tree go, now {found}; the original stays frozen.",
        f"See docs/criu-deaths.md, then: sojourn resolve {migration.id}",
    )


def _remains(migration: Migration) -> list[Identity]:
    """Return what a restore made here and did not finish; never what a later migration or another boot has made."""
    facts = migration.facts
    if not _is_of_this_boot(migration):
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
