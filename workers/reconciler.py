"""The reconciler of a host: finds migrations that stand still, and moves them on. Never by guess.

It looks at the rows of its own host's journal that are not final, or that still hold something, at the worker's start
and every few seconds. What it may do alone, it does under the migration's lock; for the rest it starts the settling
canvas (``workflows/recover.py``). If it dies, the next look begins from the journal again.
"""

from __future__ import annotations

import contextlib
import logging
import time

from sojourn.errors import SojournError, StoreUnreachable, Temporary
from sojourn.host import SECONDS_PER_DAY, Host, Migration
from sojourn.journal import Entry, lock
from sojourn.log import working_on
from sojourn.model import Message, Phase, State, StepRecord
from sojourn.original import resume_original
from sojourn.recovery import Move, account_of, end_known, finish, next_move
from workflows.app import the_app
from workflows.batch import look_after
from workflows.conclude import close, tell_doubt
from workflows.dispatch import dispatch
from workflows.recover import report_given_up, settle

log = logging.getLogger("sojourn.reconciler")

#: How long to wait for the lock of a migration: a step that holds it is at work, and that is all there is to know.
LOCK_S = 0.05

#: How long after its last change a row that is at rest is still asked about, whether people were told of its end.
TOLD_WITHIN_S = 3600

#: How many times longer than a stall it is left alone where nothing but a clean-up is told to be pending.
NOW_AND_THEN = 3


