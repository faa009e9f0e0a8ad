"""Tasks that users call from their own programs, which need not know of an application."""

from __future__ import annotations

from sojourn.messaging.names import BY
from sojourn.model import Untyped
from sojourn.system import caller
from workflows.app import SojournTask, the_app


class Call(SojournTask):
    """A task that is sent through Sojourn's own application, which the first call makes."""

    def apply_async(self, *args: Untyped, **kwargs: Untyped) -> Untyped:
        """Send the task, as Celery's own method does, from any program."""
        # The caller's program may have a current application of its own, with another broker.
        ours = the_app().tasks[self.name]
        headers = {BY: caller.current().to_json(), **(kwargs.pop("headers", None) or {})}
        return super(Call, ours).apply_async(*args, headers=headers, **kwargs)
