"""Tasks that users call from their own programs, which need not know of an application."""

from __future__ import annotations

from typing import Any

from workflows.app import SojournTask, the_app


class Call(SojournTask):
    """A task that is sent through Sojourn's own application, made from the settings at the first call."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Send the task; as Celery's own, from any program."""
        ours = the_app().tasks[self.name]
        return super(Call, ours).apply_async(*args, **kwargs)
