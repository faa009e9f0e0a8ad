"""What other programs call: tasks of Sojourn's, in any program, with or without Celery of its own.

from sojourn import migrate
result = migrate.delay(pid=4242, source="alpha", destination="beta")
result.get()["downtime_ms"]

These objects stand for Celery tasks, which are made at the first use: so an import costs next to
nothing. They leave the program as it is: its current application, its queues and its messages. In a
program that has imported Celery the tasks are registered at once, so that its workers can go on
with a chain in which one of them is next.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, Unpack

from sojourn.client.terms import Batch, Line, Migration, OfADrain, One, Options, Partial, Pending
from sojourn.model import Untyped

if TYPE_CHECKING:
    from celery.canvas import Signature

__all__ = ["Batch", "Line", "Migration", "One", "Options", "drain", "migrate", "migrate_many"]

Outcome = TypeVar("Outcome")


class Task(Generic[Outcome]):
    """A task of Sojourn's as callers have it, with the methods of a task of Celery's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name} of Sojourn>"

    def apply_async(
        self, args: Sequence[Untyped] = (), kwargs: Untyped = None, **options: Untyped
    ) -> Pending[Outcome]:
        """Call it with Celery's options: ``countdown``, ``expires``, ``link``, ``task_id``, ….

        Raises UsageError for arguments that are wrong and options that cannot be followed;
        StoreUnreachable if Redis does not answer.
        """
        pending: Pending[Outcome] = self._celery().apply_async(args, kwargs, **options)
        return pending

    def signature(self, *args: Untyped, **options: Untyped) -> Signature:
        """Return a signature, for chains, groups and chords."""
        return self._celery().signature(*args, **options)

    def AsyncResult(self, task_id: str) -> Pending[Outcome]:  # noqa: N802  (the name is Celery's)
        """Return what was called earlier, in whatever process, by its id."""
        from sojourn.messaging.client import the_client  # noqa: PLC0415

        pending: Pending[Outcome] = the_client().AsyncResult(task_id)
        return pending

    def __getattr__(self, name: str) -> Untyped:
        """Return anything else that a task of Celery's has."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._celery(), name)

    def _celery(self) -> Untyped:
        from sojourn.client import tasks  # noqa: PLC0415  (it imports Celery)

        return tasks.task_of(self.name)


class Migrate(Task[Migration]):
    """``sojourn.migrate``: one process."""

    def delay(self, **options: Unpack[One]) -> Pending[Migration]:
        """Migrate a process; see ``apply_async``."""
        return self.apply_async(kwargs=options)

    def s(self, *before: Untyped, **options: Unpack[Partial]) -> Signature:
        """Return a signature; what the task before it returns are options too."""
        return self.signature(before, options)

    def si(self, **options: Unpack[One]) -> Signature:
        """Return a signature that leaves what the task before it returns."""
        return self.signature((), options, immutable=True)

    def __call__(self, *_: Untyped, **__: Untyped) -> Untyped:
        """Raise UsageError: nothing can be migrated in place."""
        return self._celery()()


class MigrateMany(Task[Batch]):
    """``sojourn.migrate_many``: the lines of a plan."""

    def delay(
        self, plan: Sequence[Line], by: str = "", timeout_s: float | None = None
    ) -> Pending[Batch]:
        """Migrate many processes; see ``apply_async``.

        ``by`` is shown as who asked for it; after ``timeout_s`` seconds nothing more begins.
        """
        return self.apply_async((list(plan), by, timeout_s))

    def s(self, *plan: Untyped, **options: Untyped) -> Signature:
        """Return a signature; what the task before it returns is the plan."""
        return self.signature(plan, options)

    def si(self, plan: Sequence[Line], by: str = "") -> Signature:
        """Return a signature that leaves what the task before it returns."""
        return self.signature((list(plan), by), immutable=True)


class Drain(Task[Batch]):
    """``sojourn.drain``: all of a host that can be moved."""

    def delay(self, host: str, by: str = "", **options: Unpack[OfADrain]) -> Pending[Batch]:
        """Cordon a host and empty it; see ``apply_async``."""
        return self.apply_async((), {"host": host, "by": by, **options})

    def s(self, *host: Untyped, **options: Untyped) -> Signature:
        """Return a signature; what the task before it returns is the host's name."""
        return self.signature(host, options)

    def si(self, host: str, by: str = "", **options: Unpack[OfADrain]) -> Signature:
        """Return a signature that leaves what the task before it returns."""
        return self.signature((), {"host": host, "by": by, **options}, immutable=True)


migrate = Migrate("sojourn.migrate")
migrate_many = MigrateMany("sojourn.migrate_many")
drain = Drain("sojourn.drain")

if "celery" in sys.modules:
    from sojourn.client import tasks as tasks
