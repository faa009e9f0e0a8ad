"""The terms of a migration: what is accepted, what is refused and how, what survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from sojourn.errors import MigrationError, SojournError, UsageError
from sojourn.model import MAX_BANDWIDTH_MBIT, PID_MAX, Identity, Member, Phase, Plan, Role, State
from sojourn.state.message import Message

ID = "0123abcd-4567"
PLAN = {"pid": 4242, "source": "alpha", "destination": "beta"}

#: What is no bandwidth, None apart.
NO_BANDWIDTHS: list[Any] = [0, -1, 100_001, True, "5", 2.5, float("nan"), []]

#: A change of a good plan, and how the one sentence against it begins.
BAD_PLANS: list[tuple[dict[str, Any], str]] = [
    ({"pid": 0}, "0 is not a PID"),
    ({"pid": -5}, "-5 is not a PID"),
    ({"pid": 1}, "PID 1 is the host's init"),
    ({"pid": PID_MAX + 1}, f"{PID_MAX + 1} is not a PID"),
    ({"pid": True}, "A PID is a whole number, not True"),
    ({"pid": "4242"}, "A PID is a whole number, not '4242'"),
    ({"pid": 4242.0}, "A PID is a whole number"),
    ({"pid": None}, "A PID is a whole number"),
    *(
        ({"max_freeze_s": wrong}, "A freeze may last more than 0")
        for wrong in (0, -1, 86401, True, "5", None, float("nan"))
    ),
    *(
        ({"bandwidth_mbit": wrong}, "A bandwidth is a whole number of megabits per second, from 1")
        for wrong in NO_BANDWIDTHS
    ),
    ({"source": "beta"}, "Source and destination are the same host"),
    ({"source": ""}, "'' is not a name of a host (source)"),
    ({"source": "Alpha"}, "'Alpha' is not a name"),
    ({"source": "alpha\n"}, "'alpha\\n' is not a name"),
    ({"source": "-alpha"}, "'-alpha' is not a name"),
    ({"source": "a" * 64}, "'aaa"),
    ({"source": 5}, "5 is not a name of a host (source)"),
    ({"destination": "../beta"}, "'../beta' is not a name of a host (destination)"),
    ({"destination": None}, "None is not a name of a host (destination)"),
    ({"mode": "teleport"}, "There is no mode 'teleport'"),
    ({"mode": []}, "There is no mode []"),
    ({"tcp_established": 1}, "tcp_established is true or false, not 1"),
    ({"shell_job": "yes"}, "shell_job is true or false, not 'yes'"),
    ({"file_locks": None}, "file_locks is true or false, not None"),
    ({"speed": 5}, "A migration has no option 'speed'"),
    ({"__class__": 5}, "A migration has no option '__class__'"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_PLANS, ids=str)
def test_a_bad_plan_has_its_sentence(change: dict[str, Any], sentence: str) -> None:
    """Every input that makes no sense is a usage error that says which and why."""
    with pytest.raises(UsageError) as caught:
        Plan.from_json({**PLAN, **change})
    assert caught.value.message.startswith(sentence)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("missing", ["pid", "source", "destination"])
def test_a_plan_needs_three_things(missing: str) -> None:
    """The error names what is missing."""
    with pytest.raises(UsageError, match=f"A migration needs {missing}"):
        Plan.from_json({key: value for key, value in PLAN.items() if key != missing})


def test_a_bandwidth() -> None:
    """Networks count in bits, connections in bytes; without a limit there is nothing to count."""
    assert Plan.from_json(PLAN).bytes_per_s is None
    assert Plan.from_json(PLAN | {"bandwidth_mbit": None}).bytes_per_s is None
    assert Plan.from_json(PLAN | {"bandwidth_mbit": 100}).bytes_per_s == 12_500_000


def test_roles() -> None:
    """Each of the two hosts has its part; a third one has none."""
    plan = Plan.from_json(PLAN)
    assert [plan.role_of(plan.host_of(role)) for role in Role] == list(Role)
    with pytest.raises(UsageError, match="gamma has no part"):
        plan.role_of("gamma")


hosts = some.from_regex(r"[a-z0-9]([a-z0-9-]{0,62})", fullmatch=True)
plans = some.builds(
    Plan,
    some.integers(2, PID_MAX),
    hosts.map("s".__add__).map(lambda name: name[:63]),
    hosts.map("d".__add__).map(lambda name: name[:63]),
    some.just("stop-and-copy"),
    some.booleans(),
    some.booleans(),
    some.booleans(),
    bandwidth_mbit=some.none() | some.integers(1, MAX_BANDWIDTH_MBIT),
)
json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
    max_leaves=8,
)
messages = some.builds(
    Message,
    some.from_regex(r"[0-9a-f-]{8,40}", fullmatch=True),
    plans,
    some.dictionaries(some.text(), json_values),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages)
def test_a_message_survives_json(message: Message) -> None:
    """What one host sends is what the other reads."""
    assert Message.from_text(message.to_text()) == message


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_values)
def test_other_json_than_a_message_is_refused(data: Any) -> None:
    """Whatever JSON comes instead of a message, the answer is one usage error."""
    with pytest.raises(UsageError):
        Message.from_text(json.dumps(data))


@pytest.mark.parametrize(
    "bad_id", ["", "short", "../../etc/passwd", "0123ABCD", "0" * 41, "0123abc\n", 12345678, None]
)
def test_an_id_is_no_path(bad_id: object) -> None:
    """An id becomes a directory's name, so only hexadecimal digits and hyphens are one."""
    with pytest.raises(UsageError):
        Message.from_text(json.dumps({"id": bad_id, "plan": PLAN, "facts": {}}))


