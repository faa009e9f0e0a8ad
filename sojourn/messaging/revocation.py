"""Celery's ``revoke``, as far as it concerns migrations: a request that their hosts obey.

Celery broadcasts a revocation to all workers, which then forget the task, or kill the process that
works on it. Neither would say anything of the process that is moved. So one that has not begun is
withdrawn, another one is aborted: its process stays on the source unless it has arrived already,
and the result says which.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery.app.control import Control as CelerysControl
from celery.exceptions import TimeoutError as NoAnswer

from sojourn.messaging import client
from sojourn.messaging.names import REVOKE
from sojourn.model import Untyped


class Control(CelerysControl):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """Remote control as Celery has it; what is revoked is aborted."""

    def revoke(
        self,
        task_id: str | Sequence[str],
        destination: Untyped = None,  # noqa: ARG002  the signature is Celery's
        terminate: bool = False,
        signal: str = "",  # noqa: ARG002
        *,
        reply: bool = False,
        timeout: float | None = None,
        **_: Untyped,
    ) -> None:
        """Withdraw or abort migrations; ``terminate``: of a batch, those under way too.

        With ``reply``, as ``AsyncResult.revoke(wait=True)`` has it, it returns when they have
        ended, or after ``timeout`` seconds. Raises HostUnreachable if there is no host.
        """
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        # By the queue of one host: a request in the shared one could be put back for another.
        host = client.the_cluster().registry.least_busy()
        for each in ids:
            self.app.send_task(REVOKE, (each,), {"terminate": bool(terminate)}, queue=host)
        for each in ids if reply else ():
            self._await(each, timeout)

    def _await(self, task_id: str, timeout_s: float | None) -> None:
        try:
            self.app.AsyncResult(task_id).get(timeout=timeout_s, propagate=False)
        except NoAnswer:
            return
