"""A lane of a host: a Celery worker that consumes some of its queues.

Celery does the work by itself but for two things: the events for Flower are sent in batches, and
the lane notes that it still listens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from celery import bootsteps
from celery.signals import worker_process_init, worker_ready

from sojourn.messaging.application import shared_queue
from sojourn.messaging.results import await_none
from sojourn.migration.context import Host
from sojourn.model import Untyped
from workers.warmup import warm_up
from workflows.app import the_app
from workflows.border import Border
from workflows.canvas import queue_of
from workflows.serialization import use_orjson
from workflows.transport import Channel, check_by, keep_connections

#: How long an event may wait for others, while there are fewer than Celery buffers.
FLUSH_S = 0.25

#: How often a lane notes that it listens, and after how long without an answer of Redis it does not
#: any more: Redis answers every second, if only that there is nothing.
LISTENS_EVERY_S, HEARS_WITHIN_S = 1.0, 5.0

#: After how long without such a note a lane counts as deaf. A busy processor is not enough for it.
DEAF_S = 10.0


class EventsTogether(bootsteps.StartStopStep):  # type: ignore[misc, unused-ignore]  # untyped
    """Sends the events of ``FLUSH_S`` as one message; Celery sends nearly every one by itself.

    It saves 12 % of the processor's time for a migration (115 in place of 131 ms, those of Redis
    included) and gives 14 % more migrations per second: medians of three pairs of runs of
    ``benchmarks/control_plane.py`` at the same time, 12 messages per migration, two busy cores.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Untyped) -> None:
        """Replace what the dispatcher calls when it has buffered an event; at each connection."""
        if consumer.hub:
            dispatcher = consumer.event_dispatcher
            dispatcher.on_send_buffered = _flush_later(consumer.hub, dispatcher.flush)


def _flush_later(hub: Untyped, flush: Callable[[], None]) -> Callable[[], None]:
    """Return a function that flushes once, ``FLUSH_S`` after the first call of several."""
    flush_at = float("-inf")

    def buffered() -> None:
        nonlocal flush_at
        now = time.monotonic()
        # A time and not a flag, so that events go on if the hub ever loses the timer.
        if now >= flush_at:
            flush_at = now + FLUSH_S
            hub.call_later(FLUSH_S, flush)

    return buffered


class Listening(bootsteps.StartStopStep):  # type: ignore[misc, unused-ignore]  # untyped
    """Notes every second that the lane listens, unless it could and has heard nothing.

    A lane whose loop hangs cannot note anything; one whose slots are all taken need not listen.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    note: ClassVar[Callable[[], None]]

    def __init__(self, consumer: Untyped, **options: Untyped) -> None:
        self._timer: Untyped = None
        super().__init__(consumer, **options)

    def start(self, consumer: Untyped) -> None:
        """Begin to note it; at each connection."""
        channel = consumer.task_consumer.channel
        self._timer = consumer.timer.call_repeatedly(LISTENS_EVERY_S, self._look, (channel,))

    def stop(self, consumer: Untyped) -> None:  # noqa: ARG002  the signature is Celery's
        """Note nothing while there is no connection."""
        if self._timer:
            self._timer.cancel()

    def _look(self, channel: Channel) -> None:
        if not channel.qos.can_consume() or channel.silent_s < HEARS_WITHIN_S:
            type(self).note()


@dataclass(frozen=True)
class Reports:
    """What a lane calls: when it takes steps, while it listens, and by whose reason it refused."""

    ready: Callable[[], None]
    listening: Callable[[], None]
    refused: Callable[[str], None]


#: For a lane that nobody supervises.
NOBODY = Reports(lambda: None, lambda: None, lambda _reason: None)


@dataclass(frozen=True)
class Lane:
    """A Celery worker: its name, its queues, and how many steps it takes side by side."""

    name: str
    queues: tuple[str, ...]
    slots: int

    def arguments(self, host: str) -> list[str]:
        """Return the arguments of ``celery worker``."""
        # Prefork, since Celery enforces a task's ``time_limit`` in no other pool. Without gossip a
        # lane does not receive the events of all others, without mingle it does not wait for their
        # greetings when it starts; nothing here needs either. The events are for Flower.
        return [
            "worker",
            f"--hostname={self.name}@{host}",
            f"--queues={','.join(self.queues)}",
            f"--concurrency={self.slots}",
            "--loglevel=INFO",
            "--pool=prefork",
            "--without-gossip",
            "--without-mingle",
            "--task-events",
        ]


def lanes(host: Host) -> list[Lane]:
    """Return the lanes of a host.

    ``main`` consumes the host's queue and the shared one; ``frozen`` the steps that a stopped tree
    waits for, so that nothing else can occupy its slots.
    """
    settings = host.settings
    main = (queue_of(host.name, frozen=False), shared_queue(settings))
    return [
        Lane("main", main, settings.concurrency),
        Lane("frozen", (queue_of(host.name, frozen=True),), settings.freeze_slots),
    ]


def consume(lane: Lane, host: str, reports: Reports) -> None:
    """Be a lane of this host, and report about it."""
    worker_process_init.connect(warm_up)

    def note_ready(**_: Untyped) -> None:
        # It listens from now on, and may hang before it notes that for the first time.
        reports.listening()
        reports.ready()

    # A signal keeps weak references, and nothing else refers to this function.
    worker_ready.connect(note_ready, weak=False)
    run(lane.arguments(host), reports)


def run(arguments: Sequence[str], reports: Reports = NOBODY) -> None:
    """Be a Celery worker with these arguments until it ends."""
    app = the_app()
    await_none(app)
    use_orjson(app)
    check_by(Border(app.conf.sojourn_key, reports.refused))
    keep_connections(app)
    app.steps["consumer"].update({EventsTogether, Listening})
    Listening.note = staticmethod(reports.listening)
    app.worker_main(list(arguments))
