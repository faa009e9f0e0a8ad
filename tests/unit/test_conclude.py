"""What a migration came to, as pure functions of what both hosts have said."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from sojourn.errors import MigrationError
from sojourn.ledger import Account
from sojourn.model import Failure, Message, Phase, Plan, State, StepRecord, Verdict
from workflows.conclude import error_of, overrules, owner_of, result_of, state_of, times_of

PLAN = Plan(4242, "alpha", "beta")
ID = "0123abcd"
FAILURE = Failure("CRIU_FAILED", "It broke.", "Mend it.", "dump", "alpha")
TIMES = {"freeze_started": 10.0, "frozen_at": 10.1, "images_sent": 10.5, "images_at": 900.0, "resumed_at": 900.25}

COMBINATIONS = list(itertools.product([None, *Verdict], [None, *Phase]))


def _expected(verdict: str | None, source: str | None) -> State:
    if verdict == "restored":
        return State.COMPLETED if source == "retired" else State.CLEANUP_PENDING
    return State.ROLLED_BACK if (verdict, source) == ("refused", "resumed") else State.IN_DOUBT


@pytest.mark.parametrize(("verdict", "source"), COMBINATIONS)
def test_every_combination(verdict: Verdict | None, source: Phase | None) -> None:
    """Completed needs both hosts' word, rolled back too; anything less than that is in doubt, never a guess."""
    facts = {"verdict": verdict, "source_phase": source}
    assert state_of(facts, FAILURE) is _expected(verdict, source)
    assert state_of({key: value for key, value in facts.items() if value}, None) is _expected(verdict, source)


@pytest.mark.parametrize(("verdict", "source"), COMBINATIONS)
def test_the_owner(verdict: Verdict | None, source: Phase | None) -> None:
    """The destination owns the process once it has restored it, whatever became of the rest."""
    message = Message(ID, PLAN, {"verdict": verdict, "source_phase": source})
    expected = {"restored": "beta", "refused": "alpha" if source == "resumed" else None}.get(str(verdict))
    assert owner_of(message, state_of(message.facts, None)) == expected
    assert result_of(message, None)["owner"] == expected


def test_what_is_pending() -> None:
    """A completed migration that left something behind says so in its state."""
    facts = {"verdict": "restored", "source_phase": "retired", "pending": ["alpha: umount: busy"]}
    assert state_of(facts, None) is State.CLEANUP_PENDING
    assert result_of(Message(ID, PLAN, facts), None)["pending"] == ["alpha: umount: busy"]


def test_a_refusal_by_preflight() -> None:
    """A rollback of nothing is a refusal."""
    facts = {"verdict": "refused", "source_phase": "resumed"}
    for step in ("examine", "preflight"):
        assert state_of(facts, Failure("PID_TAKEN", "No.", step=step)) is State.REFUSED
    assert state_of(facts, Failure("REFUSED", "No.", step="reserve")) is State.ROLLED_BACK


def test_times_with_clocks_that_disagree() -> None:
    """Each clock measures its own part only: 500 ms on one host and 250 ms on the other."""
    assert times_of(TIMES) == {"downtime_ms": 750.0, "frozen_ms": 650.0}


def test_times_of_one_that_did_not_arrive() -> None:
    """Without the moment at which it ran again there is no downtime."""
    assert times_of({}) == {"downtime_ms": None, "frozen_ms": None}


def _account(**more: Any) -> Account:
    steps = (StepRecord("dump", "alpha", 100.0, 100.5, "done"), StepRecord("release", "beta", 101.0))
    values = {"state": State.RUNNING, "created": 99.0, "owner": "alpha", "steps": steps, "failure": None}
    return Account(id=ID, plan=PLAN, result=None, **{**values, **more})


