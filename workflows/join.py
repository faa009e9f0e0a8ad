"""Joins the migrations of a batch by counting their ends in Redis, and tries again what failed.

A Celery chord would do the joining too, but it puts all its messages into the broker at once: then
the hosts' lanes would be the queue, without limits, turns or priorities. Here a migration has
messages only once it has its places.
"""

from __future__ import annotations

import time
from dataclasses import replace

from celery import states

from sojourn.cluster.batches import BatchState, Part, Record
from sojourn.cluster.placement import Item, place_elsewhere
from sojourn.cluster.queue import Entry, back_off_s
from sojourn.cluster.registry import IS_CORDONED
from sojourn.migration.context import Host, this_host
from sojourn.model import Json, Plan, Role, State
from sojourn.preflight.finding import CHECKS
from workflows.app import the_app
from workflows.outcome import store

#: The ends after which another try, at another time or on another host, may succeed.
WORTH_ANOTHER_TRY = {State.ROLLED_BACK, State.UNREACHABLE}


def part_of(batch: str, part: Part) -> Json:
    """Return the reference by which the ledger knows a migration as part of a batch."""
    return {"batch": batch, "line": part.number}


def entry_of(batch: str, part: Part, delay_s: float = 0) -> Entry:
    """Return the part as an entry of the queue."""
    return Entry(part.migration, batch, part.plan, part.priority, delay_s)


def concluded(reference: Json | None, result: Json) -> None:
    """Report the end of a migration to its batch, if it has one: it is tried again or counted.

    ``reference`` is what ``part_of`` returned. Safe to repeat. Raises StoreUnreachable; then the
    batch's next look reports it.
    """
    host = this_host()
    part = host.batches.part(reference["batch"], reference["line"]) if reference else None
    # The part may have another migration by now: the end of an earlier one has been entered.
    if reference is None or part is None or part.migration != result["id"]:
        return
    record = host.batches.record(reference["batch"])
    if record is None or not _tried_again(host, record, part, result):
        count(reference["batch"], part, result)


def count(batch: str, part: Part, result: Json) -> None:
    """Record the end of a part; with the last one the batch has ended too."""
    names = ("id", "state", "pid", "source", "destination", "owner", "failure")
    end = {name: result[name] for name in names}
    end |= {"command": part.command, "tries": part.tries, "avoided": list(part.avoid)}
    if this_host().batches.end(batch, part.number, end) == 0:
        finish(batch)


def finish(batch: str) -> None:
    """Record that a batch has ended, and answer its caller. Safe to repeat, and when it is late."""
    batches = this_host().batches
    batches.rest(batch)
    record = batches.record(batch)
    if record and record.state.final:
        result = record.to_json(batches.ends(batch))
        store(the_app(), batch, result, states.SUCCESS, time.time() - record.created)


def _tried_again(host: Host, record: Record, part: Part, result: Json) -> bool:
    """Queue the next try of a part if it is worth one; False if what it came to is its end."""
    if record.state not in {BatchState.RUNNING, BatchState.PAUSED} or not part.may_be_tried_again:
        return False
    if State(result["state"]) not in WORTH_ANOTHER_TRY and not _refused_there(part, result):
        return False
    if host.batches.has_ended(record.id, part.number):
        return False  # it was in doubt, and an operator has ended it meanwhile
    following = _placed_again(host, part) if part.auto else part.again()
    if _is_refused_for_good(result) and following.plan == part.plan:
        return False  # the same host would only refuse it once more
    # The part first: if this process dies now, the batch's next look queues it.
    host.batches.keep(record.id, following)
    plan = Plan.from_json(following.plan)
    host.ledger.open(following.migration, plan, part_of(record.id, following))
    host.queue.put([entry_of(record.id, following, back_off_s(part.tries))])
    return True


def _refused_there(part: Part, result: Json) -> bool:
    """Whether the destination refused, so that another one may accept."""
    code = (result["failure"] or {}).get("code")
    on_destination = code == IS_CORDONED or (code in CHECKS and CHECKS[code].on is Role.DESTINATION)
    return part.auto and result["state"] == State.REFUSED and on_destination


def _is_refused_for_good(result: Json) -> bool:
    """Whether what preflight refused will not change by itself."""
    code = (result["failure"] or {}).get("code")
    return result["state"] == State.REFUSED and code in CHECKS and not CHECKS[code].passes


def _placed_again(host: Host, part: Part) -> Part:
    """Return the part for another destination if one can take it, else for the same."""
    failed = tuple(dict.fromkeys((*part.avoid, part.plan["destination"])))
    item = Item("it", part.plan["source"], part.bytes)
    known = host.registry.hosts(), host.batches.promised()
    placement = place_elsewhere(item, failed, *known)
    return replace(part.again(placement.destination), avoid=failed)
