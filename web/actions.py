"""What the buttons do: the same as the commands of the same names. The effect is a sentence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import uuid4

from sojourn import client
from sojourn.cluster.batches import BatchState, Record
from sojourn.cluster.client import Cluster
from sojourn.errors import HostUnreachable, SojournError, UsageError
from sojourn.model import Role
from sojourn.system.caller import Caller, acting_for
from web.options import options_of, plan_of, skipped, times_of
from web.pages import account_of
from workflows import batch, intervene, survey
from workflows.audit import note_of, note_of_host

#: How long a drain may take to find out what will be moved.
PLANNED_S = 20.0

#: How long a worker may take to resume or abort a batch.
ACT_S = 60.0


@dataclass(frozen=True)
class Request:
    """One press of a button: on what, by whom, and with which fields of the dialogue."""

    subject: str
    operator: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Effect:
    """What an action did, and ``kind`` and ``id`` of another page that shows more, if any."""

    sentence: str
    kind: str = ""
    id: str = ""


Action = Callable[[Cluster, Request], Effect]


def abort(cluster: Cluster, request: Request) -> Effect:
    """Abort a migration. Raises UsageError if it has ended."""
    account = intervene.unended(account_of(cluster, request.subject))
    return Effect(intervene.abort(cluster, account, request.operator).sentence)


def resolve(cluster: Cluster, request: Request) -> Effect:
    """Act on the decision that a host is dead, by ``force`` though it answered a while ago.

    Raises UsageError unless its name was typed.
    """
    account = intervene.unended(account_of(cluster, request.subject))
    gone, force = _role(request.fields.get("gone", "")), bool(request.fields.get("force"))
    _check_typed(request, account.plan.host_of(gone))
    answer = intervene.resolve(cluster, account, gone, request.operator, force=force)
    return Effect(answer.sentence)


def cordon(cluster: Cluster, request: Request) -> Effect:
    """Let no new migration go to a host."""
    cluster.registry.cordon(request.subject)
    note_of_host("cordon", request.subject)
    return Effect(f"{request.subject} is cordoned: nothing new goes there.")


def uncordon(cluster: Cluster, request: Request) -> Effect:
    """Let migrations go to a host again."""
    cluster.registry.uncordon(request.subject)
    note_of_host("uncordon", request.subject)
    return Effect(f"{request.subject} takes migrations again.")


def migrate_one(cluster: Cluster, request: Request) -> Effect:
    """Migrate one process of a host.

    Raises UsageError, HostUnreachable, and Refused if the two hosts cannot do it.
    """
    plan = plan_of(request.subject, request.fields)
    # The registry knows what hosts announced last; whether their workers answer is asked of them.
    cluster.registry.check(plan)
    survey.check_workers(plan)
    # The id is chosen here, and its page is there before a worker has the message.
    name = str(uuid4())
    cluster.ledger.open(name, plan)
    client.migrate.apply_async(kwargs=plan.to_json(), task_id=name)
    return Effect(f"Requested: {plan.describe()}.", "migration", name)


def drain(cluster: Cluster, request: Request) -> Effect:
    """Move away all that can be moved from a host.

    Raises UsageError unless its name was typed, HostUnreachable.
    """
    cluster.registry.check_host(request.subject)
    _check_typed(request, request.subject)
    # The id is chosen here, so that the page of the batch is known before a worker has planned it.
    name, options = str(uuid4()), options_of(request.fields)
    skip, times = skipped(request.fields), times_of(request.fields)
    how = {"by": request.operator, "skip": skip, **times, **options}
    client.drain.apply_async(kwargs={"host": request.subject, **how}, task_id=name)
    record = _planned(cluster, name)
    stay = f" {len(record.stays)} stay." if record.stays else ""
    return Effect(
        f"{request.subject} is cordoned; {record.total} migrations are queued.{stay}", "batch", name
    )


def pause(cluster: Cluster, request: Request) -> Effect:
    """Begin no more migrations of a batch for now."""
    _check_state(cluster, request, "paused", BatchState.RUNNING)
    cluster.batches.turn(request.subject, BatchState.PAUSED, BatchState.RUNNING)
    cluster.queue.pause(request.subject)
    note_of("pause batch", request.subject)
    return Effect("The batch is paused: what is under way goes on, nothing more begins.")


def resume(cluster: Cluster, request: Request) -> Effect:
    """Go on with a batch that was paused, or try again what did not arrive."""
    _check_state(
        cluster, request, "resumed", BatchState.PAUSED, BatchState.ABORTED, BatchState.FINISHED
    )
    batch.resume_batch.delay(request.subject).get(timeout=ACT_S)
    return Effect("The batch goes on.")


def abort_batch(cluster: Cluster, request: Request) -> Effect:
    """Begin no more migrations of a batch; those under way go on to their end."""
    _check_state(
        cluster, request, "aborted", BatchState.RUNNING, BatchState.PAUSED, BatchState.ABORTING
    )
    batch.abort_batch.apply_async((request.subject,), {"roll_back": False}).get(timeout=ACT_S)
    return Effect("The batch is aborted: what is under way goes on to its end.")


#: By the kind of page, and the last part of the path.
ACTIONS: dict[tuple[str, str], Action] = {
    ("migration", "abort"): abort,
    ("migration", "resolve"): resolve,
    ("host", "cordon"): cordon,
    ("host", "uncordon"): uncordon,
    ("host", "drain"): drain,
    ("host", "migrate"): migrate_one,
    ("batch", "pause"): pause,
    ("batch", "resume"): resume,
    ("batch", "abort"): abort_batch,
}


def act(action: Action, cluster: Cluster, request: Request) -> Effect:
    """Do an action in the name of the operator, not of the user of this web server."""
    with acting_for(Caller.named(request.operator)):
        return action(cluster, request)


def _role(name: str) -> Role:
    if name not in set(Role):
        raise UsageError("Name the dead host: the source or the destination.")
    return Role(name)


def _check_state(cluster: Cluster, request: Request, participle: str, *states: BatchState) -> None:
    """Raise UsageError unless the batch is in one of these states."""
    record = cluster.batches.record(request.subject)
    if record is None or record.state not in states:
        raise UsageError(
            f"The batch is {record.state if record else 'forgotten'}; it cannot be {participle}."
        )


def _check_typed(request: Request, host: str) -> None:
    """Raise UsageError unless the operator has typed the host's name, as no wrong click can."""
    if request.fields.get("typed", "").strip() != host:
        raise UsageError(f"Nothing was done: to confirm, type the name of the host, {host}.")


def _planned(cluster: Cluster, name: str) -> Record:
    """Wait until a drain is planned. Raises the reason why it was refused."""
    until = time.monotonic() + PLANNED_S
    while time.monotonic() < until:
        record = cluster.batches.record(name)
        if record and record.state is BatchState.REFUSED:
            failure = record.failure or {}
            raise SojournError(failure.get("message", "It was refused."), failure.get("hint", ""))
        if record and record.state is not BatchState.PLANNING:
            return record
        # Actions run in threads of their own, so no page waits meanwhile.
        time.sleep(0.1)
    raise HostUnreachable(
        "The host has not listed its processes yet.", f"It may still do so: see batch {name}."
    )
