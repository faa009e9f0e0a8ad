"""restore and refuse, on the destination: the commit, and the answer no.

``restoring`` is written before CRIU starts. CRIU rebuilds the tree and asks the journal (``sojourn/commit.py``)
whether it may run; ``accepted`` is the commit, ``restored`` its completion.

* CRIU dies before the commit: ``refuse`` writes ``refused``, and the source resumes.
* CRIU hangs: when ``max_freeze_s`` is over, ``refused`` is written, then CRIU is ended with all it had started.
* The worker or Redis dies: CRIU and its action script finish without them; the verdict is in the journal.
* The source or the network dies: nothing here needs them any more.
* This host dies before the commit: its images are gone, so it refuses when it is back. After it: it is the process's
  own host that died.

A second delivery, or one that the reconciler overtook, finds the outcome in the journal, or ``restored``, and does
nothing; where CRIU is at work, or was, it fails before it touches anything.
"""

from __future__ import annotations

import contextlib
import time

from sojourn import arrival
from sojourn.errors import CommandTimedOut, CriuFailed, FreezeTooLong, ImagesIncomplete
from sojourn.host import Migration
from sojourn.model import Outcome, Phase, Verdict
from tasks.step import step

#: How long the page server may take to write its last pages after the dump is done.
LAST_PAGES_S = 30


@step(deadline_s=60, begins_in={Phase.RESERVED, Phase.RESTORED}, in_freeze=True)
def restore(migration: Migration) -> Outcome:
    """Check that everything is here, rebuild the tree, and let it run."""
    if migration.phase is Phase.RESTORED:
        return _arrived(migration, arrival.resumed_at(migration))
    _await_page_server(migration)
    migration.directory.check(migration.facts["manifest"])
    return _arrived(migration, arrival.restore(migration, _freeze_left_s(migration)))


@step(deadline_s=60, undo=True, retries=5)
def refuse(migration: Migration) -> Outcome:
    """Write ``refused`` unless the process was already taken, and tell the source the verdict."""
    verdict = arrival.refuse(migration)
    if verdict is Verdict.RESTORED:
        told = {"verdict": verdict, **arrival.fate(migration)}
        return Outcome(f"too late to refuse: the process runs on {migration.host.name}", told)
    return Outcome(f"{migration.host.name} will not run the process", {"verdict": verdict})


@step(deadline_s=60, in_freeze=True, undo=True)
def decide(migration: Migration) -> Outcome:
    """Give the destination's verdict on a migration that stands still: forward if all is here, else no.

    The source asks for it when it has released the images and hears nothing, or this host itself does. It may be asked
    any number of times, by anybody; a host that never heard of the migration says no for good. However long the freeze
    has lasted by now, going forward is tried: perhaps the source is gone, and what is here is all there is.
    """
    if arrival.may_restore(migration):
        with contextlib.suppress(CriuFailed, FreezeTooLong, CommandTimedOut):
            return _arrived(migration, arrival.restore(migration, migration.plan.max_freeze_s))
        migration.refresh()
    verdict = arrival.refuse(migration)
    return Outcome(f"{migration.host.name} says: {verdict}", {"verdict": verdict, **arrival.fate(migration)})


def _arrived(migration: Migration, resumed_at: float) -> Outcome:
    migration.give_slot_back()  # nobody is frozen here any more, whenever the source comes to say that it may go
    facts = {"verdict": Verdict.RESTORED, "resumed_at": resumed_at, "images_at": migration.facts.get("images_at")}
    return Outcome(f"process {migration.plan.pid} runs on {migration.host.name}", facts)


def _freeze_left_s(migration: Migration) -> float:
    """Return how much longer the freeze may last: what the source had left, less what has passed here since.

    Each host counts by its own clock. Raises FreezeTooLong.
    """
    since = migration.facts.get("images_at") or time.time()
    left = float(migration.facts["freeze_left_s"] - (time.time() - since))
    if left <= 0:
        raise FreezeTooLong(
            f"Process {migration.plan.pid} was frozen for longer than {migration.plan.max_freeze_s:g} s before "
            f"{migration.host.name} came to restore it.",
            "Allow more with `--max-freeze`, or look what kept the worker.",
        )
    return left


def _await_page_server(migration: Migration) -> None:
    """Wait for the page server's exit code: it acknowledges to the dump before its last write."""
    until = time.monotonic() + min(LAST_PAGES_S, _freeze_left_s(migration))
    while (returncode := migration.facts.get("page_server_exit")) is None and time.monotonic() < until:
        time.sleep(0.005)
        migration.refresh()
    if returncode != 0:
        raise ImagesIncomplete(
            f"The page server on {migration.host.name} ended badly (exit code {returncode}); not all memory is here.",
            f"Its log is {migration.directory.work / 'page-server.log'}.",
        )
