"""What a migration came to: its finished form, worked out from the facts of both hosts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import cast

from sojourn.cluster.account import Account
from sojourn.errors import Aborted, ChannelFailed, CriuFailed, MigrationError
from sojourn.migration import life
from sojourn.model import Failure, Json, Phase, Role, State, StepRecord, Verdict, where_it_runs
from sojourn.state.facts import Facts, resolution_of
from sojourn.state.message import Message

#: Codes of a dump that broke off at its far end: the page server may have logged the cause.
BY_THE_FAR_END = {ChannelFailed.code, CriuFailed.code}

#: The facts from which the times of a migration that arrived are computed.
TIMES = ("freeze_started", "frozen_at", "images_sent", "resumed_at")

#: The steps that only read: what they refuse has touched nothing.
READING = {"examine", "preflight"}


def result_of(message: Message, account: Account | None) -> Json:
    """Return the finished migration as plain JSON, as ``.get()`` and ``--json`` give it."""
    facts = message.facts | _resolution(account)
    failure = _failure(facts, account)
    steps = account.steps if account else ()
    state = state_of(facts, failure)
    failure = (
        failure
        or _memory_lost(message)
        or _presumed(state, message.plan.source)
        or _ended(message, state)
    )
    failure = _woken(failure, state, message)
    return {
        "id": message.id,
        "state": state,
        "pid": message.plan.pid,
        "source": message.plan.source,
        "destination": message.plan.destination,
        "mode": message.plan.mode,
        "command": facts.get("command") or (account.command if account else "") or None,
        "owner": owner_of(message, state),
        **times_of(facts),
        "freeze": _freeze(facts),
        "settled_ms": _settled_ms(facts),
        "faults": facts.get("faults"),
        "wait_median_ms": facts.get("wait_median_ms"),
        "wait_p99_ms": facts.get("wait_p99_ms"),
        "wait_longest_ms": facts.get("wait_longest_ms"),
        "total_ms": _total_ms(account),
        "pages_bytes": facts.get("pages_bytes"),
        "images_bytes": facts.get("images_bytes"),
        "rounds": 1 if "pages_bytes" in facts else 0,
        "steps": [_step(step) for step in steps],
        "failure": asdict(failure) if failure else None,
        "pending": facts.get("pending", []),
        "ended": _end(facts),
        "resolved": resolution_of(facts) or None,
    }


def _resolution(account: Account | None) -> Facts:
    """Return the operator's decision as the ledger has it; a host may not have read it yet."""
    return cast("Facts", account.resolved or {}) if account else {}


def state_of(facts: Facts, failure: Failure | None) -> State:
    """Return what a migration came to, by the destination's verdict and the source's last phase."""
    verdict, source = facts.get("verdict"), facts.get("source_phase")
    if source == Phase.RESUMED and (
        verdict == Verdict.REFUSED or facts.get("resolved") == Role.DESTINATION
    ):
        return _stayed(facts, failure)
    if verdict == Verdict.RESTORED and (facts.get("died_on") or "memory_lost" in facts):
        return State.LOST
    if verdict == Verdict.RESTORED and "ended_after_ms" in facts:
        return State.ENDED
    if "resolved" in facts:
        return _resolved(facts)
    if verdict == Verdict.RESTORED:
        clean = source == Phase.RETIRED and not facts.get("pending")
        return State.COMPLETED if clean else State.CLEANUP_PENDING
    return State.IN_DOUBT


def _stayed(facts: Facts, failure: Failure | None) -> State:
    """Return why the process stayed on the source, or that it ended there."""
    if failure and failure.step in READING:
        return State.REFUSED
    if facts.get("gone"):
        return State.LOST
    return State.ABORTED if failure and failure.code == Aborted.code else State.ROLLED_BACK


def _resolved(facts: Facts) -> State:
    """Return what a migration came to by an operator's decision.

    The source has not resumed the process, nor is it known to have ended on the destination.
    """
    verdict, source = facts.get("verdict"), facts.get("source_phase")
    if facts["resolved"] == Role.DESTINATION:
        # A source that has retired the original had the destination's `restored`: the process ran
        # there, and ended with that host.
        return State.LOST if source == Phase.RETIRED else State.IN_DOUBT
    if verdict == Verdict.RESTORED:
        return State.CLEANUP_PENDING if facts.get("pending") else State.COMPLETED
    return State.LOST if verdict else State.IN_DOUBT


def owner_of(message: Message, state: State) -> str | None:
    """Return the host that owns the process now, None while it is not known."""
    if state.arrived:
        return message.plan.destination
    nowhere = {State.IN_DOUBT, State.LOST, State.ENDED}
    return None if state in nowhere else message.plan.source


def times_of(facts: Facts) -> Json:
    """Return ``downtime_ms`` and ``frozen_ms``; None for a migration that did not arrive.

    Each host's clock measures its own part, so that clocks may disagree: the source from the freeze
    to the moment at which the destination has confirmed the images, the destination from there
    until the tree runs.
    """
    if any(facts.get(key) is None for key in TIMES):
        return {"downtime_ms": None, "frozen_ms": None}
    sent = facts["images_sent"]
    # With scp only the source's clock knows when the images had arrived.
    on_destination = facts["resumed_at"] - (facts.get("images_at") or sent)
    return {
        "downtime_ms": _ms(sent - facts["freeze_started"] + on_destination),
        "frozen_ms": _ms(sent - facts["frozen_at"] + on_destination),
    }


