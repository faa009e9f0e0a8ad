"""Many migrations in one go: plans and drains, which other programs call.

A batch is checked as a whole before its first migration begins: its hosts report their trees, side
by side, a chord joins the reports, every line is checked, and places are found. Then the batch is
recorded and queued; ``workflows/dispatch.py`` begins its migrations, ``workflows/join.py`` counts
their ends. What an operator asks of a batch later changes its record first: if the process that
acts on it dies, nothing is lost, and ``look_after`` goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from uuid import NAMESPACE_OID, uuid4, uuid5

from celery import chord, shared_task, states
from celery.exceptions import TimeoutError as NoAnswer

from sojourn.cluster.batches import LATEST, BatchState, Part, Record, who
from sojourn.cluster.placement import Item, place
from sojourn.cluster.planfile import AUTO, from_json
from sojourn.cluster.registry import Registry
from sojourn.errors import Aborted, HostUnreachable, SojournError
from sojourn.migration.context import Host, this_host
from sojourn.model import Failure, Json, Plan, State, Untyped
from sojourn.state.message import Message
from sojourn.system.caller import Caller
from workflows.app import the_app
from workflows.audit import caller_of
from workflows.call import Call, CallOfOne
from workflows.canvas import queue_of
from workflows.conclude import close
from workflows.dispatch import dispatch
from workflows.join import count, entry_of, finish, part_of
from workflows.outcome import store
from workflows.planning import NOWHERE, Found, Placed, find
from workflows.recover import NEVER_BEGUN, abort, forestall
from workflows.survey import survey

PLAN, DRAIN = "plan", "drain"

#: How long the hosts may take to report their trees, before a batch is refused because one did not.
PLANNING_S = 60.0

#: How often a batch that has not ended is looked at, though nothing of it waits: the process that
#: should have gone on with it may have died.
LOOK_S = 15.0

#: How many parts are entered into Redis by one command.
CHUNK = 500

ABORTED = Failure(Aborted.code, "Its batch was aborted before it began.")
TIMED_OUT = Failure(Aborted.code, "The time of its batch was over before it began.")
ABORTED_TOO = Failure(Aborted.code, "Its batch was aborted.")


def plan_batch(batch: str, kind: str, asked: list[Json], by: str, times: Json) -> None:
    """Record the batch and ask the hosts for their trees. Raises UsageError, HostUnreachable."""
    host = this_host()
    # A second delivery of the message finds the record of the first.
    if host.batches.record(batch) is None:
        request = {"lines": asked} if kind == DRAIN else {"lines": len(asked)}
        host.batches.plan(batch, kind, request, by, times)
    try:
        _survey(batch, asked, host.registry, open_batch.s(batch, kind, asked))
    except SojournError as error:
        _refuse(batch, error)
        raise


def would_begin(asked: list[Json], kind: str, registry: Registry) -> Json:
    """Return what ``show_batch`` does on a worker; nothing is touched.

    Raises UsageError for malformed lines, HostUnreachable if a host does not report its trees.
    """
    the_app()  # an operator's program has none yet
    try:
        then = show_batch.s(asked, kind)
        found: Json = _survey(str(uuid4()), asked, registry, then).get(timeout=PLANNING_S)
    except NoAnswer:
        raise HostUnreachable(
            f"The hosts did not answer within {PLANNING_S} s.", "Is a worker busy or down?"
        ) from None
    return found


def _survey(batch: str, asked: list[Json], registry: Registry, then: Untyped) -> Untyped:
    """Collect the trees of the hosts of all lines, then call ``then`` with them.

    Each host reports them once for a batch: a request that is put back into the shared queue, where
    another worker takes it, does not drain again. Raises UsageError.
    """
    lines = from_json(asked)
    needed = {line.source for line in lines if line.pid is None or line.destination is None}
    for name in sorted(needed):
        registry.check_host(name)
    # The others are asked for the commands of the processes only, which people know them by.
    names = sorted(needed | ({line.source for line in lines} & registry.alive().keys()))
    # No survey is made after its batch was refused for want of it (``_give_up_planning``).
    surveys = [
        survey.s().set(
            queue=queue_of(name, frozen=False),
            expires=PLANNING_S,
            task_id=str(uuid5(NAMESPACE_OID, f"survey of {name} for {batch}")),
        )
        for name in names
    ]
    return chord(surveys)(then) if surveys else then.apply_async(([],))


@shared_task(name="sojourn.open_batch")
def open_batch(reports: list[Json] | Json, batch: str, kind: str, asked: list[Json]) -> None:
    """Check and place what the lines mean, by the hosts' reports; record it, and begin."""
    host = this_host()
    record = host.batches.record(batch)
    if record is None or record.state is not BatchState.PLANNING:
        return
    try:
        found = find(from_json(asked), reports, host, is_drain=kind == DRAIN)
        parts = [
            _part(batch, number, placed, host) for number, placed in enumerate(found.placed, 1)
        ]
    except SojournError as error:
        _refuse(batch, error)
        return
    waiting = _waiting(record, found, host)
    stays = [stay for stay in found.stays if not (waiting and stay["code"] == NOWHERE)]
    host.batches.open(batch, [*parts, *waiting], stays)
    _begin(host, batch, parts, is_waiting=bool(waiting))


def _begin(host: Host, batch: str, parts: Sequence[Part], *, is_waiting: bool) -> None:
    """Queue the parts of a batch that was opened, and begin what there is room for."""
    # Recorded before: if this process dies in between, ``look_after`` queues what is missing.
    _queue(host, batch, parts)
    now = host.batches.record(batch)
    if now and now.state is BatchState.ABORTING:
        _give_up(batch)  # an abort that came meanwhile has found nothing to withdraw
    elif parts:
        dispatch()
    elif not is_waiting:
        finish(batch)


@shared_task(name="sojourn.show_batch", base=Call)
def show_batch(reports: list[Json] | Json, asked: list[Json], kind: str) -> Json:
    """Return the ``parts`` that would begin, with why each has its place, and what ``stays``.

    Raises UsageError for malformed lines.
    """
    host = this_host()
    found = find(from_json(asked), reports, host, is_drain=kind == DRAIN)
    parts = [
        {**asdict(_part("", number, placed, host)), "why": placed.why}
        for number, placed in enumerate(found.placed, 1)
    ]
    return {"parts": parts, "stays": found.stays}


def _part(batch: str, number: int, placed: Placed, host: Host) -> Part:
    tree, line = placed.tree, placed.tree.line
    plan = {**host.settings.limits, **line.plan(tree.pid, placed.destination or AUTO)}
    # The same id in every attempt: a message that comes twice opens nothing twice.
    migration = str(uuid5(NAMESPACE_OID, f"{batch}:{number}"))
    how = (line.priority, line.destination is None, tree.bytes)
    return Part(number, plan, migration, *how, command=tree.name)


def _waiting(record: Record, found: Found, host: Host) -> list[Part]:
    """Return as parts what no host can take now, if the batch waits for one that can."""
    if record.waits is None or not found.waiting:
        return []
    source = found.waiting[0].tree.line.source
    others = [name for name in host.registry.hosts() if name != source]
    # A part has a destination; until it has a place, this one counts for nothing.
    somewhere = [
        replace(placed, destination=name) for placed in found.waiting for name in others[:1]
    ]
    numbered = enumerate(somewhere, len(found.placed) + 1)
    return [replace(_part(record.id, *each, host), placed=False) for each in numbered]


def _queue(host: Host, batch: str, parts: Sequence[Part]) -> None:
    """Enter the parts into the ledger and the queue. Safe to repeat."""
    for start in range(0, len(parts), CHUNK):
        chunk = parts[start : start + CHUNK]
        host.ledger.open_all(
            (part.migration, Plan.from_json(part.plan), part_of(batch, part)) for part in chunk
        )
        host.queue.put(entry_of(batch, part) for part in chunk)


def _refuse(batch: str, error: SojournError) -> None:
    this_host().batches.refuse(
        batch, {"code": error.code, "message": error.message, "hint": error.hint}
    )
    store(the_app(), batch, error, states.FAILURE, 0)


@shared_task(name="sojourn.abort_batch", bind=True, base=CallOfOne)
def abort_batch(self: Untyped, batch: str, *, roll_back: bool, timed_out: bool = False) -> None:
    """Begin nothing more of a batch; what is under way goes on to its end, or is aborted too.

    ``timed_out``: since its time is over, and not by somebody's decision.
    """
    stop(batch, roll_back=roll_back, timed_out=timed_out, by=caller_of(self.request))


def stop(batch: str, *, roll_back: bool, by: Caller, timed_out: bool = False) -> None:
    """Record that somebody has aborted a batch, and do it."""
    how = "what is under way is aborted too" if roll_back else "what is under way goes on"
    this_host().audit.record(by, "abort batch", batch, how)
    this_host().batches.abort(batch, roll_back=roll_back, timed_out=timed_out)
    _give_up(batch)


def _give_up(batch: str) -> None:
    """Withdraw what waits of a batch that is being aborted; abort the rest if that was asked for.

    A late call must not touch what was resumed meanwhile. Only a batch at rest is resumed, and its
    parts get new migrations then: those that are read while it is not at rest yet are the ones to
    give up.
    """
    host = this_host()
    parts, ends = host.batches.parts(batch), host.batches.ends(batch)
    # The state is read last: if it is ``aborting`` still, the parts are those of this abort.
    record = host.batches.record(batch)
    if record is None or record.state is not BatchState.ABORTING:
        return
    # Each part that is taken out makes room, and the next one must not begin there.
    host.queue.pause(batch)
    left = [part for part in parts if part.number not in ends]
    why = TIMED_OUT if record.timed_out else ABORTED
    under_way = [part for part in left if part.placed and not _withdrawn(host, part, why)]
    for part in left:
        if not part.placed:
            count(batch, part, _never_placed(part, State.ABORTED, why))
    # Nothing of the batch waits any more; a pause must not outlive it.
    host.queue.resume(batch)
    for part in under_way if record.roll_back else ():
        host.ledger.record_failure(part.migration, ABORTED_TOO)
        abort(Message(part.migration, Plan.from_json(part.plan)))
    if not left:
        finish(batch)


def _never_placed(part: Part, state: State, why: Failure) -> Json:
    """Return what a part came to that waited for a place until it waited no longer."""
    about = {name: part.plan[name] for name in ("pid", "source", "destination")}
    end = {"state": state, "owner": part.plan["source"], "failure": asdict(why)}
    return {"id": part.migration, **about, **end}


def _withdrawn(host: Host, part: Part, why: Failure) -> bool:
    """Take a part out of the queue and record its end; False if it does not wait there."""
    if not host.queue.remove(part.migration):
        return False
    message = Message(part.migration, Plan.from_json(part.plan))
    host.ledger.record_failure(part.migration, why)
    close(the_app(), message.with_facts(NEVER_BEGUN))
    forestall(message)
    return True


@shared_task(name="sojourn.resume_batch", bind=True, base=CallOfOne)
def resume_batch(self: Untyped, batch: str) -> None:
    """Go on with a paused batch; of one that has ended, begin again what did not arrive."""
    host = this_host()
    host.audit.record(caller_of(self.request), "resume batch", batch)
    record = host.batches.record(batch)
    if record and record.state in {BatchState.ABORTED, BatchState.FINISHED}:
        _reopen(host, record)
    host.batches.turn(batch, BatchState.RUNNING, BatchState.PAUSED)
    host.queue.resume(batch)
    dispatch()


def _reopen(host: Host, record: Record) -> None:
    """Queue again what did not arrive, and still runs where it was."""
    ends = host.batches.ends(record.id)
    stayed = [part for part in host.batches.parts(record.id) if _stayed(ends.get(part.number))]
    if not stayed:
        return
    following = [replace(part.again(), tries=1, avoid=()) for part in stayed]
    # The parts first: until the state is turned the batch is at rest and nobody looks after it.
    host.batches.let_take_its_time(record.id)
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
    elif record.until is not None and time.time() > record.until:
        host.batches.abort(record.id, roll_back=False, timed_out=True)
        _give_up(record.id)
    elif not _place_waiting(host, record) and not host.queue.has_waiting(record.id):
        _put_again(host, record)


def _place_waiting(host: Host, record: Record) -> bool:
    """Queue what waits for a place and has one now; whether that is anything.

    What has waited long enough stays.
    """
    ends = host.batches.ends(record.id)
    parts = [part for part in host.batches.parts(record.id) if part.number not in ends]
    waiting = [part for part in parts if not part.placed]
    if not waiting:
        return False  # what other batches were promised is much to read
    found = place(map(_item, waiting), host.registry.hosts(), host.batches.promised())
    placed = []
    for part, placement in zip(waiting, found, strict=True):
        if placement.destination:
            placed.append(part.at(placement.destination))
        elif time.time() > (record.waits or 0):
            why = Failure(NOWHERE, placement.why, "`sojourn hosts` shows the capacity of each.")
            count(record.id, part, _never_placed(part, State.REFUSED, why))
    if placed:
        host.batches.keep(record.id, *placed)
        _queue(host, record.id, placed)
        dispatch()
    return bool(placed)


def _item(part: Part) -> Item:
    return Item(who(part.plan["pid"], part.command), part.plan["source"], part.bytes)


def _give_up_planning(record: Record) -> None:
    if time.time() - record.created > PLANNING_S:
        sentence = "A host did not report its processes in time; nothing was started."
        _refuse(record.id, HostUnreachable(sentence, "Is a worker busy or down?"))


def _put_again(host: Host, record: Record) -> None:
    """Queue what has no end and is not in the queue; ``dispatch`` sorts out what has ended."""
    ends = host.batches.ends(record.id)
    for part in host.batches.parts(record.id):
        waits = part.number not in ends and part.placed
        if waits and host.queue.standing(part.migration) is None:
            if host.ledger.account(part.migration) is None:
                host.ledger.open(
                    part.migration, Plan.from_json(part.plan), part_of(record.id, part)
                )
            host.queue.put([entry_of(record.id, part)])
    dispatch()
