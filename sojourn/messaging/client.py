"""The application by which a program that is no worker calls Sojourn.

It is nobody's current application, and shares nothing with one that the program has of its own.
"""

from __future__ import annotations

from functools import cache, cached_property

from sojourn.cluster.client import Cluster
from sojourn.errors import UsageError
from sojourn.messaging.application import Application
from sojourn.messaging.names import BY
from sojourn.model import Json, Untyped
from sojourn.settings import Settings, load
from sojourn.system import caller


class Client(Application):
    """Celery for a program that calls: no worker can be made of it."""

    def send_task(
        self, *arguments: Untyped, headers: Json | None = None, **options: Untyped
    ) -> Untyped:
        """Send a task, and who asks for it."""
        claimed = {BY: caller.current().to_json(), **(headers or {})}
        return super().send_task(*arguments, headers=claimed, **options)

    @cached_property
    def AsyncResult(self) -> Untyped:  # noqa: N802  (the name is Celery's)
        """The class of results, which know of what has not ended."""
        return self.subclass_with_self("sojourn.messaging.pending:Pending")

    @cached_property
    def Worker(self) -> Untyped:  # noqa: N802  (the name is Celery's)
        """Raise UsageError: it would take messages for Sojourn's hosts, and do nothing by them."""
        raise UsageError(
            "A worker of Sojourn's is no `celery worker`.", "`sojourn worker` starts one."
        )


def the_client() -> Client:
    """Return this process's client for its settings, made at the first call.

    Raises UsageError for settings that are wrong.
    """
    return _client(load())


def the_cluster() -> Cluster:
    """Return what the hosts share in Redis, as this process reaches it."""
    return _cluster(load())


@cache
def _client(settings: Settings) -> Client:
    control = "sojourn.messaging.revocation:Control"
    return Client(settings, set_as_current=False, control=control)


@cache
def _cluster(settings: Settings) -> Cluster:
    return Cluster(settings)
