"""What a migration came to, as pure functions of the facts of both hosts."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from sojourn.cluster.account import Account
from sojourn.errors import MigrationError
from sojourn.migration.result import (
    error_of,
    overrules,
    owner_of,
    result_of,
    state_of,
    times_of,
)
from sojourn.model import Failure, Phase, Plan, Role, State, StepRecord, Verdict
from sojourn.state.facts import Facts
from sojourn.state.message import Message

PLAN = Plan(4242, "alpha", "beta")
ID = "0123abcd"
FAILURE = Failure("CRIU_FAILED", "It broke.", "Mend it.", "dump", "alpha")
TIMES: Facts = {
    "freeze_started": 10.0,
    "frozen_at": 10.1,
    "images_sent": 10.5,
    "images_at": 900.0,
    "resumed_at": 900.25,
}

#: What both hosts have recorded when the process arrived, and when it stayed.
ARRIVED: Facts = {"verdict": Verdict.RESTORED, "source_phase": Phase.RETIRED}
STAYED: Facts = {"verdict": Verdict.REFUSED, "source_phase": Phase.RESUMED}

COMBINATIONS = list(itertools.product([None, *Verdict], [None, *Phase]))


def _facts(verdict: Verdict | None, source: Phase | None) -> Facts:
    facts = Facts()
    if verdict:
        facts["verdict"] = verdict
    if source:
        facts["source_phase"] = source
    return facts


def _expected(verdict: str | None, source: str | None) -> State:
    if verdict == "restored":
        return State.COMPLETED if source == "retired" else State.CLEANUP_PENDING
    return State.ROLLED_BACK if (verdict, source) == ("refused", "resumed") else State.IN_DOUBT


@pytest.mark.parametrize(("verdict", "source"), COMBINATIONS)
def test_every_combination(verdict: Verdict | None, source: Phase | None) -> None:
    """An end needs the facts of both hosts; with any less it is in doubt, never a guess."""
    facts = _facts(verdict, source)
    assert state_of(facts, FAILURE) is _expected(verdict, source)
    assert state_of(facts, None) is _expected(verdict, source)


@pytest.mark.parametrize(("verdict", "source"), COMBINATIONS)
def test_the_owner(verdict: Verdict | None, source: Phase | None) -> None:
    """The destination owns the process once it has restored it, whatever became of the rest."""
    message = Message(ID, PLAN, _facts(verdict, source))
    expected = {"restored": "beta", "refused": "alpha" if source == "resumed" else None}.get(
        str(verdict)
    )
    assert owner_of(message, state_of(message.facts, None)) == expected
    assert result_of(message, None)["owner"] == expected


def test_what_is_pending() -> None:
    """A completed migration that left something behind says so in its state."""
    facts = ARRIVED | Facts(pending=["alpha: umount: busy"])
    assert state_of(facts, None) is State.CLEANUP_PENDING
    assert result_of(Message(ID, PLAN, facts), None)["pending"] == ["alpha: umount: busy"]


def test_a_refusal_by_preflight() -> None:
    """A rollback of nothing is a refusal."""
    for step in ("examine", "preflight"):
        assert state_of(STAYED, Failure("PID_TAKEN", "No.", step=step)) is State.REFUSED
    assert state_of(STAYED, Failure("REFUSED", "No.", step="reserve")) is State.ROLLED_BACK


def test_times_with_clocks_that_disagree() -> None:
    """Each clock measures its own part only: 500 ms on one host and 250 ms on the other."""
    assert times_of(TIMES) == {"downtime_ms": 750.0, "frozen_ms": 650.0}


def test_times_of_one_that_did_not_arrive() -> None:
    """Without the moment at which it ran again there is no downtime."""
    assert times_of({}) == {"downtime_ms": None, "frozen_ms": None}


def _account(**more: Any) -> Account:
    steps = (
        StepRecord("dump", "alpha", 100.0, 100.5, "done"),
        StepRecord("release", "beta", 101.0),
    )
    values = {
        "state": State.RUNNING,
        "created": 99.0,
        "owner": "alpha",
        "steps": steps,
        "failure": None,
    }
    return Account(id=ID, plan=PLAN, result=None, **{**values, **more})


def test_the_result_of_a_good_migration() -> None:
    """Every key that the reference promises of ``--json`` is there, and is JSON."""
    facts = ARRIVED | TIMES | Facts(pages_bytes=5, images_bytes=6)
    result = result_of(Message(ID, PLAN, facts), _account())
    promised = (
        "id state pid source destination mode owner downtime_ms frozen_ms total_ms "
        "pages_bytes images_bytes rounds steps failure"
    )
    assert set(promised.split()) <= set(json.loads(json.dumps(result)))
    assert (result["total_ms"], result["rounds"], result["failure"]) == (1500.0, 1, None)
    assert result["steps"][0] == {
        "name": "dump",
        "host": "alpha",
        "started": 100.0,
        "ended": 100.5,
        "outcome": "done",
        "failed": False,
    }


def test_the_command_line_of_a_process_that_was_refused() -> None:
    """The step that refused it hands no facts on; the ledger has what the source has seen."""
    refused = _account(command="redis-server *:6379")
    assert result_of(Message(ID, PLAN, Facts()), refused)["command"] == "redis-server *:6379"
    named = Message(ID, PLAN, Facts(command="memcached"))
    assert result_of(named, _account())["command"] == "memcached"
    assert result_of(Message(ID, PLAN, Facts()), None)["command"] is None


def test_the_result_without_a_ledger() -> None:
    """If Redis was emptied meanwhile, the migration still ends with what the message carries."""
    result = result_of(Message(ID, PLAN, STAYED), None)
    assert (result["state"], result["steps"], result["total_ms"]) == ("rolled back", [], None)


def test_the_page_server_is_the_cause_of_a_broken_dump() -> None:
    """Its error comes first where the dump broke off for no better cause, and nowhere else."""
    facts = STAYED | Facts(
        page_server_error="no room", page_server_code="NO_ROOM", page_server_hint="Make room."
    )
    failure = result_of(Message(ID, PLAN, facts), _account(failure=FAILURE))["failure"]
    assert failure["message"] == "The page server on the destination failed: no room (It broke.)"
    assert (failure["code"], failure["hint"]) == ("NO_ROOM", "Make room. Mend it.")
    for other in (
        Failure("X", "Other.", step="copy_images"),
        Failure("FILE_LOCKS", "Other.", step="dump"),
    ):
        result = result_of(Message(ID, PLAN, facts), _account(failure=other))
        assert result["failure"]["message"] == "Other."


@pytest.mark.parametrize(
    ("facts", "ending"),
    [
        (STAYED, "It broke. The process runs on alpha."),
        ({}, "It broke. It is not known yet on which host the process runs."),
    ],
)
def test_the_error_says_where_the_process_runs(facts: Facts, ending: str) -> None:
    """The caller sees why the migration failed, and where the process runs if that is known."""
    error = error_of(result_of(Message(ID, PLAN, facts), _account(failure=FAILURE)))
    assert isinstance(error, MigrationError)
    assert (error.message, error.hint, error.migration) == (ending, "Mend it.", ID)


def test_the_error_without_a_failure() -> None:
    """A failure that no host recorded is still a sentence."""
    assert error_of(result_of(Message(ID, PLAN, {}), None)).message.startswith(
        "The migration failed. "
    )


DEAD_DESTINATION: Facts = {
    "resolved": Role.DESTINATION,
    "resolved_by": "ann@hub",
    "resolved_at": 1.0,
}
DEAD_SOURCE: Facts = {"resolved": Role.SOURCE, "resolved_by": "ann@hub", "resolved_at": 1.0}


@pytest.mark.parametrize(
    ("decision", "facts", "state"),
    [
        (DEAD_DESTINATION, {"source_phase": "resumed"}, State.ROLLED_BACK),
        (DEAD_DESTINATION, {"source_phase": "resumed", "verdict": "restored"}, State.ROLLED_BACK),
        (DEAD_DESTINATION, {"source_phase": "resumed", "gone": True}, State.LOST),
        (DEAD_DESTINATION, {"source_phase": "retired"}, State.LOST),
        (DEAD_DESTINATION, {}, State.IN_DOUBT),
        (DEAD_SOURCE, {"verdict": "restored"}, State.COMPLETED),
        (
            DEAD_SOURCE,
            {"verdict": "restored", "pending": ["beta: look at it"]},
            State.CLEANUP_PENDING,
        ),
        (DEAD_SOURCE, {"verdict": "restored", "died_on": "beta"}, State.LOST),
        (DEAD_SOURCE, {"verdict": "refused"}, State.LOST),
        (DEAD_SOURCE, {"verdict": "refused", "source_phase": "resumed"}, State.ROLLED_BACK),
        (DEAD_SOURCE, {}, State.IN_DOUBT),
    ],
)
def test_an_operators_decision(decision: Facts, facts: Facts, state: State) -> None:
    """It replaces the verdict of the dead host, whether the ledger or a host's facts have it."""
    result = result_of(Message(ID, PLAN, facts), _account(resolved=decision))
    assert (result["state"], result["resolved"]) == (state, decision)
    assert result_of(Message(ID, PLAN, facts | decision), None)["state"] == state


