"""Compiles a pipeline table into a Celery canvas: one chain, which travels from host to host in its own messages.

The canvas drives; it never decides. Whichever step fails, the errback starts the rollback; it belongs to no host: it
names no queue, and so goes to the one that all workers of the cluster share. The rollback is a canvas too: every undo
in the opposite order, each tried whatever became of the others, because an undo never fails (``tasks/step.py``).

Each link is a leg: what one host does before the other one has its turn again. A message costs as much as the steps
themselves, in time and in work, and while a tree stands still nothing should wait for one; so what needs none has none.
What both hosts do, they do one after the other: a chord costs as much as two messages, and calls no errback where two
of them meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from kombu.exceptions import OperationalError

from sojourn.errors import StoreUnreachable
from sojourn.model import Message, Plan, Role
from tasks.step import HostStep, leg
from workflows.pipeline import Pipeline
from workflows.tracing import traced

#: The two lanes of a host's worker, by the names of their Celery workers.
LANES = ("main", "frozen")


def lane(host: str, *, frozen: bool) -> str:
    """Return the queue of a host; steps that a stopped tree waits for have one that nothing else can fill."""
    return f"{host}.frozen" if frozen else host


#: Rows to link: a step, where it runs, and whether a stopped tree waits for its message.
Rows = Sequence[tuple[HostStep, Role, bool]]


def forward(pipeline: Pipeline, message: Message, conclude: Any, roll_back: Any) -> Any:  # noqa: ANN401  (no types in Celery)
    """Return the canvas that does every step, then ``conclude``; ``roll_back`` gets the message if one fails."""
    rows = [(step.do, step.on, step.frozen) for step in pipeline.steps]
    errback = roll_back.si(message.to_text())
    return linked(rows, message, conclude, link_error=errback)


def backward(pipeline: Pipeline, message: Message, conclude: Any) -> Any:  # noqa: ANN401
    """Return the canvas that undoes every step, last first, then concludes. A stopped tree waits for it."""
    rows = [(step.undo, step.on, True) for step in reversed(pipeline.steps) if step.undo]
    return linked(rows, message, conclude)


def linked(rows: Rows, message: Message, conclude: Any, **options: Any) -> Any:  # noqa: ANN401
    """Chain the legs of the rows: the first is given the message, every other one what the one before returned.

    ``conclude`` is called where the last leg ends. ``options`` are Celery's, for each message. What Celery's own
    ``chain`` would return does the same; making one costs more than a whole step, since it copies all signatures
    several times, for groups that we do not have.
    """
    # What a step hands on travels in the next message; nobody reads it a second time. Flower shows whose it is.
    whose = f"{message.plan.describe()}; migration {message.id}"
    told = {"argsrepr": whose, "ignore_result": True, **options}
    links = [_leg([*rows], message.plan, told) for _, rows in groupby(rows, key=itemgetter(1))]
    links[-1].kwargs["last"] = conclude.name
    first, *others = links
    first.args = (message.to_text(),)
    return first.set(chain=others[::-1])  # Celery takes the next one from the end


def _leg(rows: Rows, plan: Plan, told: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the signature for rows of one host; it goes by the lane of the first."""
    _, role, frozen = rows[0]
    return leg([step for step, _, _ in rows], lane(plan.host_of(role), frozen=frozen), plan, **told)


def send(canvas: Any, migration: str) -> Any:  # noqa: ANN401
    """Send a migration's canvas, for whose results nobody here waits. Raises StoreUnreachable if Redis takes none."""
    # Celery's store of results gives up by a RuntimeError, after twenty seconds.
    away = (OperationalError, RuntimeError, *canvas.app.backend.connection_errors)
    try:
        with traced(migration, "sojourn.send"):
            return canvas.apply_async()
    except away as error:
        raise StoreUnreachable(f"Redis took no messages: {error}.", "Is it running?") from None
