"""The tasks of ``sojourn.client`` in the applications of this process, as Celery has them."""

from __future__ import annotations

from celery import shared_task

from sojourn.messaging.task import CALLS, Call
from sojourn.model import Untyped


def _shared(call: type[Call]) -> Untyped:
    """Return a task that every application of the process has."""

    @shared_task(name=call.name, bind=True, base=call)
    def task(self: Untyped, *args: Untyped, **kwargs: Untyped) -> None:
        self.send_on(args, kwargs)

    return task


TASKS = {call.name: _shared(call) for call in CALLS}
