"""What makes a function a step. This module is the only place in ``tasks`` that knows Celery.

A step is a function of a migration on this host. Around it, on every delivery:

1. The message is checked, and a lock per migration and host keeps two deliveries apart.
2. The journal is asked: a step that is done is answered with its recorded outcome; a step of a migration that has
   ended here, or that this host never opened, is refused.
3. Start, end and failure go to the journal and then to the ledger.
4. A Temporary failure is retried with back-off, as long as the step says so: never while the tree is frozen.
5. Any other failure is recorded as a value; then StepFailed is raised, which makes Celery call the errback.

Steps that follow each other on one host are a **leg**: one message begins the first, and the others are done behind it
in the same process, each with its own lock, deadline, record and failure, as if it had come by a message of its own. A
retry sends the whole leg again; what is done is answered from its record.

An undo step is the same, but it always may run, and it never fails the rollback that it is part of: what it could
not do is told as the fact ``pending``, and stays ``held`` in the journal.

If the worker dies anywhere in here, the message is lost (early acknowledgement) and the journal keeps the phase
and what is held; nothing is done twice and nothing is forgotten.
"""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from celery import shared_task

from sojourn.errors import JournalFailed, PhaseConflict, SojournError, Temporary
from sojourn.host import Host, Migration, this_host
from sojourn.journal import lock
from sojourn.log import working_on
from sojourn.model import Failure, Message, Outcome, Phase, Plan, Role, StepRecord

log = logging.getLogger("sojourn.step")

#: Seconds that a leg gets beyond what its steps may take, to record the failure of one, before its process is ended.
HARD_LIMIT_AFTER_S = 10

#: Which part of its time a step may wait for another delivery of the same migration.
LOCK_SHARE = 0.5

#: Back-off of temporary failures: 0.5 s, doubled each time up to this, with a jitter of a quarter.
LONGEST_BACK_OFF_S = 15

#: What an undo step leaves in the journal of a host that had never heard of the migration.
TOMBSTONE = {Role.SOURCE: Phase.RESUMED, Role.DESTINATION: Phase.REFUSED}

#: Nothing has happened yet that a step could spoil.
BEFORE_THE_FREEZE = (Phase.OPEN, Phase.RESERVED)

Work = Callable[[Migration], Outcome]


class StepFailed(Exception):
    """A step failed; the journal and the ledger know why. Only its sentence crosses the broker."""


class StepTimedOut(BaseException):
    """A step took longer than it may. Not an Exception: nothing that a step catches may take it for its own."""


@dataclass(frozen=True)
class HostStep:
    """A step: its name, the plain function, and the Celery task around it."""

    name: str
    work: Work
    task: Any
    deliver: Callable[[Any, str], str]
    deadline_s: float
    in_freeze: bool

    def limit_s(self, plan: Plan) -> float:
        """Return how long one attempt may take in a migration."""
        return self.deadline_s + (plan.max_freeze_s if self.in_freeze else 0)

    @property
    def patience_s(self) -> float:
        """Return how long one attempt may wait for another delivery of the same migration."""
        return self.deadline_s * LOCK_SHARE


#: Every step by its name, by which a message tells what is done behind its own.
STEPS: dict[str, HostStep] = {}

#: How Flower is told which steps a task does behind the one that it is named after; Celery would take longer to say it.
THEN = "then "

#: Contexts in which each step is done, made with its name and its migration's id; traces are one.
AROUND: list[Callable[[str, str], contextlib.AbstractContextManager[Any]]] = []


def leg(steps: Sequence[HostStep], queue: str, plan: Plan, **options: Any) -> Any:  # noqa: ANN401  (no types)
    """Return the Celery signature that lets a host do these steps, with what the leg before returned.

    Each step keeps its own time; Celery ends the process of a leg in which one could not be stopped by a signal. There
    is no soft limit: a second alarm could come while the failure that the first one made is recorded. The argument
    ``last`` may name a task that belongs to no host, and is called with what they return when they are done.
    """
    limit = sum(each.patience_s + each.limit_s(plan) for each in steps) + HARD_LIMIT_AFTER_S
    first, *others = [each.name for each in steps]
    told = f"{THEN}{', '.join(others)}" if others else ""
    return STEPS[first].task.s(then=others).set(queue=queue, kwargsrepr=told, time_limit=limit, **options)


def step(
    *,
    deadline_s: float,
    begins_in: Collection[Phase] = BEFORE_THE_FREEZE,
    in_freeze: bool = False,
    opens: bool = False,
    undo: bool = False,
    retries: int = 0,
    locks: bool = True,
) -> Callable[[Work], HostStep]:
    """Make a function a step.

    ``begins_in`` are the phases in which it may begin: in any other its message comes too late, and is refused before
    anything is touched. ``deadline_s`` bounds one attempt; with ``in_freeze`` a step may take as long as the plan lets
    a freeze last, and ``deadline_s`` is what it gets beyond that, to end by its own means what hangs. ``opens`` lets it
    be the first one of a migration on this host; ``undo`` makes it part of a rollback; ``retries`` says how often a
    Temporary failure is tried again; without ``locks`` it does not wait for other deliveries of the same migration.
    """

    def decorate(work: Work) -> HostStep:
        name = work.__name__

        @shared_task(
            name=f"sojourn.{name}",
            bind=True,
            throws=(StepFailed,),
            max_retries=None,  # each step of a leg says how often
        )
        def task(self: Any, handed: str, then: Sequence[str] = (), last: str = "") -> str:  # noqa: ANN401
            return _do_leg(self, (name, *then), last, handed)

        def deliver(task: Any, handed: str) -> str:  # noqa: ANN401
            message = Message.from_text(handed)
            delivery = Delivery(this_host(), message, name, begins_in, opens=opens, undo=undo)
            try:
                held = lock(delivery.migration_lock, made.patience_s) if locks else contextlib.nullcontext()
                with working_on(name), _observed(name, message.id), held:
                    return delivery.answer(work)
            except (JournalFailed, OSError) as error:
                return delivery.hand_on(delivery.give_up(_failure(error)))
            except Temporary as error:
                if task.request.retries < retries:
                    raise task.retry(exc=error, countdown=_back_off_s(task.request.retries)) from None
                return delivery.hand_on(delivery.give_up(_failure(error)))

        made = STEPS[name] = HostStep(name, work, task, deliver, deadline_s, in_freeze)
        return made

    return decorate


@contextlib.contextmanager
def _observed(name: str, migration: str) -> Iterator[None]:
    with contextlib.ExitStack() as contexts:
        for around in AROUND:
            contexts.enter_context(around(name, migration))
        yield


