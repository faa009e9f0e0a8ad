"""A task of Sojourn's as an application of somebody else has it: it is sent to Sojourn.

An application can put it into its chains, groups and chords, as its own tasks. When its turn comes
it is not sent to the application's own queues, but signed and to Sojourn's.

Importing this costs nothing but Celery: what a call needs is imported by the first one.
"""

from __future__ import annotations

from celery import Task
from celery.exceptions import Ignore

from sojourn.messaging import names
from sojourn.model import Untyped

#: What the request of a running task has, and a message to Sojourn does not.
NOT_SENT_ON = ("queue", "exchange", "routing_key", "priority", "time_limit", "soft_time_limit")


class Call(Task):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """A task that Sojourn's workers do."""

    abstract = True
    typing = False

    def apply_async(
        self,
        args: Untyped = None,
        kwargs: Untyped = None,
        task_id: str | None = None,
        producer: Untyped = None,  # noqa: ARG002  (a connection to the caller's own queues)
        **options: Untyped,
    ) -> Untyped:
        """Send it to Sojourn (``sojourn.messaging.call.send``)."""
        from sojourn.messaging import call  # noqa: PLC0415

        return call.send(self, args or (), kwargs or {}, task_id, options)

    def apply(self, *_: Untyped, **__: Untyped) -> Untyped:
        """Raise UsageError: nothing can be migrated by the process that calls."""
        from sojourn.messaging import call  # noqa: PLC0415

        raise call.in_place(self.name)

    def AsyncResult(self, task_id: str, **options: Untyped) -> Untyped:  # noqa: N802
        """Return the result of a call as a part of a canvas: where those of the others are."""
        from sojourn.messaging import call  # noqa: PLC0415

        return call.in_canvas(self.app, task_id, **options)

    def run(self, *args: Untyped, **kwargs: Untyped) -> None:
        """Do what a task of this class does in the application's own worker."""
        self.send_on(args, kwargs)

    def send_on(self, args: Untyped, kwargs: Untyped) -> None:
        """Send on to Sojourn what came by a queue of the application's own.

        So it is where the message was sent by name, by a program that has no Sojourn. Raises
        UsageError where it was called in place.
        """
        from sojourn.messaging import call  # noqa: PLC0415

        if self.request.called_directly or self.request.is_eager:
            raise call.in_place(self.name)
        options = self.request.as_execution_options()
        kept = {name: value for name, value in options.items() if name not in NOT_SENT_ON}
        self.apply_async(args, kwargs, **{**kept, "task_id": self.request.id})
        raise Ignore

    def map(self, *_: Untyped) -> Untyped:
        """Raise UsageError: Celery would call the task in the process of a worker."""
        self.chunks()

    def starmap(self, *_: Untyped) -> Untyped:
        """Raise UsageError, for the same reason."""
        self.chunks()

    def chunks(self, *_: Untyped) -> Untyped:
        """Raise UsageError, for the same reason."""
        from sojourn.messaging import call  # noqa: PLC0415

        raise call.in_place(f"{self.name}, mapped or in chunks,")


class Migrate(Call):
    """``sojourn.migrate``."""

    name = names.MIGRATE


class MigrateMany(Call):
    """``sojourn.migrate_many``."""

    name = names.MIGRATE_MANY


class Drain(Call):
    """``sojourn.drain``."""

    name = names.DRAIN


CALLS = (Migrate, MigrateMany, Drain)
