"""The end of a migration: what it came to, told to the ledger and to whoever waits for ``migrate.delay(...).get()``."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict, replace
from typing import Any

from celery import shared_task, states

from sojourn.errors import (
    Aborted,
    ChannelFailed,
    CriuFailed,
    HostUnreachable,
    MigrationError,
    SojournError,
    StoreUnreachable,
)
from sojourn.host import Host, this_host
from sojourn.ledger import Account
from sojourn.model import Failure, Json, Message, Phase, Role, State, Verdict, dead, where_it_runs
from sojourn.registry import Pace
from workflows.dispatch import make_room
from workflows.join import concluded

log = logging.getLogger("sojourn.conclude")

#: What a dump is told to have failed of when it can not say why itself: its page server may.
DUMP_KNOWS_NOT = {ChannelFailed.code, CriuFailed.code}

#: The steps that only look: what they refuse has touched nothing.
LOOKING = {"examine", "preflight"}

#: How long it is remembered how fast a migration between two hosts was: thirty days.
PACE_KEPT_S = 30 * 86_400


@shared_task(name="sojourn.conclude", bind=True, ignore_result=True)
def conclude(self: Any, handed: str) -> Json:  # noqa: ANN401  (Celery has no types)
    """Close the account, and answer the caller."""
    return close(self.app, Message.from_text(handed))


def close(app: Any, message: Message) -> Json:  # noqa: ANN401
    """Enter what the migration came to, unless more is known already; return the result that stands."""
    ledger = this_host().ledger
    account = ledger.account(message.id)
    result = result_of(message, account)
    if account and account.result and not overrules(State(result["state"]), account.state):
        ledger.tell_state(message.id, account.state)  # whoever waits for an end must hear of it
        _leave_the_queue(account, account.result)
        return account.result
    if result["failure"]:
        ledger.tell_failure(message.id, Failure(**result["failure"]))
    ledger.close(message.id, result)
    _log_end(message, result)
    _remember_pace(this_host(), result)
    _answer(app, account, result)
    _leave_the_queue(account, result)
    return result


def _log_end(message: Message, result: Json) -> None:
    why = f": {result['failure']['message']}" if result["failure"] else ""
    context = {"migration": message.id, "host": this_host().name, "step": "conclude", "to": str(result["state"])}
    log.info("%s: %s%s", message.plan.describe(), result["state"], why, extra=context)


def tell_doubt(message: Message, why: str) -> None:
    """Say that nobody knows who owns the process. It may stay so for long, and must keep no places meanwhile."""
    ledger = this_host().ledger
    ledger.tell_doubt(message.id)
    account = ledger.account(message.id)
    failure = asdict(Failure("IN_DOUBT", why))
    told = {"state": State.IN_DOUBT, "owner": None, "failure": failure}
    _leave_the_queue(account, {**result_of(message, account), **told})


def _leave_the_queue(account: Account | None, result: Json) -> None:
    """Tell the batch, and make room for others. Without Redis neither is lost: the reconcilers look again."""
    with contextlib.suppress(StoreUnreachable):
        concluded(account.part if account else None, result)
    make_room(result["id"])


def overrules(state: State, stands: State) -> bool:
    """Whether an end may take the place of what was told before: what is known is never replaced by less.

    A process that arrived is not lost to the migration, whatever becomes of its host later.
    """
    if stands is State.COMPLETED:
        return state is State.COMPLETED
    if stands is State.CLEANUP_PENDING:
        return state.arrived
    return state is not State.IN_DOUBT or not stands.definite


def _answer(app: Any, account: Account | None, result: Json) -> None:  # noqa: ANN401
    """Make ``.get()`` return the result, or raise MigrationError for anything that is not a completed migration.

    Of a part of a batch nobody has such a thing: the batch answers.
    """
    if account and account.part:
        return
    if State(result["state"]).arrived:
        app.backend.store_result(result["id"], result, states.SUCCESS)
    else:
        app.backend.store_result(result["id"], error_of(result), states.FAILURE)


def not_begun(app: Any, message: Message, error: SojournError) -> None:  # noqa: ANN401
    """Tell the end of a migration that can not even begin: to its account, the caller, the batch and the queue."""
    host = this_host()
    state = State.UNREACHABLE if isinstance(error, HostUnreachable) else State.REFUSED
    failure = asdict(Failure(error.code, error.message, error.hint))
    result = {**result_of(message, None), "state": state, "owner": message.plan.source, "failure": failure}
    host.ledger.close(message.id, result)
    _log_end(message, result)
    account = host.ledger.account(message.id)
    _answer(app, account, result)
    concluded(account.part if account else None, result)
    host.queue.end(message.id)


def error_of(result: Json) -> MigrationError:
    """Return the error that says why a migration did not arrive, and where the process runs now."""
    failure = result["failure"] or {"message": "The migration failed.", "hint": ""}
    return MigrationError(
        f"{failure['message']} {where_it_runs(State(result['state']), result['owner'])}",
        failure["hint"],
        result["state"],
        result["owner"],
        result["id"],
    )


def result_of(message: Message, account: Account | None) -> Json:
    """Return the finished migration as plain JSON, as ``.get()`` and ``--json`` give it."""
    facts = message.facts | ((account.resolved or {}) if account else {})
    failure = _failure(facts, account)
    steps = account.steps if account else ()
    state = state_of(facts, failure)
    failure = failure or _unsaid(state, message.plan.source)
    return {
        "id": message.id,
        "state": state,
        "pid": message.plan.pid,
        "source": message.plan.source,
        "destination": message.plan.destination,
        "mode": message.plan.mode,
        "owner": owner_of(message, state),
        **times_of(facts),
        "total_ms": _total_ms(account),
        "pages_bytes": facts.get("pages_bytes"),
        "images_bytes": facts.get("images_bytes"),
        "rounds": 1 if "pages_bytes" in facts else 0,
        "steps": [_step(step) for step in steps],
        "failure": asdict(failure) if failure else None,
        "pending": facts.get("pending", []),
        "resolved": {name: fact for name, fact in facts.items() if name.startswith("resolved")} or None,
    }


def state_of(facts: Json, failure: Failure | None) -> State:
    """Say what a migration came to, from the destination's verdict and the source's last phase."""
    verdict, source = facts.get("verdict"), facts.get("source_phase")
    if source == Phase.RESUMED and (verdict == Verdict.REFUSED or facts.get("resolved") == dead(Role.DESTINATION)):
        return _stayed(facts, failure)
    if verdict == Verdict.RESTORED and facts.get("died_on"):
        return State.LOST
    if "resolved" in facts:
        return _resolved(facts)
    if verdict == Verdict.RESTORED:
        clean = source == Phase.RETIRED and not facts.get("pending")
        return State.COMPLETED if clean else State.CLEANUP_PENDING
    return State.IN_DOUBT


def _stayed(facts: Json, failure: Failure | None) -> State:
    """Say why the process stayed on the source, if it did not end there."""
    if failure and failure.step in LOOKING:
        return State.REFUSED
    if facts.get("gone"):
        return State.LOST
    return State.ABORTED if failure and failure.code == Aborted.code else State.ROLLED_BACK


def _resolved(facts: Json) -> State:
    """Say what a migration came to by an operator's word; the source has not resumed it, nor did it die elsewhere."""
    verdict, source = facts.get("verdict"), facts.get("source_phase")
    if facts["resolved"] == dead(Role.DESTINATION):
        # It was retired already: the process had run on the destination, and died with it.
        return State.LOST if source == Phase.RETIRED else State.IN_DOUBT
    if verdict == Verdict.RESTORED:
        return State.CLEANUP_PENDING if facts.get("pending") else State.COMPLETED
    return State.LOST if verdict else State.IN_DOUBT


def owner_of(message: Message, state: State) -> str | None:
    """Return the host that owns the process now, None while nobody knows."""
    if state.arrived:
        return message.plan.destination
    return None if state in {State.IN_DOUBT, State.LOST} else message.plan.source


def times_of(facts: Json) -> Json:
    """Return ``downtime_ms`` and ``frozen_ms``; None for a migration that did not arrive.

    Each host's clock measures its own part, so that clocks that disagree do no harm: the source from the freeze to the
    moment at which the destination has confirmed the images, the destination from there until the tree runs.
    """
    if any(facts.get(needed) is None for needed in ("freeze_started", "frozen_at", "images_sent", "resumed_at")):
        return {"downtime_ms": None, "frozen_ms": None}
    # Copied by other means than the page channel, the images' arrival is known by the source's clock only.
    there = facts["resumed_at"] - (facts.get("images_at") or facts["images_sent"])
    return {
        "downtime_ms": _ms(facts["images_sent"] - facts["freeze_started"] + there),
        "frozen_ms": _ms(facts["images_sent"] - facts["frozen_at"] + there),
    }


def _failure(facts: Json, account: Account | None) -> Failure | None:
    """Return the original failure; where the dump broke off, what the page server said is the cause."""
    failure = account.failure if account else None
    if facts.get("died_on") and not failure:
        host = facts["died_on"]
        return Failure("LOST", f"The process had arrived on {host} and died there with its host.", "", "", host)
    if failure and failure.code == Aborted.code and facts.get("verdict") == Verdict.RESTORED:
        return replace(failure, message=f"{failure.message} It was too late.")
    if failure and failure.step == "dump" and failure.code in DUMP_KNOWS_NOT and facts.get("page_server_error"):
        return _page_servers(failure, facts)
    return failure


def _unsaid(state: State, source: str) -> Failure | None:
    """Return a reason where no step could tell one, since it died, or its message was lost."""
    if state is State.LOST:
        return Failure("LOST", f"The process ended on {source} during the migration, or died with that host.")
    if state is State.ROLLED_BACK:
        return Failure("INTERRUPTED", "A worker, a message or a host was lost on the way; the reconcilers ended it.")
    return None


def _page_servers(failure: Failure, facts: Json) -> Failure:
    return replace(
        failure,
        code=facts.get("page_server_code", failure.code),
        message=f"The page server on the destination failed: {facts['page_server_error']} ({failure.message})",
        hint=" ".join(filter(None, (facts.get("page_server_hint"), failure.hint))),
    )


def _step(step: Any) -> Json:  # noqa: ANN401
    return {key: getattr(step, key) for key in ("name", "host", "started", "ended", "outcome", "failed")}


def _total_ms(account: Account | None) -> float | None:
    ends = [step.ended for step in account.steps if step.ended] if account else []
    return _ms(max(ends) - account.created) if account and ends else None


def _remember_pace(host: Host, result: Json) -> None:
    """Keep how fast a migration was that arrived, for the estimates of later ones; without Redis it is not kept."""
    if result["pages_bytes"] and result["frozen_ms"]:
        pace = Pace(result["pages_bytes"], result["frozen_ms"])
        with contextlib.suppress(StoreUnreachable):
            host.registry.remember(result["source"], result["destination"], pace, PACE_KEPT_S)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
