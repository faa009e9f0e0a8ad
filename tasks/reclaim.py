"""reclaim, on the source: take the process back at once, where this host may do so alone.

The first thing that an abort does, before the destination is asked: it may not answer. From ``released`` on nothing
happens here, and its verdict decides. If the worker dies in between, the row says ``resumed`` and what is held is
finished later; a late message of the migration finds that it was given up.
"""

from __future__ import annotations

from sojourn.host import Migration
from sojourn.model import Outcome, Phase
from sojourn.original import resume_original
from sojourn.recovery import PROOF
from tasks.step import step

#: Where the source decides alone; ``resumed`` it may be already, or from the beginning if it had never heard of it.
ALONE = {Phase.OPEN, Phase.FREEZING, Phase.FROZEN, Phase.RESUMED}


@step(deadline_s=60, undo=True)
def reclaim(migration: Migration) -> Outcome:
    """Resume the process if the images have not left; say that the destination can not have taken it."""
    if migration.phase not in ALONE:
        return Outcome(f"too late to decide alone: it is {migration.phase} on {migration.host.name}")
    sentence = resume_original(migration)
    return Outcome(sentence, {**PROOF[Phase.RESUMED], "gone": migration.facts.get("gone", False)})
