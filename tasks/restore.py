"""restore and refuse, on the destination: the commit, and the answer no.

What the tree has in memory under a name is made first (``sojourn.migration.carried``): a refusal
removes it. ``restoring`` is written before CRIU starts. CRIU rebuilds the tree and asks the journal
(``sojourn/state/commit.py``) whether it may run; ``accepted`` is the commit, ``restored`` its
completion.

* CRIU dies before the commit: ``refuse`` writes ``refused``, and the source resumes.
* CRIU hangs: when ``max_freeze_s`` is over, ``refused`` is written, then CRIU is ended with all it
  had started.
* The worker or Redis dies: CRIU and the rebuilder finish without them; the verdict is in the
  journal.
* The source or the network dies: nothing here needs them any more.
* This host dies before the commit: its images are gone, so it refuses when it is back. After it: it
  is the process's own host that died.

A second delivery, or one that the reconciler overtook, finds the outcome in the journal, or
``restored``, and does nothing; where CRIU is at work, or was, it fails before it touches anything.
"""

from __future__ import annotations

import contextlib
import time
from typing import cast

from sojourn.errors import CommandTimedOut, CriuFailed, FreezeTooLong, ImagesIncomplete
from sojourn.migration import destination, permission, settling
from sojourn.migration.context import Migration
from sojourn.migration.rebuilding import resumed_at, seen_to_run
from sojourn.model import Phase, Verdict
from sojourn.state.facts import Facts
from sojourn.state.message import Outcome
from tasks.step import step

#: How long the page server may take to write its last pages after the dump is done.
LAST_PAGES_S = 30


@step(deadline_s=60, begins_in={Phase.RESERVED, Phase.RESTORED}, in_freeze=True)
def restore(migration: Migration) -> Outcome:
    """Check that everything is here, rebuild the tree, and let it run."""
    # A second delivery, whose first one died before it could record its outcome.
    if migration.phase is Phase.RESTORED:
        return _arrived(migration, Facts(resumed_at=resumed_at(migration)))
    permission.check(migration)
    if not migration.plan.post_copy:
        _await_page_server(migration)
    migration.directory.check(migration.facts["manifest"])
    return _arrived(migration, destination.restore(migration, _freeze_left_s(migration)))


@step(deadline_s=60, undo=True, retries=5)
def refuse(migration: Migration) -> Outcome:
    """Write ``refused`` unless the process was already taken, and pass the verdict on."""
    verdict = destination.refuse(migration)
    if verdict is Verdict.RESTORED:
        sentence = f"too late to refuse: the process runs on {migration.host.name}"
        return Outcome(sentence, _verdict(migration, verdict))
    return Outcome(f"{migration.host.name} will not run the process", {"verdict": verdict})


@step(deadline_s=60, in_freeze=True, undo=True)
def decide(migration: Migration) -> Outcome:
    """Decide a stalled migration: restore it if everything is here, else refuse it.

    The source asks for the verdict when it has released the images and gets no answer, or this host
    itself does. It may be asked any number of times, by anybody; a host without a record of the
    migration refuses it for good. However long the freeze has lasted by now, a restore is tried:
    perhaps the source is gone, and what is here is all there is.
    """
    if destination.may_restore(migration):
        # A restore that fails ends in a refusal and not in an error: whoever asks needs a verdict.
        with contextlib.suppress(CriuFailed, FreezeTooLong, CommandTimedOut):
            return _arrived(migration, destination.restore(migration, migration.plan.max_freeze_s))
        migration.refresh()
    if settling.is_broken(migration):
        settling.lose(migration)
    verdict = destination.refuse(migration)
    return Outcome(f"the verdict of {migration.host.name}: {verdict}", _verdict(migration, verdict))


def _verdict(migration: Migration, verdict: Verdict) -> Facts:
    facts = Facts(verdict=verdict) | destination.aftermath(migration)
    ran = _ran_at(migration) if verdict is Verdict.RESTORED else {}
    return facts | ran | _window(migration)


def _ran_at(migration: Migration) -> Facts:
    """Return when the tree ran again here, for whoever asks and has not been told."""
    known = migration.host.journal.known(migration.entry)
    written = migration.host.journal.phase_times(migration.entry).get(Phase.RESTORED)
    ran = known.get("resumed_at") or seen_to_run(migration) or written
    if ran is None:
        return {}
    began = {"freeze_started": known["freeze_started"]} if "freeze_started" in known else {}
    return cast("Facts", {"resumed_at": ran, "images_at": known.get("images_at"), **began})


def _window(migration: Migration) -> Facts:
    """Return whether the source must keep the original, which it learns in post-copy alone."""
    if not migration.plan.post_copy:
        return {}
    return {"unsettled": migration.is_unsettled()}


def _arrived(migration: Migration, found: Facts) -> Outcome:
    # Nothing is frozen here any more, whenever the source's message comes to release the rest.
    migration.give_slot_back()
    facts = found | Facts(verdict=Verdict.RESTORED, images_at=migration.facts.get("images_at"))
    facts |= _window(migration)
    sentence = f"process {migration.plan.pid} runs on {migration.host.name}"
    return Outcome(f"{sentence}{_still_to_come(migration)}{_parted(migration)}", facts)


def _still_to_come(migration: Migration) -> str:
    """Return what the process needs the source for; empty where it needs nothing of it."""
    needed = migration.plan.post_copy and migration.is_unsettled()
    return f"; its memory still comes from {migration.plan.source}" if needed else ""


def _parted(migration: Migration) -> str:
    """Return what changed for the process since its parent stayed behind; empty if nothing did."""
    number = migration.facts.get("parent_death_signal")
    return f"; it no longer gets signal {number} when its parent ends" if number else ""


def _freeze_left_s(migration: Migration) -> float:
    """Return how much longer the freeze may last: what the source had left, less what passed here.

    Each host counts by its own clock. Raises FreezeTooLong.
    """
    # Images that scp(1) has copied have no time of arrival here: those count from now.
    since = migration.facts.get("images_at") or time.time()
    left = float(migration.facts["freeze_left_s"] - (time.time() - since))
    if left <= 0:
        raise FreezeTooLong(
            f"Process {migration.plan.pid} was frozen for longer than "
            f"{migration.plan.max_freeze_s:g} s before {migration.host.name} came to restore it.",
            "Allow more with `--max-freeze`, or find out what delayed the worker.",
        )
    return left


def _await_page_server(migration: Migration) -> None:
    """Wait for the page server's exit code: it acknowledges to the dump before its last write."""
    # Read from the journal: the holder is the child of another step, perhaps of a dead worker.
    until = time.monotonic() + min(LAST_PAGES_S, _freeze_left_s(migration))
    while (
        returncode := migration.facts.get("page_server_exit")
    ) is None and time.monotonic() < until:
        time.sleep(0.005)
        migration.refresh()
    if returncode != 0:
        raise ImagesIncomplete(
            f"The page server on {migration.host.name} failed (exit code {returncode}); "
            "not all memory is here.",
            f"Its log is {migration.directory.work / 'page-server.log'}.",
        )
