"""The Celery application that sends signed messages to Sojourn's Redis and reads sealed results.

Creating one connects to nothing.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import UsageError
from sojourn.messaging.results import URL_PREFIX
from sojourn.messaging.signing import Signing
from sojourn.model import Untyped
from sojourn.settings import SHORTEST_KEY, Settings, config_file


class Application(Celery):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """Celery for these settings. Raises UsageError without a key."""

    def __init__(self, settings: Settings, **options: Untyped) -> None:
        key = _key_of(settings)
        super().__init__("sojourn", **options)
        sealed = Sealed(Store.of(settings))
        self.conf.update(_configuration(settings), sojourn_key=key, sojourn_sealed=sealed)

    def send_task(
        self, *arguments: Untyped, producer: Untyped = None, **options: Untyped
    ) -> Untyped:
        """Send a task, signed. All messages of tasks pass here, those of canvases too."""
        with self.producer_or_acquire(producer) as held:
            signing = Signing(held, self.conf.sojourn_key, self.conf.task_default_queue)
            return super().send_task(*arguments, producer=signing, **options)


def shared_queue(settings: Settings) -> str:
    """Return the queue that all workers with the same key consume, for planning and joining.

    Its name depends on the key: a worker that still has the old key consumes another queue, else it
    would take messages out of this one and refuse them all.
    """
    return f"sojourn-{settings.cluster}"


def _key_of(settings: Settings) -> str:
    key: str = settings.key.get_secret_value()
    if len(key) < SHORTEST_KEY:
        raise UsageError(
            f"The cluster's key is missing or shorter than {SHORTEST_KEY} characters.",
            f"Put the same `key` into {config_file()} on every host, "
            "for example from: openssl rand -hex 32",
        )
    return key


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.redis_url,
        "result_backend": f"{URL_PREFIX}{settings.redis_url}",
        # Workers turn this off (``await_none``).
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