def test_a_process_that_died_where_it_had_arrived() -> None:
    """It is lost with its own host, unless the migration was recorded as completed before."""
    facts = ARRIVED | Facts(died_on="beta")
    result = result_of(Message(ID, PLAN, facts), _account())
    assert (result["state"], result["owner"], result["failure"]["code"]) == ("lost", None, "LOST")
    assert not overrules(State.LOST, State.COMPLETED)


def test_an_abort_that_came_too_late() -> None:
    """The failure of a migration that arrived all the same says so."""
    aborted = _account(failure=Failure("ABORTED", "Aborted by ann@hub."))
    result = result_of(Message(ID, PLAN, ARRIVED), aborted)
    assert result["state"] == "completed"
    assert result["failure"]["message"] == "Aborted by ann@hub. It was too late."


@pytest.mark.parametrize("stands", [state for state in State if state.definite])
def test_what_is_known_is_never_replaced_by_doubt(stands: State) -> None:
    """A late canvas that knows less changes nothing; one that knows more does."""
    assert not overrules(State.IN_DOUBT, stands)
    assert overrules(State.COMPLETED, stands) or stands is State.ENDED
    assert overrules(State.COMPLETED, State.IN_DOUBT)


def test_a_process_that_ended_at_once() -> None:
    """It arrived, and runs nowhere: a state of its own, how long it lived, and what ended it."""
    message = Message(ID, PLAN, ARRIVED | Facts(ended_after_ms=12.3, ended_by="signal 9"))
    result = result_of(message, None)
    assert (result["state"], result["owner"]) == ("arrived and ended", None)
    assert result["ended"] == {"after_ms": 12.3, "by": "signal 9"}
    assert result["failure"]["code"] == "ENDED"
    assert "arrived on beta, and ended 12 ms later by signal 9." in result["failure"]["message"]
    assert str(error_of(result)).endswith("The process runs nowhere.")