def _freeze(facts: Facts) -> Json | None:
    """Return when the freeze began, and when the tree ran again, on whichever host; None if never.

    In seconds since the epoch, each by the clock of the host where it was. One that a dump caused
    which failed is not known.
    """
    if "freeze_started" not in facts:
        return None
    ran = facts.get("resumed_at" if facts.get("verdict") == Verdict.RESTORED else "woken_at")
    return {"began": facts["freeze_started"], "ended": ran}


def _settled_ms(facts: Facts) -> float | None:
    """Return how long the process ran before all memory was in place; 0 if it was from the start.

    None for one that did not arrive.
    """
    if facts.get("resumed_at") is None:
        return None
    if "settled_at" not in facts:
        return None if facts.get("lazy") else 0
    return _ms(max(0, facts["settled_at"] - facts["resumed_at"]))


def _failure(facts: Facts, account: Account | None) -> Failure | None:
    """Return the recorded failure, with the page server's error where the dump broke off by it."""
    failure = account.failure if account else None
    if facts.get("died_on") and not failure:
        host = facts["died_on"]
        sentence = f"The process had arrived on {host} and ended there with its host."
        return Failure("LOST", sentence, host=host)
    if failure and failure.code == Aborted.code and facts.get("verdict") == Verdict.RESTORED:
        return replace(failure, message=f"{failure.message} It was too late.")
    if failure and failure.step == "dump" and failure.code in BY_THE_FAR_END:
        return _by_the_page_server(failure, facts)
    return failure


def _memory_lost(message: Message) -> Failure | None:
    """Return why a process was ended after it had arrived."""
    if "memory_lost" not in message.facts:
        return None
    host, missing = message.plan.destination, message.facts["memory_lost"]
    source = message.plan.source
    cause = "came into place; the pager and its guard were both killed"
    hint = (
        "Find out what killed them: the kernel's log names what it ended for lack of memory. With "
        '`lazy_restore = "before-commit"` there is no such window.'
    )
    if message.facts.get("lost_with_original"):
        cause = f"came from {source}; the original there was gone"
        hint = (
            f"Find out what ended the original or its host, {source}. With the mode stop-and-copy "
            "nothing depends on that host once the process runs."
        )
    sentence = (
        f"Process {message.plan.pid} ran on {host} while its memory {cause} with "
        f"{missing / 1e6:.0f} MB missing, so it was ended."
    )
    return Failure("MEMORY_LOST", sentence, hint, step="settle", host=host)


def _presumed(state: State, source: str) -> Failure | None:
    """Return a reason where no step could record one, since it was killed, or its message lost."""
    if state is State.LOST:
        sentence = f"The process ended on {source} during the migration, or with that host."
        return Failure("LOST", sentence)
    if state is State.ROLLED_BACK:
        sentence = "A worker, a message or a host was lost on the way; the reconcilers ended it."
        return Failure("INTERRUPTED", sentence)
    return None


def _end(facts: Facts) -> Json | None:
    """Return how a process ended that arrived and did not live on."""
    if "ended_after_ms" not in facts:
        return None
    return {"after_ms": facts["ended_after_ms"], "by": facts.get("ended_by") or None}


def _ended(message: Message, state: State) -> Failure | None:
    """Return what there is to say of a process that arrived and ended at once."""
    end = _end(message.facts)
    if state is not State.ENDED or end is None:
        return None
    host, cause = message.plan.destination, f" by {end['by']}" if end["by"] else ""
    return Failure(
        "ENDED",
        f"Process {message.plan.pid} arrived on {host}, and ended {end['after_ms']:.0f} ms later"
        f"{cause}.",
        f"See what the program logged on {host}: what does it find there that is not as it was?",
        step="confirm",
        host=host,
    )


def _woken(failure: Failure | None, state: State, message: Message) -> Failure | None:
    """Return the failure with what became of a process that was woken on the source and ended."""
    if not failure or state is not State.LOST or "ended_after_ms" not in message.facts:
        return failure
    how = f"The process was woken on {message.plan.source}, and {life.sentence(message.facts)}."
    return replace(failure, message=f"{failure.message} {how}")


def _by_the_page_server(failure: Failure, facts: Facts) -> Failure:
    """Return the failure with the cause that the page server logged; unchanged without one."""
    cause = facts.get("page_server_error")
    if not cause:
        return failure
    return replace(
        failure,
        code=facts.get("page_server_code", failure.code),
        message=f"The page server on the destination failed: {cause} ({failure.message})",
        hint=" ".join(filter(None, (facts.get("page_server_hint"), failure.hint))),
    )


def _step(step: StepRecord) -> Json:
    keys = ("name", "host", "started", "ended", "outcome", "failed")
    return {key: getattr(step, key) for key in keys}


def _total_ms(account: Account | None) -> float | None:
    ends = [step.ended for step in account.steps if step.ended] if account else []
    return _ms(max(ends) - account.created) if account and ends else None


def overrules(state: State, stands: State) -> bool:
    """Whether an end may replace the one that ``stands``: what is known never yields to a doubt.

    A process that arrived is not lost to the migration, whatever becomes of its host later.
    """
    if stands is State.ENDED:
        return state is stands
    if stands is State.COMPLETED:
        return state in {State.COMPLETED, State.ENDED}
    if stands is State.CLEANUP_PENDING:
        return state.arrived or state is State.ENDED
    return state is not State.IN_DOUBT or not stands.definite


def error_of(result: Json) -> MigrationError:
    """Return the error that says why a migration did not arrive, and where the process runs."""
    failure = result["failure"] or {"message": "The migration failed.", "hint": ""}
    return MigrationError(
        f"{failure['message']} {where_it_runs(State(result['state']), result['owner'])}",
        failure["hint"],
        result["state"],
        result["owner"],
        result["id"],
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
