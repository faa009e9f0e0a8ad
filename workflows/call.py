"""Tasks that users call from their own programs, which need not know of an application."""

from __future__ import annotations

from sojourn.messaging.client import the_cluster
from sojourn.messaging.names import BY
from sojourn.model import Untyped
from sojourn.system import caller
from workflows.app import SojournTask, the_app
from workflows.canvas import queue_of


class Call(SojournTask):
    """A task that is sent through Sojourn's own application, which the first call makes."""

    def apply_async(self, *args: Untyped, **kwargs: Untyped) -> Untyped:
        """Send the task, as Celery's own method does, from any program."""
        # The caller's program may have a current application of its own, with another broker.
        ours = the_app().tasks[self.name]
        headers = {BY: caller.current().to_json(), **(kwargs.pop("headers", None) or {})}
        return super(Call, ours).apply_async(*args, headers=headers, **kwargs)


class CallOfOne(Call):
    """A task that one host takes, by its own queue, and so can be begun only once.

    A host remembers which messages it has begun, and no other host takes those of its own queue.
    One that was recorded in the shared queue could be put back there, for another worker.
    """

    def apply_async(self, *args: Untyped, **kwargs: Untyped) -> Untyped:
        """Send the task to the host that has the least to do. Raises HostUnreachable."""
        queue = queue_of(the_cluster().registry.least_busy(), frozen=False)
        return super().apply_async(*args, **{"queue": queue, **kwargs})
