"""The Celery application of workers, created by ``create_app`` and never at import."""

from __future__ import annotations

import logging
from functools import cache

from celery import Task
from celery.exceptions import Ignore

from sojourn.messaging.application import Application
from sojourn.messaging.freshness import UNTIL, Taken
from sojourn.model import Untyped
from sojourn.settings import Settings, load
from workflows import tracing
from workflows.signed_request import SignedRequest

log = logging.getLogger("sojourn.freshness")

#: The modules whose tasks a worker must know.
MODULES = tuple(
    f"workflows.{name}"
    for name in (
        *("accept", "conclude", "rollback", "recover"),
        *("batch", "survey", "logs", "profile", "check"),
    )
)


class SojournTask(Task):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """The base of all tasks, Celery's own among them: they accept signed messages only."""

    Request = SignedRequest

    def apply_async(self, *args: Untyped, **options: Untyped) -> Untyped:
        """Send the task, without Celery's declaration of its queue before each message.

        The worker that consumes a queue declares it.
        """
        return super().apply_async(*args, **{"declare": (), **options})

    def before_start(self, task_id: str, args: Untyped, kwargs: Untyped) -> None:  # noqa: ARG002
        """Leave it at that if this message was begun before, as Celery calls it first.

        Raises Ignore, after which Celery does nothing more about the message.
        """
        until = self.request.get(UNTIL)
        try:
            if until is None or _taken().is_first(f"{task_id} {self.request.retries}", until):
                return
        except OSError as error:
            # The journal decides what is done; and a tree may be frozen.
            log.warning("It cannot be noted that a message was taken: %s", error)
            return
        why = f"Refused a message for {self.name!r} with the id {task_id}: it was taken before."
        self.app.conf.sojourn_sealed.refuse("message", task_id, self.request.id, why)
        raise Ignore


@cache
def _taken() -> Taken:
    """Return what this host remembers of the messages that it has begun."""
    return Taken(load().taken)


def create_app(settings: Settings) -> Untyped:
    """Return the application for these settings, as the current one.

    Raises UsageError without a key.
    """
    app = Application(settings, task_cls=SojournTask, include=MODULES, set_as_current=True)
    tracing.prepare(settings)
    return app


def trace_here(settings: Settings) -> None:
    """Trace this process, which belongs to no pool, where a collector is configured."""
    if tracing.is_wanted(settings):
        tracing.start(settings)


@cache
def the_app() -> Untyped:
    """Return this process's application, created from its settings at the first call."""
    return create_app(load())