@pytest.mark.parametrize("facts", [None, [], "x", 5])
def test_facts_are_a_mapping(facts: object) -> None:
    """Facts of any other shape are refused."""
    with pytest.raises(UsageError):
        Message.from_text(json.dumps({"id": ID, "plan": PLAN, "facts": facts}))


@pytest.mark.parametrize("plan", [{}, "pid", PLAN | {"pid": "x"}])
def test_a_message_with_a_bad_plan(plan: object) -> None:
    """A message with a malformed plan is malformed."""
    with pytest.raises(UsageError):
        Message.from_text(json.dumps({"id": ID, "plan": plan, "facts": {}}))


@pytest.mark.parametrize("plan", [None, 5, True, ["pid"], [], ""])
def test_a_message_whose_plan_is_not_a_mapping(plan: object) -> None:
    """Only a mapping is a plan, and the refusal is a usage error like any other."""
    with pytest.raises(UsageError):
        Message.from_text(json.dumps({"id": ID, "plan": plan, "facts": {}}))


@pytest.mark.parametrize("text", ["", "{", "no message", None, 5, {"id": ID}])
def test_a_malformed_text_of_a_message(text: Any) -> None:
    """Whatever comes in a message's place is refused as such."""
    with pytest.raises(UsageError, match="message of a migration is malformed"):
        Message.from_text(text)


def test_a_member_survives_json() -> None:
    """So does the tree in the journal."""
    member = Member(Identity(5, 100, "boot"), stopped=True)
    assert Member.from_json(json.loads(json.dumps(member.to_json()))) == member


def test_exit_codes() -> None:
    """Scripts depend on them: they are those of the reference."""
    expected = {
        "completed": 0,
        "refused": 10,
        "rolled back": 11,
        "in doubt": 12,
        "lost": 13,
        "unreachable": 14,
        "aborted": 15,
        "completed, clean-up pending": 16,
        "arrived and ended": 17,
    }
    assert {str(state): state.exit_code for state in State if state.exit_code != 1} == expected


def test_what_is_final() -> None:
    """No caller waits for what cannot change any more."""
    assert [state for state in State if not state.final] == [
        State.QUEUED,
        State.RUNNING,
        State.ROLLING_BACK,
    ]
    assert {phase for phase in Phase if phase.final} == {
        "retired",
        "resumed",
        "restored",
        "refused",
    }


def _errors(kind: type[SojournError] = SojournError) -> list[type[SojournError]]:
    return [kind, *(error for below in kind.__subclasses__() for error in _errors(below))]


@pytest.mark.parametrize("kind", _errors())
def test_errors_are_rebuilt_from_their_arguments(kind: type[SojournError]) -> None:
    """Celery carries an error as its class and arguments; nothing of it may be lost on the way."""
    error = kind("It broke.", "Mend it.")
    again = kind(*json.loads(json.dumps(error.args)))
    assert (str(again), again.message, again.hint) == ("It broke.", "It broke.", "Mend it.")
    assert kind.code.isupper()


def test_a_migration_error_is_rebuilt_whole() -> None:
    """Where the process runs now survives too."""
    error = MigrationError("It broke.", "", "rolled back", "alpha", ID)
    again = MigrationError(*json.loads(json.dumps(error.args)))
    assert (again.state, again.owner, again.migration) == ("rolled back", "alpha", ID)
