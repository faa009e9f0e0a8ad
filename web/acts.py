"""What the buttons do: the same as the commands of the same names, and a sentence that says what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import uuid4

from sojourn.batch import BatchState, Record
from sojourn.cluster import Cluster
from sojourn.errors import HostUnreachable, SojournError, UsageError
from sojourn.model import Role
from web.pages import account_of
from workflows import batch, intervene

#: How long a drain may take until it is known what will be moved.
PLANNED_S = 20.0

#: How long an operator's word on a batch may take to be acted on.
ACT_S = 60.0


@dataclass(frozen=True)
class Asked:
    """One press of a button: on what, by whom, and what the dialogue was filled in with."""

    subject: str
    who: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """What came of it, and where that can be seen, if elsewhere: ``kind`` of page and its id."""

    sentence: str
    kind: str = ""
    id: str = ""


Act = Callable[[Cluster, Asked], Done]


def abort(cluster: Cluster, asked: Asked) -> Done:
    """Give a migration up. Raises UsageError if it has ended."""
    account = intervene.unended(account_of(cluster, asked.subject))
    return Done(intervene.abort(cluster, account, asked.who).sentence)


def resolve(cluster: Cluster, asked: Asked) -> Done:
    """Act on the word that a host is dead. Raises UsageError unless its name was typed."""
    account = intervene.unended(account_of(cluster, asked.subject))
    gone = _role(asked.fields.get("gone", ""))
    _check_typed(asked, account.plan.host_of(gone))
    return Done(intervene.resolve(cluster, account, gone, asked.who).sentence)


def cordon(cluster: Cluster, asked: Asked) -> Done:
    """Let nothing new go to a host."""
    cluster.registry.cordon(asked.subject)
    return Done(f"{asked.subject} is cordoned: nothing new goes there.")


def uncordon(cluster: Cluster, asked: Asked) -> Done:
    """Let migrations go to a host again."""
    cluster.registry.uncordon(asked.subject)
    return Done(f"{asked.subject} takes migrations again.")


def drain(cluster: Cluster, asked: Asked) -> Done:
    """Move everything away from a host. Raises UsageError unless its name was typed, HostUnreachable."""
    cluster.registry.check_host(asked.subject)
    _check_typed(asked, asked.subject)
    name = str(uuid4())
    batch.drain.apply_async(kwargs={"host": asked.subject, "by": asked.who}, task_id=name)
    record = _planned(cluster, name)
    stay = f" {len(record.stays)} stay." if record.stays else ""
    return Done(f"{asked.subject} is cordoned; {record.total} migrations are queued.{stay}", "batch", name)


def pause(cluster: Cluster, asked: Asked) -> Done:
    """Begin nothing more of a batch for now."""
    _check_state(cluster, asked, "paused", BatchState.RUNNING)
    cluster.batches.turn(asked.subject, BatchState.PAUSED, BatchState.RUNNING)
    cluster.queue.pause(asked.subject)
    return Done("The batch is paused: what is under way goes on, nothing more begins.")


def resume(cluster: Cluster, asked: Asked) -> Done:
    """Go on with a batch that was paused, or begin again what did not arrive."""
    _check_state(cluster, asked, "resumed", BatchState.PAUSED, BatchState.ABORTED, BatchState.FINISHED)
    batch.resume_batch.delay(asked.subject).get(timeout=ACT_S)
    return Done("The batch goes on.")


def give_up(cluster: Cluster, asked: Asked) -> Done:
    """Begin nothing more of a batch; what is under way goes on to its end."""
    _check_state(cluster, asked, "aborted", BatchState.RUNNING, BatchState.PAUSED, BatchState.ABORTING)
    batch.abort_batch.apply_async((asked.subject,), {"roll_back": False}).get(timeout=ACT_S)
    return Done("The batch is given up: what is under way goes on to its end.")


#: By the kind of page, and the word in the address.
ACTS: dict[tuple[str, str], Act] = {
    ("migration", "abort"): abort,
    ("migration", "resolve"): resolve,
    ("host", "cordon"): cordon,
    ("host", "uncordon"): uncordon,
    ("host", "drain"): drain,
    ("batch", "pause"): pause,
    ("batch", "resume"): resume,
    ("batch", "abort"): give_up,
}


def _role(word: str) -> Role:
    if word not in set(Role):
        raise UsageError("Say which host is dead: the source or the destination.")
    return Role(word)


def _check_state(cluster: Cluster, asked: Asked, what: str, *states: BatchState) -> None:
    """Raise UsageError unless the batch is in one of these states."""
    record = cluster.batches.record(asked.subject)
    if record is None or record.state not in states:
        raise UsageError(f"The batch is {record.state if record else 'forgotten'}; it can not be {what}.")


def _check_typed(asked: Asked, host: str) -> None:
    """Raise UsageError unless the operator has typed the name of the host; a wrong click must do nothing."""
    if asked.fields.get("typed", "").strip() != host:
        raise UsageError(f"Nothing was done: to agree, type the name of the host, {host}.")


def _planned(cluster: Cluster, name: str) -> Record:
    """Wait until it is known what a drain will move. Raises what was said against it."""
    until = time.monotonic() + PLANNED_S
    while time.monotonic() < until:
        record = cluster.batches.record(name)
        if record and record.state is BatchState.REFUSED:
            failure = record.failure or {}
            raise SojournError(failure.get("message", "It was refused."), failure.get("hint", ""))
        if record and record.state is not BatchState.PLANNING:
            return record
        time.sleep(0.1)
    raise HostUnreachable("The host has not told of its processes yet.", f"It may still do: see batch {name}.")
