"""What makes a function a step: one Celery task by its own name.

The only module of this package that imports Celery.

A step is a function of a migration on this host. Around it, on every delivery
(``tasks/delivery.py``):

1. The message is checked, and a lock per migration and host keeps two deliveries apart.
2. The journal decides: a step that is done is answered with its recorded outcome, if that lasts; a
   step of a migration that has ended here, or that this host never opened, is refused.
3. Start, end and failure go to the journal and then to the ledger.
4. A Temporary failure is retried with back-off, as long as the step's policy permits: never while
   the tree is frozen.
5. Any other failure is recorded as a value; then StepFailed is raised, which makes Celery call the
   errback.

An undo step is the same, but it always may run, and it never fails the rollback that it is part of.
If the worker dies anywhere in here, the message is lost (early acknowledgement), the journal is
not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence

from celery import shared_task, signature

from sojourn.errors import Temporary
from sojourn.log import working_on
from sojourn.migration.context import this_host
from sojourn.model import Failure, Phase, Plan, Untyped
from sojourn.state.message import Message
from tasks.delivery import Delivery, StepFailed
from tasks.policy import BEFORE_THE_FREEZE, LONGEST_BACK_OFF_S, HostStep, Work

#: Contexts in which each step is done, made from its name and its migration's id: traces, if any.
AROUND: list[Callable[[str, str], contextlib.AbstractContextManager[object]]] = []


def step(
    *,
    deadline_s: float,
    begins_in: Collection[Phase] = BEFORE_THE_FREEZE,
    in_freeze: bool = False,
    opens: bool = False,
    undo: bool = False,
    retries: int = 0,
    longest_back_off_s: float = LONGEST_BACK_OFF_S,
    locks: bool = True,
) -> Callable[[Work], HostStep]:
    """Make a function a step with this policy (``HostStep``), and a Celery task of its name."""

    def decorate(work: Work) -> HostStep:
        made = HostStep(
            work.__name__,
            work,
            deadline_s,
            begins_in,
            in_freeze=in_freeze,
            opens=opens,
            undo=undo,
            retries=retries,
            longest_back_off_s=longest_back_off_s,
            locks=locks,
        )
        _register(made)
        return made

    return decorate


def link(made: HostStep, queue: str, plan: Plan, **options: Untyped) -> Untyped:
    """Return the Celery signature of a step for a host's queue, with the time limit of this plan.

    There is no soft limit: the step's own alarm is the only one, since a second could come while
    the failure that the first one made is recorded.
    """
    limit = made.hard_limit_s(plan)
    return signature(made.task_name).set(queue=queue, time_limit=limit, **options)


def _register(made: HostStep) -> None:
    @shared_task(
        name=made.task_name,
        bind=True,
        # An expected error, which Celery logs without a traceback: the step has logged its
        # sentence.
        throws=(StepFailed,),
        max_retries=None,  # the policy decides, where it can tell a Temporary failure from others
    )
    def task(self: Untyped, handed: str | Sequence[str]) -> str:
        return _deliver(made, self, handed)


def _deliver(made: HostStep, task: Untyped, handed: str | Sequence[str]) -> str:
    message = Message.handed(handed)
    delivery = Delivery(made, this_host(), message)
    with working_on(made.name), _observed(made.name, message.id):
        try:
            return delivery.answer().to_text()
        except Temporary as error:
            if task.request.retries < made.retries:
                wait_s = made.back_off_s(task.request.retries)
                raise task.retry(exc=error, countdown=wait_s) from None
            failure = Failure(error.code, error.message, error.hint)
            return delivery.give_up(failure).to_text()


@contextlib.contextmanager
def _observed(name: str, migration: str) -> Iterator[None]:
    with contextlib.ExitStack() as contexts:
        for around in AROUND:
            contexts.enter_context(around(name, migration))
        yield
