"""The end of a migration: what it came to, told to the ledger and to whoever waits for ``migrate.delay(...).get()``."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from celery import shared_task, states

from sojourn.errors import Aborted, ChannelFailed, CriuFailed, HostUnreachable, MigrationError, SojournError
from sojourn.host import this_host
from sojourn.ledger import Account, Ledger
from sojourn.model import Failure, Json, Message, Phase, Role, State, Verdict, where_it_runs

#: What a dump is told to have failed of when it can not say why itself: its page server may.
DUMP_KNOWS_NOT = {ChannelFailed.code, CriuFailed.code}


@shared_task(name="sojourn.conclude", bind=True)
def conclude(self: Any, handed: Json | list[Json]) -> Json:  # noqa: ANN401  (Celery has no types)
    """Join the ends of both hosts, close the account, and answer the caller."""
    message = Message.join(handed if isinstance(handed, list) else [handed])
    account = this_host().ledger.account(message.id)
    result = result_of(message, account)
    this_host().ledger.close(message.id, result)
    answer(self.app, result)
    return result


def answer(app: Any, result: Json) -> None:  # noqa: ANN401
    """Make ``.get()`` return the result, or raise MigrationError for anything that is not a completed migration."""
    state = State(result["state"])
    if state in {State.COMPLETED, State.CLEANUP_PENDING}:
        app.backend.store_result(result["id"], result, states.SUCCESS)
    else:
        app.backend.store_result(result["id"], error_of(result), states.FAILURE)


def refused(ledger: Ledger, message: Message, error: SojournError) -> MigrationError:
    """Close the account of a migration that can not even begin, and return the error for the caller."""
    state = State.UNREACHABLE if isinstance(error, HostUnreachable) else State.REFUSED
    failure = asdict(Failure(error.code, error.message, error.hint))
    result = {**result_of(message, None), "state": state, "owner": message.plan.source, "failure": failure}
    ledger.close(message.id, result)
    return error_of(result)


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
    facts = message.facts
    failure = _failure(facts, account)
    steps = account.steps if account else ()
    state = state_of(facts, failure)
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
    }


def state_of(facts: Json, failure: Failure | None) -> State:
    """Say what a migration came to, from the destination's verdict and the source's last phase."""
    verdict, source = facts.get("verdict"), facts.get("source_phase")
    if facts.get("resolved") == f"{Role.SOURCE} is dead":
        return State.COMPLETED if verdict == Verdict.RESTORED else State.LOST
    if verdict == Verdict.RESTORED:
        clean = source == Phase.RETIRED and not facts.get("pending")
        return State.COMPLETED if clean else State.CLEANUP_PENDING
    if verdict == Verdict.REFUSED and source == Phase.RESUMED:
        if facts.get("gone"):
            return State.LOST
        if failure and failure.code == Aborted.code:
            return State.ABORTED
        return State.REFUSED if failure and failure.step == "preflight" else State.ROLLED_BACK
    return State.IN_DOUBT


def owner_of(message: Message, state: State) -> str | None:
    """Return the host that owns the process now, None while nobody knows."""
    if state in {State.COMPLETED, State.CLEANUP_PENDING}:
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
    cause = facts.get("page_server_error")
    if failure and failure.step == "dump" and failure.code in DUMP_KNOWS_NOT and cause:
        return replace(
            failure,
            code=facts.get("page_server_code", failure.code),
            message=f"The page server on the destination failed: {cause} ({failure.message})",
            hint=" ".join(filter(None, (facts.get("page_server_hint"), failure.hint))),
        )
    return failure


def _step(step: Any) -> Json:  # noqa: ANN401
    return {key: getattr(step, key) for key in ("name", "host", "started", "ended", "outcome", "failed")}


def _total_ms(account: Account | None) -> float | None:
    ends = [step.ended for step in account.steps if step.ended] if account else []
    return _ms(max(ends) - account.created) if account and ends else None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
