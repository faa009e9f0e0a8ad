"""Many migrations at one go: plans and drains. ``migrate_many`` and ``drain`` are what other programs call.

A batch is looked at as a whole before the first migration of it begins: its hosts tell of their trees, side by side, a
chord joins what they told, every line is checked, and places are found. Then it is entered, queued, and handed out by
``workflows/dispatch.py``; ``workflows/join.py`` counts the ends. What is asked of a batch later, by an operator, is a
change of its record first: who dies in the middle of acting on it has lost nothing, ``look_after`` goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from celery import chord, shared_task, states
from celery.exceptions import Ignore
from celery.exceptions import TimeoutError as NoAnswer

from sojourn.batch import LATEST, BatchState, Part, Record
from sojourn.errors import Aborted, HostUnreachable, SojournError
from sojourn.host import Host, this_host
from sojourn.model import Failure, Json, Message, Plan
from sojourn.planfile import AUTO, from_json
from sojourn.registry import Registry
from workflows.app import the_app
from workflows.call import Call
from workflows.canvas import lane
from workflows.conclude import close
from workflows.dispatch import dispatch
from workflows.join import entry_of, finish, part_of
from workflows.planning import Placed, find
from workflows.recover import NEVER_BEGUN, abort
from workflows.survey import survey

PLAN, DRAIN = "plan", "drain"

#: How long the hosts may take to tell of their trees, before a batch is refused because one of them did not.
PLANNING_S = 60.0

#: A batch of which nothing waits, and which has not ended, is looked at so often: who should have told may have died.
LOOK_S = 15.0

CHUNK = 500

ABORTED = Failure(Aborted.code, "Its batch was aborted before it began.")
ABORTED_TOO = Failure(Aborted.code, "Its batch was aborted.")


@shared_task(name="sojourn.migrate_many", bind=True, base=Call)
def migrate_many(self: Any, plan: list[Json], by: str = "") -> None:  # noqa: ANN401  (Celery has no types)
    """Migrate many processes: ``migrate_many.delay([{"pid": 1, "source": "a", "destination": "b"}, ...]).get()``.

    Each line is as in a plan file (``sojourn.planfile``). Nothing begins if one of them is wrong: ``.get()`` raises one
    UsageError that names all that are. The result says what each migration came to; those that failed raise nothing.
    """
    _plan(self.request.id, PLAN, plan, by)
    raise Ignore


@shared_task(name="sojourn.drain", bind=True, base=Call)
def drain(self: Any, host: str, by: str = "", **options: Any) -> None:  # noqa: ANN401
    """Move all that can be moved away from a host: ``drain.delay("alpha").get()``; ``options`` are those of a Plan.

    The host is cordoned, and stays so. The result names what stays there and why.
    """
    this_host().registry.cordon(host)
    _plan(self.request.id, DRAIN, lines_of_drain(host, **options), by)
    raise Ignore


def lines_of_drain(host: str, **options: Any) -> list[Json]:  # noqa: ANN401
    """Return a drain as the lines of a plan."""
    return [{"all": True, "source": host, **options}]


def preview(asked: list[Json], kind: str, registry: Registry) -> list[Json]:
    """Return what a batch would do, and touch nothing: ``pid``, ``command``, ``source``, ``destination``, ``why``.

    Raises UsageError for bad lines, HostUnreachable if a host does not tell of its trees.
    """
    the_app()  # an operator's program has none yet
    try:
        rows: list[Json] = _survey(asked, registry, show_batch.s(asked, kind)).get(timeout=PLANNING_S)
    except NoAnswer:
        raise HostUnreachable(f"The hosts did not answer within {PLANNING_S} s.", "Is a worker busy or down?") from None
    return rows


def _plan(batch: str, kind: str, asked: list[Json], by: str) -> None:
    """Enter the batch and ask the hosts that must tell of their trees. Raises UsageError, HostUnreachable."""
    host = this_host()
    if host.batches.record(batch) is None:
        host.batches.plan(batch, kind, {"lines": asked} if kind == DRAIN else {"lines": len(asked)}, by)
    try:
        _survey(asked, host.registry, open_batch.s(batch, kind, asked))
    except SojournError as error:
        _refuse(batch, error)
        raise


def _survey(asked: list[Json], registry: Registry, then: Any) -> Any:  # noqa: ANN401
    """Let the hosts that must do so tell of their trees, side by side, then hand that on. Raises UsageError."""
    lines = from_json(asked)
    names = sorted({line.source for line in lines if line.pid is None or line.destination is None})
    for name in names:
        registry.check_host(name)
    surveys = [survey.s().set(queue=lane(name, frozen=False), expires=PLANNING_S) for name in names]
    return chord(surveys)(then) if surveys else then.apply_async(([],))


@shared_task(name="sojourn.open_batch")
def open_batch(told: list[Json] | Json, batch: str, kind: str, asked: list[Json]) -> None:
    """Check and place what the lines mean, now that the hosts have told of their trees; enter it, and begin."""
    host = this_host()
    record = host.batches.record(batch)
    if record is None or record.state is not BatchState.PLANNING:
        return
    try:
        found = find(from_json(asked), told, host, is_drain=kind == DRAIN)
        parts = [_part(batch, number, one, host) for number, one in enumerate(found.placed, 1)]
    except SojournError as error:
        _refuse(batch, error)
        return
    host.batches.open(batch, parts, found.stays)
    _queue(host, batch, parts)
    if parts:
        dispatch()
    else:
        finish(batch)


@shared_task(name="sojourn.show_batch", base=Call)
def show_batch(told: list[Json] | Json, asked: list[Json], kind: str) -> list[Json]:
    """Return what would be begun, and what would stay, with ``destination`` None. Raises UsageError for bad lines."""
    found = find(from_json(asked), told, this_host(), is_drain=kind == DRAIN)
    return [one.to_json() for one in found.placed] + [{**stay, "destination": None} for stay in found.stays]


def _part(batch: str, number: int, one: Placed, host: Host) -> Part:
    tree, line = one.tree, one.tree.line
    asked = {"max_freeze_s": host.settings.max_freeze_s, **line.plan(tree.pid, one.destination or AUTO)}
    migration = str(uuid5(NAMESPACE_OID, f"{batch}:{number}"))
    return Part(number, asked, migration, line.priority, line.destination is None, tree.bytes)


def _queue(host: Host, batch: str, parts: Sequence[Part]) -> None:
    """Enter the parts into the ledger and the queue. Again is harmless."""
    for start in range(0, len(parts), CHUNK):
        some = parts[start : start + CHUNK]
        host.ledger.open_all((each.migration, Plan.from_json(each.plan), part_of(batch, each)) for each in some)
        host.queue.put(entry_of(batch, each) for each in some)


def _refuse(batch: str, error: SojournError) -> None:
    this_host().batches.refuse(batch, {"code": error.code, "message": error.message, "hint": error.hint})
    the_app().backend.store_result(batch, error, states.FAILURE)


@shared_task(name="sojourn.abort_batch", base=Call)
def abort_batch(batch: str, *, roll_back: bool) -> None:
    """Begin nothing more of a batch; what is under way goes on to its end, or is aborted too."""
    this_host().batches.abort(batch, roll_back=roll_back)
    _give_up(batch)


def _give_up(batch: str) -> None:
    """Withdraw what waits of a batch that is being aborted, and abort what is under way, if that was asked for.

    Whoever comes late must not touch what was resumed meanwhile. Only a batch at rest is resumed, and its parts get
    new migrations then: those that are read while it is not at rest yet are the ones to give up.
    """
    host = this_host()
    parts, ends, record = host.batches.parts(batch), host.batches.ends(batch), host.batches.record(batch)
    if record is None or record.state is not BatchState.ABORTING:
        return
    host.queue.pause(batch)  # each that is taken out makes room, and the next one must not begin there
    left = [part for part in parts if part.number not in ends]
    under_way = [part for part in left if not _withdrawn(host, part)]
    host.queue.resume(batch)  # nothing of it waits any more; a pause must not outlive it
    for part in under_way if record.roll_back else ():
        host.ledger.tell_failure(part.migration, ABORTED_TOO)
        abort(Message(part.migration, Plan.from_json(part.plan)))
    if not left:
        finish(batch)


def _withdrawn(host: Host, part: Part) -> bool:
    """Take a part out of the queue if it waits there, and say that it has ended; False if it is under way."""
    if not host.queue.remove(part.migration):
        return False
    message = Message(part.migration, Plan.from_json(part.plan))
    host.ledger.tell_failure(part.migration, ABORTED)
    close(the_app(), message.with_facts(NEVER_BEGUN))
    return True


@shared_task(name="sojourn.resume_batch", base=Call)
def resume_batch(batch: str) -> None:
    """Go on with a batch that was paused; of one that was aborted, begin again what did not arrive."""
    host = this_host()
    record = host.batches.record(batch)
    if record and record.state in {BatchState.ABORTED, BatchState.FINISHED}:
        _reopen(host, record)
    host.batches.turn(batch, BatchState.RUNNING, BatchState.PAUSED)
    host.queue.resume(batch)
    dispatch()


def _reopen(host: Host, record: Record) -> None:
    """Queue again what did not arrive, and still runs where it was."""
    ends = host.batches.ends(record.id)
    again = [part for part in host.batches.parts(record.id) if _stayed(ends.get(part.number))]
    if not again:
        return
    following = [replace(part.again(), tries=1, avoid=()) for part in again]
    host.batches.reopen(record.id, following)
    host.batches.turn(record.id, BatchState.RUNNING, BatchState.ABORTED, BatchState.FINISHED)
    _queue(host, record.id, following)


def _stayed(end: Json | None) -> bool:
    return end is not None and end["owner"] == end["source"]


def look_after(host: Host) -> None:
    """Go on with batches whose next step was lost with the process that should have done it."""
    for record in host.batches.latest(LATEST):
        if not record.state.final and host.batches.is_my_turn_to_look(record.id, LOOK_S):
            _look_after(host, record)


def _look_after(host: Host, record: Record) -> None:
    if record.state is BatchState.PLANNING:
        _give_up_planning(record)
    elif record.total == record.ended:
        finish(record.id)
    elif record.state is BatchState.ABORTING:
        _give_up(record.id)
    elif not host.queue.has_waiting(record.id):
        _put_again(host, record)


def _give_up_planning(record: Record) -> None:
    if time.time() - record.created > PLANNING_S:
        told = "A host did not tell of its processes in time; nothing was started."
        _refuse(record.id, HostUnreachable(told, "Is a worker busy or down?"))


def _put_again(host: Host, record: Record) -> None:
    """Queue what has no end and is not in the queue: dispatch finds out whether it has ended, or must begin."""
    ends = host.batches.ends(record.id)
    for part in host.batches.parts(record.id):
        if part.number not in ends and host.queue.standing(part.migration) is None:
            if host.ledger.account(part.migration) is None:
                host.ledger.open(part.migration, Plan.from_json(part.plan), part_of(record.id, part))
            host.queue.put([entry_of(record.id, part)])
    dispatch()
