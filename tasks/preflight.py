"""preflight, on both hosts: say no before anything is touched.

Reads only, so it is safe to run again. If anything dies here, both hosts are as they were, but for a row in
their journals.
"""

from __future__ import annotations

from sojourn import process
from sojourn.errors import ProcessGone, Refused
from sojourn.host import Migration
from sojourn.model import Outcome, Role
from sojourn.preflight import candidate
from tasks.step import step


@step(deadline_s=30, opens=True, retries=5)
def preflight(migration: Migration) -> Outcome:
    """Check the process on the source, and CRIU on both hosts."""
    if migration.role is Role.SOURCE:
        return _source(migration)
    version = migration.host.criu.version()
    return Outcome(f"{migration.host.name} can take it: CRIU {version}")


def _source(migration: Migration) -> Outcome:
    pid = migration.plan.pid
    candidate.check(pid, migration.host.worker_pid())
    migration.host.criu.version()
    try:
        members = process.tree(pid)
    except ProcessGone as gone:
        raise Refused(gone.message) from None
    other = migration.host.journal.claimant(members, but=migration.id)
    if other:
        raise Refused(f"Process {pid} is being migrated already, by {other}.", f"See `sojourn show {other}`.")
    size = process.memory_bytes(members)
    return Outcome(
        f"{process.command_line(pid)[:60]}: {len(members)} processes, {size / 1e6:.0f} MB",
        {"tree_bytes": size, "processes": len(members)},
    )
