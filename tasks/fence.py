"""fence, on a destination that was declared dead and is back: the process must not run here.

The message waits in the host's queue, sent when the source had resumed. What has not begun is
refused for good; what runs is ended, since the process runs on the source. If the worker dies in
between, its reconciler finds the operator's decision in the ledger and refuses likewise.
"""

from __future__ import annotations

from sojourn import units
from sojourn.migration.context import Migration
from sojourn.migration.destination import fence as fence_tree
from sojourn.model import Verdict
from sojourn.state.message import Outcome
from tasks.step import step


@step(deadline_s=60, undo=True)
def fence(migration: Migration) -> Outcome:
    """Refuse, or end what runs here of a process that an operator has given to the source."""
    ended = fence_tree(migration)
    there = f"the process runs on {migration.plan.source} by an operator's decision"
    return Outcome(
        f"{there}; {units.processes(ended)} of it ended here", {"verdict": Verdict.REFUSED}
    )