def test_a_process_that_ended_for_a_reason_that_is_not_known() -> None:
    """An older kernel does not tell how; the sentence ends before that."""
    message = Message(ID, PLAN, ARRIVED | Facts(ended_after_ms=12.3, ended_by=""))
    result = result_of(message, None)
    assert result["ended"] == {"after_ms": 12.3, "by": None}
    assert "ended 12 ms later." in result["failure"]["message"]


def test_a_process_that_ended_when_it_was_woken() -> None:
    """A rollback does not say that it runs on, and names the cause beside that of the failure."""
    facts = STAYED | Facts(gone=True, ended_after_ms=3.2, ended_by="signal 29")
    account = Account(ID, PLAN, State.ROLLING_BACK, 0.0, "alpha", (), FAILURE)
    result = result_of(Message(ID, PLAN, facts), account)
    assert (result["state"], result["owner"]) == ("lost", None)
    assert result["ended"] == {"after_ms": 3.2, "by": "signal 29"}
    assert result["failure"]["message"] == (
        "It broke. The process was woken on alpha, and ended 3 ms later, by signal 29."
    )


def test_what_arrived_is_not_lost() -> None:
    """Whatever becomes of its host later; but that it ended at once is known to be more."""
    for stands in (State.COMPLETED, State.CLEANUP_PENDING):
        assert overrules(State.ENDED, stands)
        assert not overrules(State.LOST, stands)
    assert not overrules(State.COMPLETED, State.ENDED)


@pytest.mark.parametrize(
    ("gone", "why"),
    [(True, "the original there was gone"), (False, "the pager and its guard were both killed")],
)
def test_memory_that_is_lost(gone: bool, why: str) -> None:
    """The process ran on the destination and was ended: it is nowhere, and the reason is named."""
    facts = ARRIVED | Facts(memory_lost=5_000_000, lost_with_original=gone)
    result = result_of(Message(ID, PLAN, facts), None)
    assert (result["state"], result["owner"]) == (State.LOST, None)
    assert result["failure"]["code"] == "MEMORY_LOST"
    assert f"{why} with 5 MB missing" in result["failure"]["message"]


@pytest.mark.parametrize(
    ("facts", "freeze"),
    [
        ({}, None),
        (TIMES | ARRIVED, {"began": 10.0, "ended": 900.25}),
        (Facts(freeze_started=10.0, woken_at=70.0) | STAYED, {"began": 10.0, "ended": 70.0}),
        (Facts(freeze_started=10.0, resumed_at=20.0, woken_at=70.0) | STAYED, {"ended": 70.0}),
        (Facts(freeze_started=10.0), {"began": 10.0, "ended": None}),
    ],
    ids=["never", "arrived", "woken on the source", "fenced", "in doubt"],
)
def test_the_freeze_lasts_until_the_tree_runs_on_its_owner(
    facts: Facts, freeze: dict[str, float] | None
) -> None:
    """By the destination's clock if it arrived, by the source's if it stayed there."""
    found = result_of(Message(ID, PLAN, facts), None)["freeze"]
    assert found == (None if freeze is None else {"began": 10.0, **freeze})
