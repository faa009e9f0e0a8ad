"""retire, on the source: kill the stopped original, because the process runs on the destination.

Needs the destination's ``restored``, which comes in the signed message of the step before. Only processes
whose start times match are killed, through pidfds. If the worker or this host dies in between, the original stays
frozen or dies with the host; the phase ``retired`` stays written, and what is held is finished later.
"""

from __future__ import annotations

from sojourn.errors import PhaseConflict
from sojourn.host import Migration
from sojourn.model import Outcome, Phase, Verdict
from sojourn.original import retire_original
from tasks.step import step


@step(deadline_s=60, begins_in={Phase.RELEASED, Phase.RETIRED})
def retire(migration: Migration) -> Outcome:
    """Kill the original."""
    if migration.facts.get("verdict") != Verdict.RESTORED:
        raise PhaseConflict(
            f"The original on {migration.host.name} is kept: nobody has said that the process runs elsewhere."
        )
    return Outcome(retire_original(migration), {"source_phase": Phase.RETIRED})