def _do_leg(task: Any, names: Sequence[str], last: str, handed: str) -> str:  # noqa: ANN401
    """Do steps one behind the other, each with what the one before handed on, and call what comes last.

    If that fails nothing must be undone, since all is done: the reconcilers tell what was not told.
    """
    for name in names:
        handed = STEPS[name].deliver(task, handed)
    if last:
        try:
            task.app.tasks[last](handed)
        except Exception:
            log.exception("%s failed", last)
    return handed


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise StepTimedOut in what takes longer (setitimer(2))."""

    def over(*_: object) -> None:
        raise StepTimedOut

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Delivery:
    """One delivery of one step on this host."""

    def __init__(
        self, host: Host, message: Message, name: str, begins_in: Collection[Phase], *, opens: bool, undo: bool
    ) -> None:
        self.host = host
        self.message = message
        self.name = name
        self.begins_in = begins_in
        self.opens = opens
        self.undo = undo
        self.limit_s = STEPS[name].limit_s(message.plan)
        self.role = message.plan.role_of(host.name)
        self.directory = host.directory(message.id)
        self.migration_lock = self.directory.lock
        self.context = {"migration": message.id, "host": host.name, "step": name}
        self.started = time.time()

    def answer(self, work: Work) -> str:
        """Return the message for the next step: from the record if this one is done, else by doing it."""
        migration = self._opened()
        # What is pending is not kept: the next attempt may do it.
        lasting = {name: fact for name, fact in self.message.facts.items() if name != "pending"}
        outcome = self.host.journal.outcome(migration.entry, self.name)
        if outcome is None:
            migration.entry = self.host.journal.start_step(migration.entry, self.name, self.host.name, lasting)
            outcome = self._attempt(migration, work)
        else:
            migration.learn(**lasting)
        return self.hand_on(outcome)

    def give_up(self, failure: Failure) -> Outcome:
        """Record a failure for good. Raise StepFailed; what an undo could not do is handed on as still pending."""
        placed = replace(failure, step=self.name, host=self.host.name, log=str(self.directory.work))
        with contextlib.suppress(JournalFailed):
            entry = self.host.journal.entry(self.message.id, self.role)
            if entry:
                self.host.journal.fail_step(entry, self.name, placed)
        self._tell(outcome=failure.message, failed=True)
        log.error("%s", failure.message, extra=self.context)
        if not self.undo:
            self.host.ledger.tell_failure(self.message.id, placed)
            raise StepFailed(failure.message)
        return Outcome(failure.message, {"pending": [f"{self.host.name}: {failure.message}"]})

    def hand_on(self, outcome: Outcome) -> str:
        """Return the message for the next step; what is pending adds up."""
        pending = [each for facts in (self.message.facts, outcome.facts) for each in facts.get("pending", [])]
        added = {"pending": pending} if pending else {}
        return self.message.with_facts(outcome.facts | added).to_text()

    def _opened(self) -> Migration:
        """Return the migration as this host's journal has it; only a first step and an undo may open one."""
        journal, message = self.host.journal, self.message
        entry = journal.entry(message.id, self.role)
        if entry is None and not self.opens and not self.undo:
            raise StepFailed(f"{self.host.name} knows nothing of migration {message.id}; none begins in the middle.")
        if entry is None:
            entry = journal.open(message.id, self.role, message.plan, TOMBSTONE[self.role] if self.undo else None)
        return Migration(self.host, entry)

    def _attempt(self, migration: Migration, work: Work) -> Outcome:
        self.started = time.time()
        self._tell()
        try:
            self._check_phase(migration)
            with _at_most(self.limit_s):
                self.host.journal.pause(f"{self.name}.begin")
                outcome = work(migration)
                self.host.journal.pause(f"{self.name}.end")
        except (Temporary, JournalFailed):
            raise
        except (SojournError, OSError) as error:
            return self.give_up(_failure(error))
        except StepTimedOut:
            return self.give_up(Failure("STEP_TIMED_OUT", f"{self.name} took longer than it may and was stopped."))
        except Exception as error:
            log.exception("A defect of Sojourn, not of the host", extra=self.context)
            return self.give_up(Failure("DEFECT", f"{self.name} failed in a way nobody foresaw: {error!r}"))
        self.host.journal.finish_step(migration.entry, self.name, outcome)
        self._tell(outcome=outcome.sentence)
        log.info("%s", outcome.sentence, extra=self.context)
        return outcome

    def _check_phase(self, migration: Migration) -> None:
        """Refuse a message that comes too late: the migration was given up here, or has gone on without it."""
        if not self.undo and migration.phase not in self.begins_in:
            raise PhaseConflict(
                f"Too late to {self.name} on {self.host.name}: the migration is {migration.phase} there."
            )

    def _tell(self, outcome: str = "", *, failed: bool = False) -> None:
        ended = time.time() if outcome else None
        record = StepRecord(self.name, self.host.name, self.started, ended, outcome, failed)
        self.host.ledger.tell_step(self.message.id, self.role, record)


def _failure(error: SojournError | OSError) -> Failure:
    if isinstance(error, OSError):
        return Failure("OS_ERROR", f"This host could not do it: {error}.", "Is a file system full there? See its logs.")
    return Failure(error.code, error.message, error.hint)


def _back_off_s(retries: int) -> float:
    return float(min(0.5 * 2**retries, LONGEST_BACK_OFF_S) * random.uniform(0.75, 1.25))  # noqa: S311  (jitter)
