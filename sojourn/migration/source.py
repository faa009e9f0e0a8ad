"""The original of a process, on the source: resumed here, or killed because it runs elsewhere.

In both, the final phase is written first and the tree stays noted as held until the act is done; so
a death in between leaves something to finish, never something to decide again. Both are safe to
repeat.
"""

from __future__ import annotations

import contextlib
import time

from sojourn import units
from sojourn.criu import files_image, logs
from sojourn.errors import SojournError
from sojourn.migration import carried, interrupted, life, names, signal_masks, unit
from sojourn.migration.context import Migration
from sojourn.model import Identity, Member, Phase
from sojourn.state.facts import Facts
from sojourn.system import process, tcp
from sojourn.system.network import has_own_network
from sojourn.system.pidfd import Held


def tree_as_it_was(migration: Migration) -> list[Member]:
    """Return the tree as it is now; ``stopped`` is only what was so before the freeze."""
    stopped = {member.identity for member in migration.entry.tree if member.stopped}
    return [
        Member(member.identity, stopped=member.identity in stopped)
        for member in process.tree(migration.plan.pid)
    ]


def resume_original(migration: Migration) -> str:
    """Let the process run on here, supervised as before; return what was done.

    The caller has made sure that it may.
    """
    sentence = _resume(migration)
    # After the process, which must not wait for its supervisor.
    return f"{sentence}{unit.put_back(migration)}"


def _resume(migration: Migration) -> str:
    if migration.phase is not Phase.RESUMED:
        migration.become(Phase.RESUMED)
    # Before anything runs here: what is handed out must not change any more.
    migration.end_senders()
    # A CRIU that still holds the tree would stop again what is woken here.
    migration.end_processes()
    names.put_back(migration)
    if not _holds_tree(migration):
        return _not_held(migration)
    members = _left_of_tree(migration)
    with contextlib.closing(_root_among(migration, members)) as root:
        woken = _thaw(migration, members) if members else 0
        woken_at = time.time()
        # Nobody waits for its place while it is watched. A worker that dies meanwhile has not
        # reported yet what became of it: the next one looks.
        _let_go(migration)
        ended = life.ended(root, woken_at, life.WATCH_S)
    migration.learn(**ended | Facts(gone=not _left_of_tree(migration), woken_at=woken_at))
    return _resumed(migration, members, woken)


def fate(migration: Migration) -> Facts:
    """Return what became of a process that was resumed here, for the other host and for people."""
    facts = migration.facts
    found = Facts(gone=facts.get("gone", False))
    # Also where the one who asked knows nothing of the freeze, such as an operator's program.
    known = migration.host.journal.known(migration.entry)
    if "freeze_started" in known and "woken_at" in known:
        found |= Facts(freeze_started=known["freeze_started"], woken_at=known["woken_at"])
    if "ended_after_ms" in facts:
        found |= Facts(ended_after_ms=facts["ended_after_ms"], ended_by=facts["ended_by"])
    return found


def _root_among(migration: Migration, members: list[Member]) -> Held:
    """Hold the root before it is woken, if it is there: only so can be known how it ends."""
    root = migration.entry.tree[0].identity
    held = Held(root.pid if root in {member.identity for member in members} else 0)
    held.open()
    return held


def retire_original(migration: Migration) -> str:
    """Kill the frozen original; the caller holds ``restored``. Returns what was done."""
    if migration.phase is not Phase.RETIRED:
        migration.become(Phase.RETIRED)
    # A tree that is not held any more was killed by an earlier call: its PIDs may be others' now.
    killed = process.kill(migration.entry.tree) if _holds_tree(migration) else 0
    migration.end_senders()
    # Only after the kill, and without leaving repair mode: a socket that is closed in repair mode
    # sends nothing, so the connection lives on at the destination. Otherwise its peer would get a
    # FIN or RST.
    _unlock_network(migration, [])
    carried.leave(migration)
    _let_go(migration)
    names.let_go(migration)
    unit.leave_stopped(migration)
    return f"the original on {migration.host.name} is gone ({units.processes(killed)})"


def _not_held(migration: Migration) -> str:
    """Return what became of a process that was never held, or was held before a crash."""
    pid, here, root = migration.plan.pid, migration.host.name, migration.facts.get("root")
    if "gone" not in migration.facts:
        lives = process.is_alive(Identity(**root)) if root else process.exists(pid)
        migration.learn(gone=not lives)
    if migration.facts["gone"]:
        return f"process {pid} has ended on {here}, or died with that host"
    return f"process {pid} runs on {here}, and is not held"


def _left_of_tree(migration: Migration) -> list[Member]:
    """Return what is left of the tree; children outlive a root that was killed."""
    # By identity, not by PID: another process may have one of its PIDs by now.
    stopped = {member.identity for member in migration.entry.tree if member.stopped}
    left = process.descent(member.identity for member in migration.entry.tree)
    return [Member(member.identity, stopped=member.identity in stopped) for member in left]


def _resumed(migration: Migration, members: list[Member], woken: int) -> str:
    """Return what runs on here, as a sentence."""
    pid, here = migration.plan.pid, migration.host.name
    if not members:
        return f"process {pid} ended on {here}; nothing of it is left to resume"
    if "ended_after_ms" in migration.facts:
        return f"process {pid} was woken on {here}, and {life.sentence(migration.facts)}"
    if migration.entry.tree[0].identity not in {member.identity for member in members}:
        left = f"what is left of its tree runs on ({units.processes(woken)} woken)"
        return f"process {pid} ended on {here}; {left}"
    return f"process {pid} runs on {here} as before ({units.processes(woken)} woken)"


def _thaw(migration: Migration, members: list[Member]) -> int:
    """Undo what the dump left: network lock, repair mode, ended calls, blocked signals, stops."""
    # In this order: a process that wakes must find its connections usable.
    _unlock_network(migration, members)
    tcp.leave_repair_mode(members, _reused_addresses(migration))
    interrupted.mend_original(migration, members)
    signal_masks.put_back(migration, members)
    return process.wake(members)


def _unlock_network(migration: Migration, members: list[Member]) -> None:
    """Remove the network lock of the dump, in the network namespace where it is, if there is one.

    A namespace of the tree's own ends with the tree, and so does what is in it.
    """
    own = next((one.identity.pid for one in members if has_own_network(one.identity.pid)), None)
    locked = migration.plan.tcp_established or own
    run_id = logs.run_id(migration.directory.work / "dump.log") if locked else None
    if run_id:
        tcp.unlock(run_id, own)


def _reused_addresses(migration: Migration) -> dict[int, bool]:
    """Return which sockets had SO_REUSEADDR set, by the images; empty if the dump was cut short."""
    try:
        return files_image.reused_addresses(migration.directory.images)
    except SojournError:
        return {}


def _holds_tree(migration: Migration) -> bool:
    return bool(migration.host.journal.held(migration.entry, "tree"))


def _let_go(migration: Migration) -> None:
    migration.host.journal.let_go(migration.entry, "tree", "frozen")
    migration.give_slot_back()
