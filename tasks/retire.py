"""retire, on the source: kill the stopped original, because the process runs on the destination.

Needs the destination's ``restored``, which comes in the signed message of the step before, and in
post-copy its word that the last page has arrived. Only
processes whose start times match are killed, through pidfds; then the files in memory that moved
with them are removed, by their inodes. If the worker or this host dies in between, the original
stays frozen or dies with the host; the phase ``retired`` stays written, and what is held is
finished later.
"""

from __future__ import annotations

from sojourn.errors import PhaseConflict
from sojourn.migration.context import Migration
from sojourn.migration.source import retire_original
from sojourn.model import Phase, Verdict
from sojourn.state.message import Outcome
from tasks.step import step


# Also in ``retired``: a reconciler may have been faster, and what it has left undone is done here.
@step(deadline_s=60, begins_in={Phase.RELEASED, Phase.RETIRED})
def retire(migration: Migration) -> Outcome:
    """Kill the original."""
    if migration.facts.get("verdict") != Verdict.RESTORED:
        raise PhaseConflict(
            f"The original on {migration.host.name} is kept: "
            "no host has reported that the process runs there."
        )
    if migration.must_keep_original():
        raise PhaseConflict(
            f"The original on {migration.host.name} is kept: "
            f"{migration.plan.destination} does not have all of its memory yet."
        )
    return Outcome(retire_original(migration), {"source_phase": Phase.RETIRED})
