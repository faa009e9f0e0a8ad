"""settle, on the destination: wait until all memory of the process is in place.

The process runs meanwhile, and waits only where it touches what is missing. All of its memory is on
this host, so nothing depends on the source; but in post-copy it is in the frozen original there.
The work is not done here but by the pager (``sojourn.transfer.pager``), which needs neither the
worker nor Redis.

* The worker or Redis dies: the pager finishes, and the reconciler finds it done.
* Pager and guard are both killed: the process is ended, and the migration is lost.
* In post-copy the network is cut: the process waits where it touches what is missing, until the
  pager can go on. The source host dies: once that is known the process is ended, and lost.
* This host dies: the process dies with it, as every process on it.

It only watches, so it holds no lock meanwhile: an operator's decision, or a source that finds its
original gone, reaches this host's journal at once, and is seen here. Where memory was in place
before the process ran, there is nothing to do. Safe to run again.
"""

from __future__ import annotations

import time
from typing import cast

from sojourn import units
from sojourn.errors import Temporary
from sojourn.migration import settling
from sojourn.migration.context import Migration
from sojourn.migration.rebuilding import resumed_at
from sojourn.model import Phase
from sojourn.state.facts import Facts
from sojourn.state.lock import lock
from sojourn.state.message import Outcome
from tasks.step import step

#: How long one attempt waits: others want to use the worker too. And how often people are shown how
#: it goes, in seconds.
ATTEMPT_S, PROGRESS_S = 20, 0.5

#: How long whoever else ends the process may take, in seconds.
LOCK_S = 5

#: What the pager has found out.
FOUND = (
    *("settled_at", "faults", "pages_bytes"),
    *("wait_median_ms", "wait_p99_ms", "wait_longest_ms"),
)

#: The original is not needed any more.
WINDOW_CLOSED: Facts = {"unsettled": False}


# Between two attempts nobody sees that pager and guard are both dead.
@step(deadline_s=30, begins_in={Phase.RESTORED}, retries=1000, longest_back_off_s=0.5, locks=False)
def settle(migration: Migration) -> Outcome:
    """Wait for the pager's report; end the process if nobody can make it any more."""
    # The process runs, and may need minutes for this: people must not look for it on the source.
    migration.host.ledger.record_owner(migration.id, migration.host.name)
    if not migration.facts.get("lazy"):
        return Outcome("all memory was in place before the process ran")
    until = time.monotonic() + ATTEMPT_S
    while migration.is_unsettled() and not settling.is_broken(migration):
        if time.monotonic() > until:
            raise Temporary(f"Memory is still coming into place on {migration.host.name}.")
        settling.watch(migration, min(until, time.monotonic() + PROGRESS_S))
        _show_progress(migration)
    if "settled_at" not in migration.facts or "memory_lost" in migration.facts:
        return _lost(migration)
    took = migration.facts["settled_at"] - resumed_at(migration)
    waits, longest = migration.facts.get("faults", 0), migration.facts.get("wait_longest_ms")
    at_most = f", {longest:.0f} ms at most" if longest is not None else ""
    return Outcome(
        f"all memory is in place, {took:.2f} s after the process ran; "
        f"it waited for {units.counted(waits, 'page')}{at_most}",
        _found(migration) | WINDOW_CLOSED,
    )


def _found(migration: Migration) -> Facts:
    return cast("Facts", {name: found for name, found in migration.facts.items() if name in FOUND})


def _show_progress(migration: Migration) -> None:
    """Show people how much is in place, as the pager has left it."""
    progress, total = settling.progress(migration), migration.facts["tree_bytes"]
    if progress and migration.is_unsettled():
        here = max(0, total - progress["missing"])
        migration.host.ledger.record_progress(migration.id, bytes=here, total=total, **progress)


def _lost(migration: Migration) -> Outcome:
    # Others may have found it too: who gives the verdict, or the reconciler.
    with lock(migration.directory.lock, LOCK_S):
        migration.refresh()
        missing = settling.lose(migration)
    gone = migration.facts.get("lost_with_original")
    why = f"the original on {migration.plan.source} is gone" if gone else "pager and guard are dead"
    return Outcome(
        f"{why}, with {missing / 1e6:.0f} MB missing; the process was ended",
        settling.loss(migration) | WINDOW_CLOSED,
    )
