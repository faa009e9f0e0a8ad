"""The original of a process, on the source: given back to its host, or killed because it runs elsewhere.

In both, the final phase is written first and the tree stays noted as held until the act is done; so a death in
between leaves something to finish, never something to decide again. Both may run any number of times.
"""

from __future__ import annotations

from sojourn import criu, network, process
from sojourn.host import Migration
from sojourn.model import Identity, Member, Phase


def tree_as_it_was(migration: Migration) -> list[Member]:
    """Return the tree as it is now, each process marked as stopped only if it was so before the freeze."""
    stopped = {member.identity for member in migration.entry.tree if member.stopped}
    return [Member(member.identity, stopped=member.identity in stopped) for member in process.tree(migration.plan.pid)]


def resume_original(migration: Migration) -> str:
    """Let the process run on here; the caller has made sure that it may. Return what was done."""
    if migration.phase is not Phase.RESUMED:
        migration.become(Phase.RESUMED)
    migration.end_processes()
    if not _holds_tree(migration):
        return _not_held(migration)
    members = _left_of_tree(migration)
    woken = _thaw(migration, members) if members else 0
    migration.learn(gone=not members)
    _let_go(migration)
    return _resumed(migration, members, woken)


def retire_original(migration: Migration) -> str:
    """Kill the frozen original; the caller holds the destination's ``restored``. Return what was done."""
    if migration.phase is not Phase.RETIRED:
        migration.become(Phase.RETIRED)
    killed = process.kill(migration.entry.tree) if _holds_tree(migration) else 0
    _unlock_network(migration)
    _let_go(migration)
    return f"the original on {migration.host.name} is gone ({killed} processes)"


def _not_held(migration: Migration) -> str:
    """Say what has become of a process that was never held, or is no more; its host may have crashed meanwhile."""
    pid, here, root = migration.plan.pid, migration.host.name, migration.facts.get("root")
    if "gone" not in migration.facts:
        lives = process.is_alive(Identity(**root)) if root else process.exists(pid)
        migration.learn(gone=not lives)
    if migration.facts["gone"]:
        return f"process {pid} has ended on {here}, or died with that host"
    return f"process {pid} runs on {here}, and is not held"


def _left_of_tree(migration: Migration) -> list[Member]:
    """Return what is left of the tree, whoever has its PIDs by now; children outlive a root that was killed."""
    stopped = {member.identity for member in migration.entry.tree if member.stopped}
    left = process.descent(member.identity for member in migration.entry.tree)
    return [Member(member.identity, stopped=member.identity in stopped) for member in left]


def _resumed(migration: Migration, members: list[Member], woken: int) -> str:
    """Say what runs on here."""
    pid, here = migration.plan.pid, migration.host.name
    if not members:
        return f"process {pid} ended on {here}; nothing of it is left to resume"
    if migration.entry.tree[0].identity not in {member.identity for member in members}:
        return f"process {pid} ended on {here}; what is left of its tree runs on ({woken} processes woken)"
    return f"process {pid} runs on {here} as before ({woken} processes woken)"


def _thaw(migration: Migration, members: list[Member]) -> int:
    """Undo what the dump left: the network lock, sockets in repair mode, stopped processes."""
    _unlock_network(migration)
    if migration.plan.tcp_established:
        network.leave_repair_mode(members)
    return process.wake(members)


def _unlock_network(migration: Migration) -> None:
    run_id = criu.run_id(migration.directory.work / "dump.log") if migration.plan.tcp_established else None
    if run_id:
        network.unlock(run_id)


def _holds_tree(migration: Migration) -> bool:
    return bool(migration.host.journal.held(migration.entry, "tree"))


def _let_go(migration: Migration) -> None:
    migration.host.journal.let_go(migration.entry, "tree", "frozen")
    migration.give_slot_back()
