"""The tasks of ``sojourn.client`` in the applications of this process, as Celery has them."""

from __future__ import annotations

from functools import cache

from celery import shared_task
from celery.app import app_or_default

from sojourn.messaging.task import CALLS, Call
from sojourn.model import Untyped


def task_of(name: str) -> Untyped:
    """Return the task of this name for the current application.

    Not out of its registry: a process of Sojourn's own may have what workers do by the same name.
    """
    return _bound(app_or_default(), name)


@cache
def _bound(app: Untyped, name: str) -> Untyped:
    (kind,) = (call for call in CALLS if call.name == name)
    # A class for each application, since Celery binds classes.
    own: Untyped = type(kind.__name__, (kind,), {"__module__": __name__})
    own.bind(app)
    return own()


def _share(call: type[Call]) -> None:
    """Let every application of the process have a task, so that its workers can go on with it."""

    @shared_task(name=call.name, bind=True, base=call)
    def task(self: Untyped, *args: Untyped, **kwargs: Untyped) -> None:
        self.send_on(args, kwargs)


for _call in CALLS:
    _share(_call)
