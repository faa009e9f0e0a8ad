"""give_way, on a destination that an operator has declared dead and that is back: nothing of the process runs here.

The message waits in the host's queue, sent when the source had resumed. What has not begun is refused for good; what
runs is ended, since the process runs on the source. If the worker dies in between, its reconciler finds the
operator's word in the ledger and refuses likewise.
"""

from __future__ import annotations

from sojourn.arrival import give_way as give_way_to_source
from sojourn.host import Migration
from sojourn.model import Outcome, Verdict
from tasks.step import step


@step(deadline_s=60, undo=True)
def give_way(migration: Migration) -> Outcome:
    """Refuse, or end what runs here of a process that runs on the source by an operator's word."""
    ended = give_way_to_source(migration)
    there = f"the process runs on {migration.plan.source} by an operator's word"
    return Outcome(f"{there}; {ended} processes of it were ended here", {"verdict": Verdict.REFUSED})
