"""The reconciler of a host: finds stalled migrations and moves them on, never by a guess.

It examines the rows of its own host's journal that are not final, or that still hold something, at
the worker's start and every few seconds. What it may do alone, it does under the migration's lock;
for the rest it starts the settling canvas (``workflows/recover.py``). If it dies, it is restarted
and begins from the journal again.
"""

from __future__ import annotations

import contextlib
import logging
import time

from sojourn.errors import ChannelFailed, SojournError, StoreUnreachable, Temporary
from sojourn.log import working_on
from sojourn.messaging.results import await_none
from sojourn.migration import answers, serving
from sojourn.migration.context import Host, Migration
from sojourn.migration.recovery import (
    RESUMED_ALONE,
    Move,
    account_of,
    finish,
    known_end,
    next_move,
)
from sojourn.migration.source import resume_original
from sojourn.model import Phase, State, StepRecord
from sojourn.state.entry import Entry
from sojourn.state.facts import Facts
from sojourn.state.lock import lock
from sojourn.state.message import Message
from workflows.app import the_app
from workflows.batch import look_after
from workflows.conclude import close, record_doubt
from workflows.dispatch import dispatch
from workflows.following import send_owed
from workflows.recover import report_given_up, settle

log = logging.getLogger("sojourn.reconciler")

#: How long to wait for the lock of a migration: while a step holds it, the migration is not
#: stalled, and there is nothing to do.
LOCK_S = 0.05

#: How long after its last change a row at rest is still compared with the ledger, which may lack
#: its end.
REPORTED_WITHIN_S = 3600

#: How many of the latest rows are compared with the ledger each time.
MOST_COMPARED = 200

#: How many times ``stall_s`` a row at rest is left alone where the ledger shows only a clean-up as
#: pending, and how many settling may take until this host reports an end alone.
CLEANUP_STALLS, SETTLING_STALLS = 3, 3


