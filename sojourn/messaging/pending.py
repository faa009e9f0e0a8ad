"""The result of a call: until it is there, the state and the progress of what was called.

Celery knows PENDING, and then the end. A migration writes no results in between, since each would
cost a message inside the freeze: what the ledger has is shown instead.
"""

from __future__ import annotations

import time

from celery import states
from celery.result import AsyncResult

from sojourn.cluster import progress
from sojourn.cluster.progress import Progress
from sojourn.messaging import client
from sojourn.model import Untyped


class Pending(AsyncResult):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """Celery's result, wherever it is kept, of a migration or a batch."""

    @property
    def state(self) -> str:
        """Where it stands: a state of Celery's at the end, one of Sojourn's before."""
        found = super().state
        under_way = self._under_way() if found == states.PENDING else None
        return under_way.state if under_way else str(found)

    status = state

    @property
    def info(self) -> Untyped:
        """What it came to, or how far it has come."""
        if super().state != states.PENDING:
            return super().result
        under_way = self._under_way()
        return under_way.info if under_way else None

    result = info

    def revoke(
        self,
        connection: Untyped = None,  # noqa: ARG002  the signature is Celery's
        terminate: bool = False,
        signal: str | None = None,  # noqa: ARG002
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Withdraw it before it began, abort it afterwards; with ``wait`` return at its end."""
        control = client.the_client().control
        control.revoke(self.id, terminate=terminate, reply=wait, timeout=timeout)

    def _under_way(self) -> Progress | None:
        cluster = client.the_cluster()
        if account := cluster.ledger.account(self.id):
            return progress.of_migration(account, time.time())
        record = cluster.batches.record(self.id)
        return progress.of_batch(record) if record else None
