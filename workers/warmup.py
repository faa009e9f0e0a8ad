"""Opens a pool process's connections before its first step: that one may hold a frozen tree."""

from __future__ import annotations

import logging

from kombu.exceptions import OperationalError

from sojourn.errors import StoreUnreachable
from sojourn.migration.context import this_host
from sojourn.model import Untyped
from workflows.app import the_app

log = logging.getLogger("sojourn.worker")


def warm_up(**_: object) -> None:
    """Open the journal and the connections to Redis; a first step would spend 30 ms on them.

    A receiver for ``worker_process_init``. Without Redis the worker starts all the same.
    """
    app = the_app()
    away = (StoreUnreachable, OperationalError, *app.connection_for_write().connection_errors)
    try:
        _open_connections(app)
    except away:
        log.warning("Redis does not answer yet; the first steps will be slower.")


def _open_connections(app: Untyped) -> None:
    """Use each connection once: the ledger's, the result backend's, and the broker's."""
    this_host().ledger.bookmark()
    app.backend.client.ping()
    with app.producer_or_acquire() as producer:
        producer.connection.ensure_connection(max_retries=1)
        # A connection of Kombu is opened by its first command, which this one is.
        producer.channel.queue_declare(app.conf.task_default_queue)