class Reconciler:
    """Looks after the rows of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._reported: set[str] = set()
        self._unjudged: dict[str, str] = {}

    def run(self) -> None:
        """Look every ``reconcile_s``, until the process is ended."""
        await_none(the_app())
        while True:
            self.look()
            time.sleep(self.host.settings.reconcile_s)

    def look(self) -> None:
        """Move on every stalled row, and write to the ledger what it has lost.

        The rows first: a tree may be frozen, and waits for nothing that is in Redis.
        """
        self._look_at_rows()
        for act in (self._rebuild_ledger, self._look_after_the_queue, self._report_ends):
            try:
                act()
            except StoreUnreachable:
                return
            except Exception:
                log.exception("The reconciler could not read what is in Redis")

    def _look_at_rows(self) -> None:
        """Look at each row; one that cannot be judged is shown, and looked at again next time."""
        unjudged = {}
        for entry in self.host.journal.unfinished():
            try:
                self._look_at(entry)
            except SojournError as error:
                log.warning("%s", error, extra=self._context(entry))
            except Exception as error:
                unjudged[entry.id] = f"could not be judged: {type(error).__name__}: {error}"
                log.exception("The row could not be judged", extra=self._context(entry))
                self._show(entry, unjudged[entry.id])
        self._unjudged = unjudged

    def _show(self, entry: Entry, why: str) -> None:
        """Show why a row could not be judged; once for the same reason."""
        if self._unjudged.get(entry.id) != why:
            self._record(entry, why)

    def _look_after_the_queue(self) -> None:
        """Renew the leases of what is under way here, and begin what waits in the queue.

        The queue is the whole cluster's, so only one host does the latter at a time.
        """
        self.host.queue.hold([entry.id for entry in self.host.journal.unfinished()], self.host.name)
        if self.host.queue.is_my_turn_to_look(self.host.settings.reconcile_s):
            dispatch()
            report_given_up()
            look_after(self.host)
            send_owed(the_app())

    def _report_ends(self) -> None:
        """Report the ends that the ledger lacks of rows at rest: their last messages were lost."""
        now, stall_s = time.time(), self.host.settings.stall_s
        recent = self.host.journal.since(now - REPORTED_WITHIN_S)
        at_rest = [
            entry for entry in recent if self._is_at_rest(entry) and now - entry.updated > stall_s
        ]
        # Rows that are not recent any more are forgotten, or the set would grow for as long as we
        # run.
        self._reported &= {entry.id for entry in at_rest}
        for entry in at_rest:
            if entry.id not in self._reported and self._is_left_alone(entry, now - stall_s):
                with working_on("reconcile"):
                    # The rebuilder may have written the phase and no step logged it, though
                    # others have cleaned up since.
                    self.host.journal.log_phase(entry)
                    self._report_again(entry)

    def _is_at_rest(self, entry: Entry) -> bool:
        """Whether a row has ended, its memory included, for which a step waits without a lock."""
        return entry.phase.final and not Migration(self.host, entry).is_unsettled()

    def _is_left_alone(self, entry: Entry, since: float) -> bool:
        """Whether no step works on a row, nor has since then.

        A step that ended a moment ago has sent a message, which reports more than we could.
        """
        if any((step.ended or 0) > since for step in self.host.journal.steps(entry.id)):
            return False
        with contextlib.suppress(Temporary), lock(self.host.directory(entry.id).lock, 0):
            return True
        return False

    def _report_again(self, entry: Entry) -> None:
        """Report an end: from this journal alone, or by settling, which needs the other host.

        Where the ledger shows a clean-up as pending, though nothing is left to clean up here, the
        other host is asked more seldom.
        """
        self._report_end(Migration(self.host, entry))
        account = self.host.ledger.account(entry.id)
        pending = account is not None and account.state is State.CLEANUP_PENDING
        if account and account.state.definite and not pending:
            self._reported.add(entry.id)
            return
        if pending and time.time() - entry.updated < CLEANUP_STALLS * self.host.settings.stall_s:
            return
        if self.host.registry.are_alive(entry.plan.source, entry.plan.destination):
            self._record(entry, "at rest here, but the ledger has no end of it")
            self._settle(entry)

    def _rebuild_ledger(self) -> None:
        """Write to the ledger what it lacks of what this journal knows."""
        ledger, now = self.host.ledger, time.time()
        whole = not ledger.is_rebuilt_by(self.host.name)
        entries = self.host.journal.since(
            now - (self.host.settings.keep_s if whole else REPORTED_WITHIN_S)
        )
        known = {entry.id: entry for entry in (entries if whole else entries[-MOST_COMPARED:])}
        lost = [account_of(Migration(self.host, entry)) for entry in known.values()]
        if not whole:
            # Redis was not emptied; but single records may have been evicted or overwritten. What
            # a step is about to record is not lost.
            since = now - self.host.settings.stall_s
            lost = [
                each for each in ledger.lacks(lost) if self._is_left_alone(known[each.id], since)
            ]
        if whole or lost:
            ledger.rebuild(self.host.name, lost, whole=whole)
            log.info("%d migrations were written to the ledger again", len(lost))

    def _look_at(self, entry: Entry) -> None:
        try:
            with working_on("reconcile"), lock(self.host.directory(entry.id).lock, LOCK_S):
                move = self._move_on_alone(entry)
        except Temporary:
            return
        if move is not Move.LEAVE:
            self._settle(entry)

    def _move_on_alone(self, entry: Entry) -> Move:
        """Do what this host may do by itself; return what the row needed."""
        migration = Migration(self.host, entry)
        migration.refresh()
        # Whatever wrote the phase may have died before it logged it.
        self.host.journal.log_phase(migration.entry)
        if migration.phase not in RESUMED_ALONE:
            with contextlib.suppress(StoreUnreachable):
                migration.read_resolution()
        if self._has_news(migration):
            return Move.SETTLE
        still_s = time.time() - migration.entry.updated
        move = next_move(migration, still_s, given_up=self._is_given_up(migration))
        if move is Move.RESUME:
            self._record(entry, resume_original(migration))
        elif move is Move.FINISH:
            self._record(entry, finish(migration))
        if move is not Move.LEAVE:
            self._report_end(migration)
        return move

    def _has_news(self, migration: Migration) -> bool:
        """Whether the destination must learn of the memory here; have that handed out if need be.

        That it cannot be keeps nothing else from being done.
        """
        try:
            return serving.look_after(migration)
        except ChannelFailed as error:
            log.warning("%s", error, extra=self._context(migration.entry))
            return False

    def _is_given_up(self, migration: Migration) -> bool:
        """Whether this host is still reserved for a migration whose end the ledger holds.

        Its undo failed here, or the message for it was lost.
        """
        if migration.phase is not Phase.RESERVED:
            return False
        with contextlib.suppress(StoreUnreachable):
            account = self.host.ledger.account(migration.id)
            # Not the state, which anybody could have written.
            result = account.result if account else None
            return result is not None and State(result["state"]).definite
        return False

    def _report_end(self, migration: Migration) -> None:
        """Report how it ended, if this journal alone shows that and the ledger does not yet.

        The other host may never come back to report it. While it lives, settling is left some time
        to do so: it also reports what only the other host knows, such as its clean-up or its page
        server's error.
        """
        with contextlib.suppress(StoreUnreachable):
            facts = known_end(migration)
            if not facts or not migration.phase.final or self._is_ended(migration.id):
                return
            if self._is_settling(migration) and self.host.registry.are_alive(migration.peer):
                return
            known = self.host.journal.known(migration.entry)
            close(the_app(), Message(migration.id, migration.plan, known | facts))

    def _is_settling(self, migration: Migration) -> bool:
        """Whether settling is about to be tried, or has been for a short time."""
        now = time.time()
        since = migration.facts.get("settling", now)
        return now - since < SETTLING_STALLS * self.host.settings.stall_s

    def _settle(self, entry: Entry) -> None:
        """Start the settling canvas with the facts of this host; record doubt if none can answer.

        Raises StoreUnreachable at once while Redis is away: rows that this host can move on alone
        must not wait for it.
        """
        known, other = self.host.journal.known(entry), Migration(self.host, entry).peer
        if _is_in_doubt(entry) and not self.host.registry.are_alive(other):
            self._record_doubt(entry, f"{other} does not answer")
        elif self._is_overdue(entry, known):
            self._record_doubt(entry, f"{other} announces itself, and gives no verdict")
        answer = answers.given(Migration(self.host, entry))
        settle(Message(entry.id, entry.plan, known | answer), self.host.settings.stall_s)
        # This changes the row, so the next attempt comes ``stall_s`` later, as the first did.
        self.host.journal.learn(entry, {"settling": entry.facts.get("settling", time.time())})

    def _is_overdue(self, entry: Entry, known: Facts) -> bool:
        """Whether a tree here has stood frozen for longer than its plan and a stall allow."""
        if entry.phase is not Phase.RELEASED or known.get("verdict"):
            return False
        stood_s = time.time() - known.get("frozen_at", entry.created)
        return stood_s > entry.plan.max_freeze_s + self.host.settings.stall_s

    def _record_doubt(self, entry: Entry, why: str) -> None:
        with contextlib.suppress(StoreUnreachable):
            if not self._is_ended(entry.id):
                record_doubt(Message(entry.id, entry.plan), f"{why}.")
        self._record(entry, f"in doubt: {why}; {self.host.name} stays {entry.phase}")

    def _is_ended(self, migration: str) -> bool:
        """Whether the ledger shows how it ended. Raises StoreUnreachable."""
        account = self.host.ledger.account(migration)
        return account is not None and account.state.definite

    def _record(self, entry: Entry, sentence: str) -> None:
        """Record what was done, in the log and in the ledger."""
        now = time.time()
        log.info("%s", sentence, extra=self._context(entry))
        self.host.ledger.record_step(
            entry.id, entry.role, StepRecord("reconcile", self.host.name, now, now, sentence)
        )

    def _context(self, entry: Entry) -> dict[str, str]:
        return {"migration": entry.id, "host": self.host.name, "step": "reconcile"}


def _is_in_doubt(entry: Entry) -> bool:
    """Whether only the other host, or an operator, can answer who owns the process.

    An ``accepted`` destination is in doubt once settling was tried and brought no answer.
    """
    return entry.phase is Phase.RELEASED or (
        entry.phase is Phase.ACCEPTED and "settling" in entry.facts
    )
