"""The language of the pipeline tables, and their translation into Celery's own canvas.

A table becomes one ``chain``: each row is a task on its host's queue, and each ``Both`` is a
``chord``, whose body is the row behind it. The canvas drives; it never decides: every step looks
into its host's journal first. Whichever step fails, one errback starts the rollback; it belongs to
no host, names no queue, and so goes to the one that all workers of the cluster share. The rollback
is a canvas too: every undo in the opposite order, each tried whatever became of the others, because
an undo never fails (``tasks/step.py``).

A ``Both`` never stands inside the freeze: the errback of a chord waits on Redis until all parts of
its header have returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from celery import chain, group, signature
from kombu.exceptions import OperationalError

from sojourn.errors import StoreUnreachable
from sojourn.model import Plan, Role, Untyped
from sojourn.state.message import Message
from tasks.policy import HostStep
from tasks.step import link
from workflows.tracing import traced

#: The two hosts, as tables name them.
SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION

#: The two lanes of a host's worker, by the names of their Celery workers.
LANES = ("main", "frozen")

#: The last link of each canvas, and the errback. By name: their modules come after this one.
CONCLUDE, ROLL_BACK = "sojourn.conclude", "sojourn.roll_back"


@dataclass(frozen=True)
class Step:
    """One row. ``frozen``: a stopped tree waits for its message, which has a lane of its own."""

    do: HostStep
    on: Role
    undo: HostStep | None = None
    frozen: bool = False


class Both:
    """Lists of rows that hosts do side by side; the next row waits for all of them.

    Raises ValueError for a row that a stopped tree waits for.
    """

    def __init__(self, *sides: Sequence[Step]) -> None:
        if any(step.frozen for side in sides for step in side):
            raise ValueError("A tree that is frozen must not wait for a chord.")
        self.sides = sides


class Pipeline:
    """The rows in the order in which they are done; the undos are done in the opposite order."""

    def __init__(self, *rows: Step | Both) -> None:
        self.rows = rows

    def steps(self) -> Iterator[Step]:
        """Yield all steps, those of a ``Both`` one side after another."""
        for row in self.rows:
            for side in row.sides if isinstance(row, Both) else [[row]]:
                yield from side

    def backward(self) -> Pipeline:
        """Return the undos, last first. A stopped tree may wait for them."""
        undone = [step for step in reversed([*self.steps()]) if step.undo]
        return Pipeline(*(Step(step.undo, step.on, frozen=True) for step in undone if step.undo))


def queue_of(host: str, *, frozen: bool) -> str:
    """Return a host's queue; steps that a stopped tree waits for have one of their own."""
    return f"{host}.frozen" if frozen else host


def forward(
    pipeline: Pipeline, message: Message, *, end: str = CONCLUDE, errback: str = ROLL_BACK
) -> Untyped:
    """Return the canvas of every step, then ``end``; ``errback`` gets the message if one fails."""
    canvas = linked(pipeline, message, end=end)
    # Immutable, or Celery would put the id of the failed task before the argument.
    return canvas.on_error(signature(errback, args=(message.to_text(),), immutable=True))


def linked(
    pipeline: Pipeline, message: Message, *, end: Untyped = CONCLUDE, **options: Untyped
) -> Untyped:
    """Return the canvas without an errback. ``options`` are Celery's, for each message.

    ``end`` is the name or the signature of the last link; without one, the last step is it.

    The first step is handed the message, each other one what the one before returned, and the one
    behind a ``Both`` a list of what its sides returned (``Message.handed``).
    """
    # What a step hands on travels in the next message; nobody reads it a second time. Flower shows
    # in place of the arguments whose step it is.
    whose = f"{message.plan.describe()}; migration {message.id}"
    options = {"ignore_result": True, "argsrepr": whose, **options}
    first, *others = [_link(row, message.plan, options) for row in pipeline.rows]
    ends = [signature(end)] if end else []
    return chain(first.clone((message.to_text(),)), *others, *ends)


def _link(row: Step | Both, plan: Plan, options: dict[str, Untyped]) -> Untyped:
    if isinstance(row, Both):
        return group([_side(side, plan, options) for side in row.sides])
    queue = queue_of(plan.host_of(row.on), frozen=row.frozen)
    return link(row.do, queue, plan, **options)


def _side(side: Sequence[Step], plan: Plan, options: dict[str, Untyped]) -> Untyped:
    """Return one side of a ``Both``; a chain of one costs as much to send as a task more."""
    links = [_link(step, plan, options) for step in side]
    return chain(*links) if len(links) > 1 else links[0]


def send(canvas: Untyped, migration: str) -> Untyped:
    """Send a migration's canvas. Raises StoreUnreachable if Redis takes none of its messages."""
    # Celery's store of results gives up by a RuntimeError, after twenty seconds.
    away = (OperationalError, RuntimeError, *canvas.app.backend.connection_errors)
    try:
        with traced(migration, "sojourn.send"):
            return canvas.apply_async()
    except away as error:
        raise StoreUnreachable(f"Redis took no messages: {error}.", "Is it running?") from None
