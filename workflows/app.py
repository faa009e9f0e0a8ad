"""The Celery application: one per process, created by ``create_app``, never at import.

Creating it connects to nothing.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from celery.signals import before_task_publish

from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import UsageError
from sojourn.model import Untyped
from sojourn.settings import Settings, config_file, load
from workflows import tracing
from workflows.freshness import UNTIL, Taken
from workflows.results import URL_PREFIX
from workflows.signing import SignedRequest, signer

log = logging.getLogger("sojourn.freshness")

#: The modules whose tasks a worker must know.
MODULES = tuple(
    f"workflows.{name}"
    for name in (
        *("migrate", "conclude", "rollback", "recover"),
        *("batch", "survey", "logs", "profile", "check"),
    )
)

#: How many characters a cluster's key has at least.
SHORTEST_KEY = 16


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
    key = settings.key.get_secret_value()
    if len(key) < SHORTEST_KEY:
        raise UsageError(
            f"The cluster's key is missing or shorter than {SHORTEST_KEY} characters.",
            f"Put the same `key` into {config_file()} on every host, "
            "for example from: openssl rand -hex 32",
        )
    app = Celery("sojourn", task_cls=SojournTask, include=MODULES, set_as_current=True)
    sealed = Sealed(Store.of(settings))
    app.conf.update(_configuration(settings), sojourn_key=key, sojourn_sealed=sealed)
    _sign_last(key)
    tracing.prepare(settings, lambda: _sign_last(key))
    return app


def shared_queue(settings: Settings) -> str:
    """Return the queue that all workers with the same key consume, for planning and joining.

    Its name depends on the key: a worker that still has the old key consumes another queue, else it
    would take messages out of this one and refuse them all.
    """
    return f"sojourn-{settings.cluster}"


def trace_here(settings: Settings) -> None:
    """Trace this process, which belongs to no pool, where a collector is configured."""
    if tracing.is_wanted(settings):
        tracing.start(settings, lambda: _sign_last(settings.key.get_secret_value()))


def _sign_last(key: str) -> None:
    """Sign messages after every receiver connected so far has added its headers."""
    # Receivers are called in the order of their connection, so this one goes to the end.
    before_task_publish.disconnect(dispatch_uid="sojourn-signature")
    before_task_publish.connect(signer(key), weak=False, dispatch_uid="sojourn-signature")


@cache
def the_app() -> Untyped:
    """Return this process's application, created from its settings at the first call."""
    return create_app(load())


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.redis_url,
        "result_backend": f"{URL_PREFIX}{settings.redis_url}",
        # Workers turn this off (``workflows.results.await_none``).
        "sojourn_awaits_results": True,
        # With the transport of a worker an address of ``rediss:`` does not ask for TLS by itself.
        **(
            {"broker_use_ssl": tls, "redis_backend_use_ssl": tls}
            if (tls := settings.redis_tls)
            else {}
        ),
        # After a power cut a worker may be up before Redis.
        "broker_connection_retry_on_startup": True,
        # Redis refuses commands while it is full, read-only or loading, or where a key is of
        # another type: that must not end a lane.
        "broker_channel_error_retry": True,
        "task_default_queue": shared_queue(settings),
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_extended": True,
        "result_expires": settings.keep_s,
        "worker_send_task_events": True,
        # Early acknowledgement: the reconcilers make up for a message that is lost with its worker.
        # With a late one, Redis would deliver each step again that takes longer than the visibility
        # timeout.
        "task_acks_late": False,
        # For the same reason Kombu need not keep what a worker has prefetched: it would deliver the
        # messages of a dead one an hour later.
        # No message has a priority, so a worker need not ask for each of Kombu's four.
        "broker_transport_options": {"ack_emulation": False, "priority_steps": [0]},
        # A message prefetched by a busy worker is one that an idle worker could have processed.
        "worker_prefetch_multiplier": 1,
        # One errback for both sides of a chord, when both have returned, not one for each failure.
        "task_allow_error_cb_on_chord_header": False,
        # The root logger is configured already, as text or JSON (``sojourn.log``).
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # A step goes on while Redis is away: its record is the journal, and a frozen tree may need
        # it.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }
