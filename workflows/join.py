"""Joins the migrations of a batch by counting their ends in Redis, and tries again what failed.

A Celery chord would do the joining too, but it puts all its messages into the broker at once: then the hosts' lanes
would be the queue, without limits, turns or priorities. Here a migration has messages only once it has its places.
"""

from __future__ import annotations

from dataclasses import replace

from celery import states

from sojourn.batch import BatchState, Part, Record
from sojourn.host import Host, this_host
from sojourn.model import Json, Plan, Role, State
from sojourn.placement import Item, place
from sojourn.preflight.finding import CHECKS
from sojourn.queue import Entry, back_off_s
from sojourn.registry import IS_CORDONED
from workflows.app import the_app

#: What may go well at another time, or on another host.
WORTH_ANOTHER_TRY = {State.ROLLED_BACK, State.UNREACHABLE}


def part_of(record: str, part: Part) -> Json:
    """Return what the ledger keeps of a migration that is part of a batch."""
    return {"batch": record, "line": part.number}


def entry_of(batch: str, part: Part, delay_s: float = 0) -> Entry:
    """Return the part as the queue takes it."""
    return Entry(part.migration, batch, part.plan, part.priority, delay_s)


def concluded(told: Json | None, result: Json) -> None:
    """Enter the end of a migration in its batch, if it is part of one: it is tried again, or counted.

    May be told any number of times. Raises StoreUnreachable; then the batch's next look tells it again.
    """
    host = this_host()
    part = host.batches.part(told["batch"], told["line"]) if told else None
    if told is None or part is None or part.migration != result["id"]:
        return
    record = host.batches.record(told["batch"])
    if record is None or not _tried_again(host, record, part, result):
        count(told["batch"], part, result)


def count(batch: str, part: Part, result: Json) -> None:
    """Enter the end of a part; with the last one the batch has ended too."""
    host = this_host()
    end = {name: result[name] for name in ("id", "state", "pid", "source", "destination", "owner", "failure")}
    left = host.batches.end(batch, part.number, end | {"tries": part.tries, "avoided": list(part.avoid)})
    if left == 0:
        finish(batch)


def finish(batch: str) -> None:
    """Say that a batch has ended, and answer whoever waits for it. Again is harmless, and so is too late."""
    batches = this_host().batches
    batches.rest(batch)
    record = batches.record(batch)
    if record and record.state.final:
        the_app().backend.store_result(batch, record.to_json(batches.ends(batch)), states.SUCCESS)


def _tried_again(host: Host, record: Record, part: Part, result: Json) -> bool:
    """Queue the next try of a part if it is worth one; False if what it came to is its end."""
    if record.state not in {BatchState.RUNNING, BatchState.PAUSED} or not part.may_be_tried_again:
        return False
    if State(result["state"]) not in WORTH_ANOTHER_TRY and not _refused_there(part, result):
        return False
    if host.batches.has_ended(record.id, part.number):
        return False  # it was in doubt, and an operator has looked at it meanwhile
    following = _placed_anew(host, part) if part.auto else part.again()
    # The part first: if this process dies now, the batch's next look queues it.
    host.batches.keep(record.id, following)
    host.ledger.open(following.migration, Plan.from_json(following.plan), part_of(record.id, following))
    host.queue.put([entry_of(record.id, following, back_off_s(part.tries))])
    return True


def _refused_there(part: Part, result: Json) -> bool:
    """Whether the destination said no, so that another one may say yes."""
    code = (result["failure"] or {}).get("code")
    on_destination = code == IS_CORDONED or (code in CHECKS and CHECKS[code].on is Role.DESTINATION)
    return part.auto and result["state"] == State.REFUSED and on_destination


def _placed_anew(host: Host, part: Part) -> Part:
    """Return the part for another destination if one can take it, else for the same."""
    failed = tuple(dict.fromkeys((*part.avoid, part.plan["destination"])))
    hosts = {name: info for name, info in host.registry.hosts().items() if name not in failed}
    (placement,) = place([Item("it", part.plan["source"], part.bytes)], hosts, host.batches.promised())
    return replace(part.again(placement.destination), avoid=failed)
