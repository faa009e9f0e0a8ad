"""The Celery application: one per process, made by ``create_app``, never at import, and it connects to nothing yet."""

from __future__ import annotations

from functools import cache
from typing import Any

from celery import Celery, Task
from celery.signals import before_task_publish

from sojourn.errors import UsageError
from sojourn.settings import Settings, config_file, load
from workflows import tracing, transport
from workflows.signing import SignedRequest, signer

#: The modules whose tasks a worker must know.
MODULES = tuple(f"workflows.{name}" for name in ("migrate", "conclude", "batch", "recover", "survey", "logs", "check"))

SHORTEST_KEY = 16


class SojournTask(Task):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """All tasks, Celery's own among them, take signed messages only."""

    Request = SignedRequest

    def apply_async(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  (Celery has no types)
        """Send the task. Its queue is declared by the worker that consumes it, so not once more for each message."""
        return super().apply_async(*args, **{"declare": (), **options})


def create_app(settings: Settings) -> Any:  # noqa: ANN401  (Celery has no types)
    """Return the application for these settings and make it the current one. Raises UsageError without a key."""
    key = settings.key.get_secret_value()
    if len(key) < SHORTEST_KEY:
        raise UsageError(
            f"The cluster's key is missing or shorter than {SHORTEST_KEY} characters.",
            f"Put the same `key` into {config_file()} on every host, for example from: openssl rand -hex 32",
        )
    transport.install()
    app = Celery("sojourn", task_cls=SojournTask, include=MODULES, set_as_current=True)
    app.conf.update(_configuration(settings), sojourn_key=key)
    _sign_last(key)
    tracing.prepare(settings, lambda: _sign_last(key))
    return app


def shared_queue(settings: Settings) -> str:
    """Return the queue that all workers with the same key consume: planning, and joining the ends.

    A worker that was forgotten when the key changed consumes another one: it would take messages out of this one and
    refuse them all.
    """
    return f"sojourn-{settings.cluster}"


def trace_here(settings: Settings) -> None:
    """Trace what this process does, if a site asks for that; for a process that is in no pool."""
    if tracing.is_wanted(settings):
        tracing.start(settings, lambda: _sign_last(settings.key.get_secret_value()))


def _sign_last(key: str) -> None:
    """Sign messages after everybody else who is connected by now has added headers to them."""
    before_task_publish.disconnect(dispatch_uid="sojourn-signature")
    before_task_publish.connect(signer(key), weak=False, dispatch_uid="sojourn-signature")


@cache
def the_app() -> Any:  # noqa: ANN401
    """Return this process's application, made from its settings at the first call."""
    return create_app(load())


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.redis_url,
        "result_backend": settings.redis_url,
        **({"broker_use_ssl": tls, "redis_backend_use_ssl": tls} if (tls := settings.redis_tls) else {}),
        "broker_connection_retry_on_startup": True,
        "task_default_queue": shared_queue(settings),
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_extended": True,
        "result_expires": settings.keep_days * 86_400,
        "worker_send_task_events": True,
        # Early acknowledgement: a message lost with its worker is found by the journals; a late one would be
        # delivered twice whenever a step takes longer than the visibility timeout.
        "task_acks_late": False,
        # So messages that a dead worker had in its pocket need not be kept: Kombu would deliver them an hour later.
        "broker_transport_options": {"ack_emulation": False},
        # A message that waits in a busy worker's pocket is one that an idle worker could have done.
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }
