"""forestall, on the source: make sure that a migration which has not begun never will.

What was taken out of the queue, or given up there, is over; but Redis is not trusted: whoever
writes to it can put back what was taken out, or make a migration look as if it had never begun. So
its end goes into the source's journal: an undo that finds no row leaves a final one, after which
every other message comes too late. If the migration has begun, nothing is done: the hosts move it
on. Safe to repeat; if the worker dies before, the message is lost, and the next one does it.
"""

from __future__ import annotations

from sojourn.migration.context import Migration
from sojourn.migration.recovery import PROOF
from sojourn.model import Phase
from sojourn.state.message import Outcome
from tasks.step import step


# Without a lock, which a step of a migration that has begun may hold for long: SQLite decides which
# of the two makes the row.
@step(deadline_s=30, undo=True, locks=False)
def forestall(migration: Migration) -> Outcome:
    """Report whether it will never begin here, which the row proves that this delivery found."""
    here = migration.host.name
    if migration.phase is not Phase.RESUMED:
        return Outcome(f"nothing was done: it has begun, and is {migration.phase} on {here}")
    return Outcome(f"it never begins on {here}", PROOF[Phase.RESUMED])
