"""Celery's consumer, but what Flower is told of steps is sent some times a second, not once for each event.

Otherwise a quarter of what a busy lane's own process does is telling.
"""

from __future__ import annotations

import time

from celery.worker.consumer import Consumer as CelerysConsumer

#: How long an event may wait for others, as long as there are fewer than Celery keeps back.
TELL_S = 0.25


class Consumer(CelerysConsumer):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """A consumer that lets events wait for each other."""

    _tells_at = float("-inf")

    def on_send_event_buffered(self) -> None:
        """Be told that an event waits; the first of some begins the time. A timer that was lost keeps nothing back."""
        now = time.monotonic()
        if self.hub and now >= self._tells_at:
            self._tells_at = now + TELL_S
            self.hub.call_later(TELL_S, self._flush_events)