class Reconciler:
    """Looks after the rows of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._told: set[str] = set()

    def run(self) -> None:
        """Look again and again, until the process is ended."""
        while True:
            self.look()
            time.sleep(self.host.settings.reconcile_s)

    def look(self) -> None:
        """Move on every row that stands still; tell the ledger again what it has lost."""
        with contextlib.suppress(StoreUnreachable):
            self._rebuild_ledger()
            self._look_after_the_queue()
        for entry in self.host.journal.unfinished():
            try:
                self._look_at(entry)
            except SojournError as error:
                log.warning("%s", error, extra=self._context(entry))
        with contextlib.suppress(StoreUnreachable):
            self._tell_ends()

    def _look_after_the_queue(self) -> None:
        """Hold the places of what is under way here; begin what waits, of which one host in the cluster takes care."""
        self.host.queue.hold([entry.id for entry in self.host.journal.unfinished()], self.host.name)
        if self.host.queue.is_my_turn_to_look(self.host.settings.reconcile_s):
            dispatch()
            report_given_up()
            look_after(self.host)

    def _tell_ends(self) -> None:
        """Tell the end of what is at rest here although people do not know it: the last messages were lost."""
        now, stall_s = time.time(), self.host.settings.stall_s
        recent = self.host.journal.since(now - TOLD_WITHIN_S)
        at_rest = [entry for entry in recent if entry.phase.final and now - entry.updated > stall_s]
        self._told &= {entry.id for entry in at_rest}
        for entry in at_rest:
            if entry.id not in self._told and self._is_left_alone(entry, now - stall_s):
                with working_on("reconcile"):
                    self.host.journal.witness(entry)  # the steps that brought it to rest may have come after its phase
                    self._tell_again(entry)

    def _is_left_alone(self, entry: Entry, since: float) -> bool:
        """Whether no step works on a row, nor has since then: what it hands on is under way, and tells more."""
        if any((step.ended or 0) > since for step in self.host.journal.steps(entry.id)):
            return False
        with contextlib.suppress(Temporary), lock(self.host.directory(entry.id).lock, 0):
            return True
        return False

    def _tell_again(self, entry: Entry) -> None:
        """Tell an end, by this host's knowledge alone or by settling, for which the other host must be there.

        Where a clean-up is told to be pending, though nothing is left of it here, that is asked now and then.
        """
        self._tell_end(Migration(self.host, entry))
        account = self.host.ledger.account(entry.id)
        pending = account is not None and account.state is State.CLEANUP_PENDING
        if account and account.state.definite and not pending:
            self._told.add(entry.id)
            return
        if pending and time.time() - entry.updated < NOW_AND_THEN * self.host.settings.stall_s:
            return
        if {entry.plan.source, entry.plan.destination} <= self.host.registry.alive().keys():
            self._say(entry, "at rest here, which nobody was told")
            self._settle(entry)

    def _rebuild_ledger(self) -> None:
        journal, ledger, settings = self.host.journal, self.host.ledger, self.host.settings
        if ledger.has_heard(self.host.name):
            return
        entries = journal.since(time.time() - settings.keep_days * SECONDS_PER_DAY)
        ledger.hear(self.host.name, (account_of(journal, entry) for entry in entries))
        log.info("the ledger was told again of %d migrations", len(entries))

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
        self.host.journal.witness(migration.entry)  # whoever wrote its phase may have died before it was logged
        with contextlib.suppress(StoreUnreachable):
            migration.hear_operator()
        still_s = time.time() - migration.entry.updated
        move = next_move(migration, still_s, given_up=self._is_given_up(migration))
        if move is Move.RESUME:
            self._say(entry, resume_original(migration))
        elif move is Move.FINISH:
            self._say(entry, finish(migration))
        if move is not Move.LEAVE:
            self._tell_end(migration)
        return move

    def _is_given_up(self, migration: Migration) -> bool:
        """Whether this host still waits for a migration of which people know the end: its undo failed, or was lost."""
        with contextlib.suppress(StoreUnreachable):
            return migration.phase is Phase.RESERVED and self._is_ended(migration.id)
        return False

    def _tell_end(self, migration: Migration) -> None:
        """Say how it ended, if this host alone can know it and nobody has: the other host may never come back."""
        with contextlib.suppress(StoreUnreachable):
            facts = end_known(migration)
            if facts and migration.phase.final and not self._is_ended(migration.id):
                known = self.host.journal.known(migration.entry)
                close(the_app(), Message(migration.id, migration.plan, known | facts))

    def _settle(self, entry: Entry) -> None:
        """Start the settling canvas, with all that this host knows; say so where the other host can not be reached.

        Raises StoreUnreachable at once while Redis is away: rows that need nobody else must not wait for that.
        """
        message = Message(entry.id, entry.plan, self.host.journal.known(entry))
        other = entry.plan.destination if entry.plan.source == self.host.name else entry.plan.source
        if other not in self.host.registry.alive() and _is_in_doubt(entry):
            self._tell_doubt(entry, other)
        settle(message, self.host.settings.stall_s)
        # What was done now moves the row, so the next attempt waits as long as the first.
        self.host.journal.learn(entry, {"settling": time.time()})

    def _tell_doubt(self, entry: Entry, other: str) -> None:
        with contextlib.suppress(StoreUnreachable):
            if not self._is_ended(entry.id):
                tell_doubt(Message(entry.id, entry.plan), f"{other} does not answer.")
        self._say(entry, f"in doubt: {other} does not answer; {self.host.name} stays {entry.phase}")

    def _is_ended(self, migration: str) -> bool:
        """Whether people know how it ended. Raises StoreUnreachable."""
        account = self.host.ledger.account(migration)
        return account is not None and account.state.definite

    def _say(self, entry: Entry, sentence: str) -> None:
        """Say what was done, in the log and in the ledger."""
        now = time.time()
        log.info("%s", sentence, extra=self._context(entry))
        self.host.ledger.tell_step(entry.id, entry.role, StepRecord("reconcile", self.host.name, now, now, sentence))

    def _context(self, entry: Entry) -> dict[str, str]:
        return {"migration": entry.id, "host": self.host.name, "step": "reconcile"}


def _is_in_doubt(entry: Entry) -> bool:
    """Whether only the other host can say who owns the process, or only an operator: settling has told nothing yet."""
    return entry.phase is Phase.RELEASED or (entry.phase is Phase.ACCEPTED and "settling" in entry.facts)