def test_the_result_of_a_good_migration() -> None:
    """Everything that DESIGN.md promises of ``--json`` is there, and is JSON."""
    facts = {"verdict": "restored", "source_phase": "retired", "pages_bytes": 5, "images_bytes": 6, **TIMES}
    result = result_of(Message(ID, PLAN, facts), _account())
    promised = (
        "id state pid source destination mode owner downtime_ms frozen_ms total_ms pages_bytes images_bytes rounds "
        "steps failure"
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


def test_the_result_without_a_ledger() -> None:
    """If Redis was emptied meanwhile, the migration still ends with what the message knows."""
    result = result_of(Message(ID, PLAN, {"verdict": "refused", "source_phase": "resumed"}), None)
    assert (result["state"], result["steps"], result["total_ms"]) == ("rolled back", [], None)


def test_the_page_server_is_the_cause_of_a_broken_dump() -> None:
    """What the page server said comes first where the dump broke off and knows no better cause, and nowhere else."""
    said = {"page_server_error": "no room", "page_server_code": "NO_ROOM", "page_server_hint": "Make room."}
    facts = {"verdict": "refused", "source_phase": "resumed", **said}
    told = result_of(Message(ID, PLAN, facts), _account(failure=FAILURE))["failure"]
    assert told["message"] == "The page server on the destination failed: no room (It broke.)"
    assert (told["code"], told["hint"]) == ("NO_ROOM", "Make room. Mend it.")
    for other in (Failure("X", "Other.", step="copy_images"), Failure("FILE_LOCKS", "Other.", step="dump")):
        assert result_of(Message(ID, PLAN, facts), _account(failure=other))["failure"]["message"] == "Other."


@pytest.mark.parametrize(
    ("facts", "ending"),
    [
        ({"verdict": "refused", "source_phase": "resumed"}, "It broke. The process runs on alpha."),
        ({}, "It broke. Nobody knows yet on which host the process runs."),
    ],
)
def test_the_error_says_where_the_process_runs(facts: dict[str, Any], ending: str) -> None:
    """Whoever waits is told why, and where the process runs now if anybody knows."""
    error = error_of(result_of(Message(ID, PLAN, facts), _account(failure=FAILURE)))
    assert isinstance(error, MigrationError)
    assert (error.message, error.hint, error.migration) == (ending, "Mend it.", ID)


def test_the_error_without_a_failure() -> None:
    """A failure that nobody recorded is still a sentence."""
    assert error_of(result_of(Message(ID, PLAN, {}), None)).message.startswith("The migration failed. ")


DEAD_DESTINATION = {"resolved": "destination is dead", "resolved_by": "ann@hub", "resolved_at": 1.0}
DEAD_SOURCE = {"resolved": "source is dead", "resolved_by": "ann@hub", "resolved_at": 1.0}


@pytest.mark.parametrize(
    ("word", "facts", "state"),
    [
        (DEAD_DESTINATION, {"source_phase": "resumed"}, State.ROLLED_BACK),
        (DEAD_DESTINATION, {"source_phase": "resumed", "verdict": "restored"}, State.ROLLED_BACK),
        (DEAD_DESTINATION, {"source_phase": "resumed", "gone": True}, State.LOST),
        (DEAD_DESTINATION, {"source_phase": "retired"}, State.LOST),
        (DEAD_DESTINATION, {}, State.IN_DOUBT),
        (DEAD_SOURCE, {"verdict": "restored"}, State.COMPLETED),
        (DEAD_SOURCE, {"verdict": "restored", "pending": ["beta: look at it"]}, State.CLEANUP_PENDING),
        (DEAD_SOURCE, {"verdict": "restored", "died_on": "beta"}, State.LOST),
        (DEAD_SOURCE, {"verdict": "refused"}, State.LOST),
        (DEAD_SOURCE, {"verdict": "refused", "source_phase": "resumed"}, State.ROLLED_BACK),
        (DEAD_SOURCE, {}, State.IN_DOUBT),
    ],
)
def test_an_operators_word(word: dict[str, Any], facts: dict[str, Any], state: State) -> None:
    """It stands in for the verdict of the host that is dead, and is part of the result, wherever it was kept."""
    told = result_of(Message(ID, PLAN, facts), _account(resolved=word))
    assert (told["state"], told["resolved"]) == (state, word)
    assert result_of(Message(ID, PLAN, facts | word), None)["state"] == state


def test_a_process_that_died_where_it_had_arrived() -> None:
    """It is lost with its own host, and the sentence says so; not if the migration was told as completed before."""
    facts = {"verdict": "restored", "source_phase": "retired", "died_on": "beta"}
    told = result_of(Message(ID, PLAN, facts), _account())
    assert (told["state"], told["owner"], told["failure"]["code"]) == ("lost", None, "LOST")
    assert not overrules(State.LOST, State.COMPLETED)


def test_an_abort_that_came_too_late() -> None:
    """The failure of a migration that arrived all the same says so."""
    facts = {"verdict": "restored", "source_phase": "retired"}
    told = result_of(Message(ID, PLAN, facts), _account(failure=Failure("ABORTED", "Aborted by ann@hub.")))
    assert (told["state"], told["failure"]["message"]) == ("completed", "Aborted by ann@hub. It was too late.")


@pytest.mark.parametrize("stands", [state for state in State if state.definite])
def test_what_is_known_is_never_replaced_by_doubt(stands: State) -> None:
    """A late canvas that knows less changes nothing; one that knows more does."""
    assert not overrules(State.IN_DOUBT, stands)
    assert overrules(State.COMPLETED, stands)
    assert overrules(State.COMPLETED, State.IN_DOUBT)
