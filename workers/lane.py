"""A Celery worker as a lane is one: it tells Flower of many steps at one go, and seldom collects garbage.

Otherwise a quarter of what a busy lane's own process does is telling, and a tenth of what all of them do is looking for
garbage among the modules that they share.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

from celery.worker.consumer import Consumer as CelerysConsumer

from workflows.app import the_app

#: How long an event may wait for others, as long as there are fewer than Celery keeps back.
TELL_S = 0.25

#: So many objects more than were freed let Python look for garbage among the young; Celery leaves little behind.
YOUNG, MIDDLE, OLD = 50_000, 20, 20


class Consumer(CelerysConsumer):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """A consumer that lets events wait for each other."""

    _tells_at = float("-inf")

    def on_send_event_buffered(self) -> None:
        """Be told that an event waits; the first of some begins the time. A timer that was lost keeps nothing back."""
        now = time.monotonic()
        if self.hub and now >= self._tells_at:
            self._tells_at = now + TELL_S
            self.hub.call_later(TELL_S, self._flush_events)


def run(arguments: Sequence[str]) -> None:
    """Be a Celery worker with these arguments until it ends."""
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
    app = the_app()
    app.conf.worker_consumer = f"{__name__}:{Consumer.__name__}"
    app.worker_main(list(arguments))
