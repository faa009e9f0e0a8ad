"""confirm, on the destination: look whether the process that arrived lives.

Reads only. It runs while the source retires the original, so nobody waits for it frozen, and it
changes nothing of what was decided: a process that ends after the commit has ended, as it may
anywhere; but nothing should report that it runs. If the worker or this host dies here, the end of
the migration is reported by the reconcilers without this look.
"""

from __future__ import annotations

from sojourn.migration import life
from sojourn.migration.context import Migration
from sojourn.migration.rebuilding import resumed_at
from sojourn.model import Phase
from sojourn.state.message import Outcome
from tasks.step import step


@step(deadline_s=10, begins_in={Phase.RESTORED})
def confirm(migration: Migration) -> Outcome:
    """Watch the root for a moment; how it ended is known best to the step that held it before."""
    facts = migration.facts
    if "ended_after_ms" in facts:
        return Outcome(_sentence(facts["ended_after_ms"], facts.get("ended_by", "")))
    ended = life.watch(migration, resumed_at(migration))
    if not ended:
        return Outcome(f"process {migration.plan.pid} lives")
    return Outcome(_sentence(ended["ended_after_ms"], ended["ended_by"]), ended)


def _sentence(after_ms: float, cause: str) -> str:
    by = f", by {cause}" if cause else ""
    return f"the process ended {after_ms:.0f} ms after it ran again{by}"
