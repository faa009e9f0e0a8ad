"""Compiles a pipeline table into a Celery canvas: chords where both hosts work side by side, a chain for the rest.

The canvas drives; it never decides. Whichever step fails, the errback starts the rollback, on the shared queue. The
rollback is a canvas too: every undo in the opposite order, each tried whatever became of the others, because an
undo never fails (``tasks/step.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import chain, group, shared_task
from celery.result import denied_join_result
from kombu.exceptions import OperationalError

from sojourn.errors import StoreUnreachable
from sojourn.model import Json, Message
from tasks.step import HostStep
from workflows.pipeline import On, Pipeline
from workflows.tracing import traced

#: The queue that every worker consumes: planning, and joining the ends.
SHARED_QUEUE = "sojourn"


#: The two lanes of a host's worker, by the names of their Celery workers.
LANES = ("main", "frozen")


def lane(host: str, *, frozen: bool) -> str:
    """Return the queue of a host; steps that a stopped tree waits for have one that nothing else can fill."""
    return f"{host}.frozen" if frozen else host


#: Rows to link: a step, where it runs, and whether a stopped tree waits for it.
Rows = Sequence[tuple[HostStep, On, bool]]


def forward(pipeline: Pipeline, message: Message, conclude: Any, roll_back: Any) -> Any:  # noqa: ANN401  (no types in Celery)
    """Return the canvas that does every step, then ``conclude``; ``roll_back`` gets the message if one fails."""
    rows = [(step.do, step.on, step.frozen) for step in pipeline.steps]
    errback = roll_back.si(message.to_json()).set(queue=SHARED_QUEUE)
    return linked(rows, message, conclude).on_error(errback)


def backward(pipeline: Pipeline, message: Message, conclude: Any) -> Any:  # noqa: ANN401
    """Return the canvas that undoes every step, last first, then concludes. A stopped tree waits for it."""
    rows = [(step.undo, step.on, True) for step in reversed(pipeline.steps) if step.undo]
    return linked(rows, message, conclude)


@shared_task(name="sojourn.meet")
def meet(handed: list[Json]) -> Json:
    """Join what two hosts did side by side, before they do the next thing side by side.

    Celery calls no errback when the header of a chord fails whose body is itself a chord: so there is always a plain
    task between two groups.
    """
    return Message.join(handed).to_json()


def linked(rows: Rows, message: Message, conclude: Any, *, expires_s: float | None = None) -> Any:  # noqa: ANN401
    """Chain the rows: the first is given the message, every other one what the one before returned."""
    links: list[Any] = []
    whose = f"{message.plan.describe()}; migration {message.id}"
    for step, on, frozen in rows:
        handed = None if links else message
        hosts = on.hosts(message.plan)
        signatures = [step.signature(lane(host, frozen=frozen), message.plan, handed) for host in hosts]
        for signature in signatures:
            # What a step hands on travels in the next message; nobody reads it a second time. Flower shows whose it is.
            signature.set(expires=expires_s, ignore_result=True, argsrepr=whose)
        if len(hosts) > 1 and links and isinstance(links[-1], group):
            links.append(meet.s().set(queue=SHARED_QUEUE, ignore_result=True))
        links.append(group(signatures) if len(hosts) > 1 else signatures[0])
    return chain(*links, conclude.s().set(queue=SHARED_QUEUE, ignore_result=True))


def send(canvas: Any, migration: str) -> Any:  # noqa: ANN401
    """Send a migration's canvas, for whose results nobody here waits. Raises StoreUnreachable if Redis takes none."""
    # Celery's store of results gives up by a RuntimeError, after twenty seconds.
    away = (OperationalError, RuntimeError, *canvas.app.backend.connection_errors)
    try:
        with (
            traced(migration, "sojourn.send"),
            denied_join_result(),
        ):  # else this process would subscribe to every single result, for ever
            return canvas.apply_async()
    except away as error:
        raise StoreUnreachable(f"Redis took no messages: {error}.", "Is it running?") from None
