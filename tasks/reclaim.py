"""reclaim, on the source: take the process back at once, where this host may do so alone.

The first thing that an abort does, before the destination is asked: it may not answer. From
``released`` on nothing happens here, and its verdict decides. If the worker dies in between, the
row says ``resumed`` and what is held is finished later; a late message of the migration finds that
it was given up.
"""

from __future__ import annotations

from sojourn.migration.context import Migration
from sojourn.migration.recovery import PROOF
from sojourn.migration.source import fate, resume_original
from sojourn.model import Phase
from sojourn.state.message import Outcome
from tasks.step import step

#: The phases in which the source decides alone. It may be ``resumed`` already, and is so from the
#: beginning where its journal had no row of the migration.
ALONE = {Phase.OPEN, Phase.FREEZING, Phase.FROZEN, Phase.RESUMED}


@step(deadline_s=60, undo=True)
def reclaim(migration: Migration) -> Outcome:
    """Resume the process if the images have not left: then the destination cannot have taken it."""
    if migration.phase not in ALONE:
        return Outcome(
            f"too late to decide alone: it is {migration.phase} on {migration.host.name}"
        )
    sentence = resume_original(migration)
    return Outcome(sentence, PROOF[Phase.RESUMED] | fate(migration))
