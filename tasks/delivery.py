"""One delivery of one step on this host: what stands around the work of every step.

``Delivery``  opens the migration in the journal, answers from the record or makes an attempt
``Record``    writes the start, the end and the failure of an attempt: journal, ledger, log
``_failure``  turns what an attempt raised into a Failure, which is a value

Around them: a lock per migration and host (``sojourn.state.lock``), and a deadline
(``sojourn.system.alarm``). If the worker dies anywhere in here, the journal keeps the phase and
what is held; nothing is done twice and nothing is forgotten.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace

from sojourn.errors import JournalFailed, JournalLost, PhaseConflict, SojournError, Temporary
from sojourn.migration import answers
from sojourn.migration.context import Host, Migration
from sojourn.model import Failure, Phase, Role, StepRecord
from sojourn.state.entry import Entry
from sojourn.state.facts import Facts
from sojourn.state.lock import lock
from sojourn.state.message import Message, Outcome
from sojourn.system.alarm import TimedOut, at_most
from tasks.policy import HostStep

log = logging.getLogger("sojourn.step")

#: The phase that an undo step leaves in the journal of a host that had no row of the migration: a
#: late step is then refused.
TOMBSTONE = {Role.SOURCE: Phase.RESUMED, Role.DESTINATION: Phase.REFUSED}


#: The fact that a destination reports once it has prepared for a migration.
PREPARED = "page_port"


class StepFailed(Exception):
    """A step failed. The journal and the ledger have the cause; its sentence crosses the broker."""


class Record:
    """The record of one attempt: in the journal, in the ledger, in the log."""

    def __init__(self, step: HostStep, host: Host, message: Message) -> None:
        self.step, self.host, self.message = step, host, message
        self.role = message.plan.role_of(host.name)
        self.started = time.time()
        self.context = {"migration": message.id, "host": host.name, "step": step.name}

    def begin(self, entry: Entry, facts: Facts) -> Entry:
        """Record that an attempt begins, with the facts that came; return the entry with them."""
        self.started = time.time()
        entry = self.host.journal.start_step(entry, self.step.name, self.host.name, facts)
        self._report()
        return entry

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """Record the outcome, with which a second delivery will be answered."""
        self.host.journal.finish_step(entry, self.step.name, outcome)
        self._report(outcome.sentence)
        log.info("%s", outcome.sentence, extra=self.context)

    def fail(self, failure: Failure) -> Failure:
        """Record that it failed for good, even where the journal cannot; return where it did."""
        work = self.host.directory(self.message.id).work
        placed = replace(failure, step=self.step.name, host=self.host.name, log=str(work))
        with contextlib.suppress(JournalFailed):
            entry = self.host.journal.entry(self.message.id, self.role)
            if entry:
                self.host.journal.fail_step(entry, self.step.name, placed)
        self._report(failure.message, failed=True)
        log.error("%s", failure.message, extra=self.context)
        return placed

    def _report(self, sentence: str = "", *, failed: bool = False) -> None:
        # Without a sentence the step has only begun.
        ended = time.time() if sentence else None
        step = StepRecord(self.step.name, self.host.name, self.started, ended, sentence, failed)
        self.host.ledger.record_step(self.message.id, self.role, step)


class Delivery:
    """One delivery of one step; the same message may be delivered twice, late, or out of order."""

    def __init__(self, step: HostStep, host: Host, message: Message) -> None:
        self.step, self.host, self.message = step, host, message
        self.record = Record(step, host, message)

    def answer(self) -> Message:
        """Return the message for the next step, from the record if this one is done already.

        Raises Temporary for a failure that the caller may try again, StepFailed for a final one.
        """
        try:
            # The journal is read under the lock: another delivery may be writing its outcome.
            with self._lock():
                return self._answer(self._opened())
        except (JournalFailed, OSError) as error:
            return self.give_up(_failure(error))

    def give_up(self, failure: Failure) -> Message:
        """Record a failure for good, and raise StepFailed.

        An undo never fails the rollback that it is part of: what it could not do travels on as
        ``pending``, and stays held in the journal.
        """
        placed = self.record.fail(failure)
        if self.step.undo:
            pending = Facts(pending=[f"{placed.host}: {placed.message}"])
            return self.message.with_facts(pending | self._last_answer())
        self.host.ledger.record_failure(self.message.id, placed)
        raise StepFailed(failure.message)

    def _last_answer(self) -> Facts:
        """Return this host's answer after a failure; none where its journal has none."""
        with contextlib.suppress(JournalFailed):
            entry = self.host.journal.entry(self.message.id, self.record.role)
            if entry:
                return answers.given(Migration(self.host, entry))
        return {}

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        if not self.step.locks:
            return contextlib.nullcontext()
        return lock(self.host.directory(self.message.id).lock, self.step.patience_s)

    def _opened(self) -> Migration:
        """Return the migration from this host's journal; only a first step and an undo open one."""
        journal, message, role = self.host.journal, self.message, self.record.role
        entry = journal.entry(message.id, role)
        if entry is None and not self.step.opens and not self.step.undo:
            raise StepFailed(
                f"{self.host.name} has no record of migration {message.id}; "
                "none begins in the middle."
            )
        if entry is None and self._has_prepared():
            # It may run here, or be frozen, for all that this journal can tell: no verdict is true.
            raise JournalLost(
                f"{self.host.name} had begun migration {message.id} and has no record of it: its "
                f"journal was removed, or is an older copy. Whether process {message.plan.pid} "
                "runs there is not known.",
                "Follow docs/how-to/recover-a-journal.md.",
            )
        if entry is None:
            phase = TOMBSTONE[role] if self.step.undo else None
            entry = journal.open(message.id, role, message.plan, phase)
        if entry.plan != message.plan:
            # Whoever sent it read the plan from Redis, where it was changed. The verdict of another
            # destination, say, would decide nothing about this process.
            raise StepFailed(
                f"{self.host.name} has migration {message.id} with another plan: {self.step.name} "
                f"was not done, and process {entry.plan.pid} stays as it is."
            )
        return Migration(self.host, entry)

    def _has_prepared(self) -> bool:
        """Whether this host has begun the migration, as its own files or others show."""
        if self.host.directory(self.message.id).work.exists():
            return True
        return self.record.role is Role.DESTINATION and PREPARED in self.message.facts

    def _answer(self, migration: Migration) -> Message:
        lasting = answers.believed(migration, self.message.facts)
        if migration.refuses_resolution(lasting):
            raise StepFailed(f"{self.step.name} was not done: {self.host.name} refused the word.")
        migration.note_decision(lasting)
        # What is pending is not kept: the next attempt may do it.
        lasting.pop("pending", None)
        outcome = self.host.journal.outcome(migration.entry, self.step.name)
        if outcome is not None and outcome.lasts:
            migration.learn(**lasting)
            return self._handed_on(migration, outcome)
        # The facts are written with the start: whoever recovers the migration needs them too.
        migration.entry = self.record.begin(migration.entry, lasting)
        return self._attempt(migration)

    def _attempt(self, migration: Migration) -> Message:
        try:
            outcome = self._work(migration)
        # A Temporary failure may be retried, which the caller decides. A journal that cannot be
        # written is no place to record a failure first; ``answer`` takes care of it.
        except (Temporary, JournalFailed):
            raise
        except (SojournError, OSError) as error:
            return self.give_up(_failure(error))
        except TimedOut:
            sentence = f"{self.step.name} took longer than it may and was stopped."
            return self.give_up(Failure("STEP_TIMED_OUT", sentence))
        # The edge of a step: a failure without a class of its own must be rolled back too.
        except Exception as error:
            log.exception("A defect of Sojourn, not of the host", extra=self.record.context)
            sentence = f"{self.step.name} failed by a defect of Sojourn: {error!r}"
            hint = "Please report it, with this host's log."
            return self.give_up(Failure("DEFECT", sentence, hint))
        # Outside of the time limit: its alarm must not interrupt the record of what was done.
        self.record.end(migration.entry, outcome)
        return self._handed_on(migration, outcome)

    def _handed_on(self, migration: Migration, outcome: Outcome) -> Message:
        return self.message.with_facts(outcome.facts | answers.given(migration))

    def _work(self, migration: Migration) -> Outcome:
        """Do the work within its time; the named instants are where tests kill things."""
        self._check_phase(migration)
        with at_most(self.step.limit_s(self.message.plan)):
            self.host.journal.pause(self.message.id, f"{self.step.name}.begin")
            outcome = self.step.work(migration)
            self.host.journal.pause(self.message.id, f"{self.step.name}.end")
        return outcome

    def _check_phase(self, migration: Migration) -> None:
        """Refuse a message that is too late: the migration was given up, or went on without it."""
        if not self.step.undo and migration.phase not in self.step.begins_in:
            raise PhaseConflict(
                f"Too late to {self.step.name} on {self.host.name}: "
                f"the migration is {migration.phase} there."
            )


def _failure(error: SojournError | OSError) -> Failure:
    if isinstance(error, OSError):
        return Failure(
            "OS_ERROR",
            f"This host could not do it: {error}.",
            "Is a file system full there? See its logs.",
        )
    return Failure(error.code, error.message, error.hint)
