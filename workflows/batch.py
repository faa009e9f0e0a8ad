"""Many migrations at one go: plans and drains. ``migrate_many`` and ``drain`` are what other programs call.

A batch is looked at as a whole before the first migration of it begins: its hosts tell of their trees, side by side, a
chord joins what they told, every line is checked, and places are found. Then it is entered, queued, and handed out by
``workflows/dispatch.py``; ``workflows/join.py`` counts the ends. What is asked of a batch later, by an operator, is a
change of its record first: who dies in the middle of acting on it has lost nothing, ``look_after`` goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from celery import chord, shared_task, states
from celery.exceptions import Ignore

from sojourn.batch import LATEST, BatchState, Part, Record
from sojourn.errors import Aborted, HostUnreachable, SojournError
from sojourn.host import Host, this_host
from sojourn.images import size_for
from sojourn.model import Failure, Json, Message, Plan
from sojourn.placement import Item, Placement, place
from sojourn.planfile import AUTO, Line, bad_lines, duplicates, from_json
from workflows.app import the_app
from workflows.call import Call
from workflows.canvas import SHARED_QUEUE, lane
from workflows.conclude import close
from workflows.dispatch import dispatch
from workflows.join import entry_of, finish, part_of
from workflows.recover import NEVER_BEGUN, abort
from workflows.survey import SeenTree, read_trees, survey

PLAN, DRAIN = "plan", "drain"

#: How long the hosts may take to tell of their trees, before a batch is refused because one of them did not.
PLANNING_S = 60.0

#: A batch of which nothing waits, and which has not ended, is looked at so often: who should have told may have died.
LOOK_S = 15.0

CHUNK = 500

ABORTED = Failure(Aborted.code, "Its batch was aborted before it began.")
ABORTED_TOO = Failure(Aborted.code, "Its batch was aborted.")


@dataclass(frozen=True)
class Wanted:
    """A tree that a line means: of which line, how large it is, and what is asked for."""

    line: Line
    pid: int
    name: str
    bytes: int


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
    _plan(self.request.id, DRAIN, [{"all": True, "source": host, **options}], by)
    raise Ignore


def _plan(batch: str, kind: str, asked: list[Json], by: str) -> None:
    """Enter the batch and ask the hosts that must tell of their trees. Raises UsageError, HostUnreachable."""
    host = this_host()
    if host.batches.record(batch) is None:
        host.batches.plan(batch, kind, {"lines": asked} if kind == DRAIN else {"lines": len(asked)}, by)
    try:
        lines = from_json(asked)
        asked_of = sorted({line.source for line in lines if line.pid is None or line.destination is None})
        for name in asked_of:
            host.registry.check_host(name)
    except SojournError as error:
        _refuse(batch, error)
        raise
    surveys = [survey.s().set(queue=lane(name, frozen=False), expires=PLANNING_S) for name in asked_of]
    then = open_batch.s(batch, kind, asked).set(queue=SHARED_QUEUE)
    chord(surveys)(then) if surveys else open_batch([], batch, kind, asked)


@shared_task(name="sojourn.open_batch")
def open_batch(told: list[Json] | Json, batch: str, kind: str, asked: list[Json]) -> None:
    """Check and place what the lines mean, now that the hosts have told of their trees; enter it, and begin."""
    host = this_host()
    record = host.batches.record(batch)
    if record is None or record.state is not BatchState.PLANNING:
        return
    surveys = told if isinstance(told, list) else [told]  # Celery makes a chain of a chord of one
    try:
        parts, stays = parts_of(from_json(asked), surveys, host, batch, is_drain=kind == DRAIN)
    except SojournError as error:
        _refuse(batch, error)
        return
    host.batches.open(batch, parts, stays)
    _queue(host, batch, parts)
    if parts:
        dispatch()
    else:
        finish(batch)


def parts_of(
    lines: Sequence[Line], told: Iterable[Json], host: Host, batch: str, *, is_drain: bool
) -> tuple[list[Part], list[Json]]:
    """Return the parts of a batch, and what stays where it is and why. Raises one UsageError for all bad lines."""
    trees = {each["host"]: read_trees(each) for each in told}
    wanted, wrong, stays = _wanted(lines, trees)
    placements = _placed(wanted, host)
    nowhere = [(one, where) for one, where in zip(wanted, placements, strict=True) if where and not where.destination]
    if is_drain:
        stays += [_stay(one.pid, one.name, one.line.source, where.why) for one, where in nowhere]
    else:
        wrong += [(one.line.number, f"line {one.line.number}: {where.why.removesuffix('.')}") for one, where in nowhere]
        wrong += duplicates_of(wanted)
    if wrong:
        raise bad_lines(wrong)
    placed = [(one, where) for one, where in zip(wanted, placements, strict=True) if not where or where.destination]
    return [_part(batch, number, *each, host) for number, each in enumerate(placed, 1)], stays


def _wanted(
    lines: Sequence[Line], trees: dict[str, list[SeenTree]]
) -> tuple[list[Wanted], list[tuple[int, str]], list[Json]]:
    """Return which trees the lines mean, which lines mean none or one that is refused, and what ``all`` passes over."""
    wanted, wrong, stays = [], [], []
    for line in lines:
        seen = trees.get(line.source, [])
        if line.pid is not None:
            wanted.append(_named(line, line.pid, seen))
            continue
        picked = line.selector.pick(seen)
        wanted += [Wanted(line, tree.pid, tree.command, size_for(tree.memory_bytes)) for tree in picked.chosen]
        wrong += [(line.number, f"line {line.number}: process {tree.pid} {tree.verdict}") for tree in picked.refused]
        if line.selector.all:
            stays += [_stay(tree.pid, tree.command, line.source, tree.verdict) for tree in seen if tree.verdict]
        elif not picked.chosen and not picked.refused:
            wrong.append((line.number, f"line {line.number}: {line.source} has no {line.selector.describe()}"))
    return wanted, wrong, stays


def _named(line: Line, pid: int, seen: Sequence[SeenTree]) -> Wanted:
    """Return what a line that names a PID means; of what size it is is known only if the host was asked."""
    tree = next((tree for tree in seen if any(member.pid == pid for member in tree.members)), None)
    return Wanted(line, pid, f"process {pid}", size_for(tree.memory_bytes) if tree else 0)


def duplicates_of(wanted: Iterable[Wanted]) -> list[tuple[int, str]]:
    """Return a sentence for each process that two lines mean, with its line."""
    told = duplicates((one.line.number, one.pid, one.line.source) for one in wanted)
    return [(int(text.split()[1].rstrip(":")), text) for text in told]


def _placed(wanted: Sequence[Wanted], host: Host) -> list[Placement | None]:
    """Return where each shall go, None where the line has said it."""
    auto = [one for one in wanted if one.line.destination is None]
    items = [Item(one.name, one.line.source, one.bytes) for one in auto]
    found = iter(place(items, host.registry.hosts(), host.batches.promised()))
    return [next(found) if one.line.destination is None else None for one in wanted]


def _part(batch: str, number: int, one: Wanted, where: Placement | None, host: Host) -> Part:
    destination = (where.destination if where else one.line.destination) or AUTO
    asked = {"max_freeze_s": host.settings.max_freeze_s, **one.line.plan(one.pid, destination)}
    migration = str(uuid5(NAMESPACE_OID, f"{batch}:{number}"))
    return Part(number, asked, migration, one.line.priority, where is not None, one.bytes)


def _stay(pid: int, command: str, source: str, why: str) -> Json:
    return {"pid": pid, "command": command, "source": source, "why": why}


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
    host = this_host()
    host.batches.abort(batch, roll_back=roll_back)
    host.queue.pause(batch)  # each that is taken out makes room, and the next one must not begin there
    ends = host.batches.ends(batch)
    left = [part for part in host.batches.parts(batch) if part.number not in ends]
    under_way = [part for part in left if not _withdrawn(host, part)]
    host.queue.resume(batch)  # nothing of it waits any more; a pause must not outlive it
    for part in under_way if roll_back else ():
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
        abort_batch(record.id, roll_back=record.roll_back)
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
