"""A pipeline compiled into a Celery canvas, on two real workers: the way there, and every way back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from sojourn.errors import MigrationError
from sojourn.ledger import Account
from sojourn.model import Message, State
from tests.conftest import eventually
from tests.integration.conftest import HOSTS, Cluster
from tests.integration.steps import PIPELINE, breaks, marker, roll_back
from workflows.canvas import forward
from workflows.conclude import conclude

#: The undos in the order in which they must be done.
WAY_BACK = ["undo_third@alpha", "undo_second@beta", "undo_first@beta", "undo_first@alpha"]

#: Where a migration can fail: the step, the hosts that fail in it.
POSITIONS = [
    *(("zeroth", ["alpha"]), ("zeroth", ["beta"]), ("zeroth", ["alpha", "beta"])),
    *(("first", ["alpha"]), ("first", ["beta"]), ("first", ["alpha", "beta"])),
    *(("second", ["beta"]), ("third", ["alpha"])),
    *(("fourth", ["alpha"]), ("fourth", ["beta"]), ("fourth", ["alpha", "beta"])),
]


def _begin(cluster: Cluster, message: Message) -> Any:
    """Send the whole pipeline, as ``workflows.migrate`` does; return the answer to wait for."""
    cluster.ledger.open(message.id, message.plan)
    forward(PIPELINE, message, conclude, roll_back).apply_async()
    return cluster.app.AsyncResult(message.id)


def _account(cluster: Cluster, message: Message) -> Account:
    account = cluster.ledger.account(message.id)
    assert account is not None
    return account


def _settled(cluster: Cluster, message: Message) -> list[str]:
    """Return what was done, when nothing that was sent before can be under way any more."""
    _passed(cluster, message)
    eventually(lambda: _is_idle(cluster))
    return cluster.acts(message)


def _passed(cluster: Cluster, message: Message) -> list[str]:
    """Return what was done, when all that was sent before has been taken."""
    for queue in ("alpha", "alpha.frozen", "beta", "beta.frozen", cluster.app.conf.task_default_queue):
        assert marker.s("after").set(queue=queue).apply_async().get(timeout=10) == "after"
    return cluster.acts(message)


def _is_idle(cluster: Cluster) -> bool:
    active = cluster.app.control.inspect(destination=[f"main@{host}" for host in HOSTS]).active() or {}
    return len(active) == len(HOSTS) and not any(active.values())


def _undone(acts: list[str]) -> list[str]:
    return [act for act in acts if act.startswith("undo")]


def test_the_way_there(cluster: Cluster) -> None:
    """Each step is done once, on its host, in its order; facts of both hosts arrive at the end."""
    message = cluster.message()
    result = _begin(cluster, message).get(timeout=20)
    acts = _settled(cluster, message)
    assert acts == [
        *("zeroth@alpha", "zeroth@beta", "first@alpha", "first@beta"),
        *("second@beta", "third@alpha", "fourth@alpha", "fourth@beta"),
    ]
    assert (result["state"], result["owner"], result["id"]) == ("completed", "beta", message.id)
    assert result["failure"] is None
    assert Counter(step["name"] for step in result["steps"])["test_fourth"] == 2
    assert _account(cluster, message).state is State.COMPLETED


def test_a_host_does_in_one_message_what_it_does_in_one_turn(cluster: Cluster) -> None:
    """The hosts take turns six times, and conclude where the last step was done."""
    message = cluster.message()
    first = forward(PIPELINE, message, conclude, roll_back)
    legs = [first, *reversed(first.options["chain"])]
    assert [(leg.options["queue"], leg.kwargs["then"], leg.kwargs.get("last")) for leg in legs] == [
        ("alpha", [], None),
        ("beta", [], None),
        ("alpha", [], None),
        ("beta", ["test_second"], None),
        ("alpha.frozen", ["test_fourth"], None),
        ("beta", [], "sojourn.conclude"),
    ]


def test_a_leg_may_take_as_long_as_its_steps_together(cluster: Cluster) -> None:
    """Each of these may take fifteen seconds behind half as many of waiting; Celery ends its process ten later."""
    first = forward(PIPELINE, cluster.message(), conclude, roll_back)
    limits = [leg.options["time_limit"] for leg in first.options["chain"]]
    assert limits == [32.5, 55, 55, 32.5, 32.5]


def test_no_leg_has_a_second_alarm(cluster: Cluster) -> None:
    """Celery's soft limit would come while the failure is recorded that the step's own limit made, and cut it short."""
    first = forward(PIPELINE, cluster.message(), conclude, roll_back)
    for each in (first, *first.options["chain"]):
        assert each.options.get("soft_time_limit") is None


def test_a_step_in_the_middle_of_a_leg_is_tried_again(cluster: Cluster) -> None:
    """The leg is sent again, and what was done is not done twice."""
    message = cluster.message(second="temporary 2")
    assert _begin(cluster, message).get(timeout=20)["state"] == "completed"
    acts = Counter(_settled(cluster, message))
    assert (acts["first@beta"], acts["second@beta"], acts["third@alpha"]) == (1, 3, 1)


def test_a_step_in_the_middle_of_a_leg_gives_up(cluster: Cluster) -> None:
    """It has as many tries as by itself, and its failure is its own."""
    message = cluster.message(second="temporary 99")
    with pytest.raises(MigrationError, match="second has no room on beta"):
        _begin(cluster, message).get(timeout=20)
    acts = _settled(cluster, message)
    assert (acts.count("first@beta"), acts.count("second@beta"), _undone(acts)) == (1, 3, WAY_BACK)
    failure = _account(cluster, message).failure
    assert failure is not None
    assert (failure.step, failure.host) == ("test_second", "beta")


def test_what_comes_last_fails(cluster: Cluster) -> None:
    """All is done by then: nothing is undone for it."""
    message = cluster.message()
    cluster.ledger.open(message.id, message.plan)
    forward(PIPELINE, message, breaks, roll_back).apply_async()
    eventually(lambda: "breaks" in cluster.acts(message))
    assert _settled(cluster, message)[-2:] == ["fourth@beta", "breaks"]


def test_facts_are_handed_on(cluster: Cluster) -> None:
    """What one host found out stands in the other's journal when its turn comes, also several steps later."""
    message = cluster.message()
    _begin(cluster, message).get(timeout=20)
    entries = {entry.id: entry for entry in cluster.journal("alpha").unfinished()}
    assert entries[message.id].facts["second_destination"] == "beta"
    assert entries[message.id].facts["zeroth_destination"] == "beta"


@pytest.mark.parametrize(("step", "hosts"), POSITIONS, ids=str)
def test_the_way_back(cluster: Cluster, step: str, hosts: list[str]) -> None:
    """Wherever it fails, everything is undone once, last first, and whoever waits is told why and where it runs."""
    message = cluster.message(**{f"{step}@{host}": "fail" for host in hosts})
    answer = _begin(cluster, message)
    with pytest.raises(MigrationError) as caught:
        answer.get(timeout=20)
    acts = _settled(cluster, message)
    assert _undone(acts) == WAY_BACK
    error, account = caught.value, _account(cluster, message)
    assert error.message in {f"{step} broke on {host} The process runs on alpha." for host in hosts}
    assert (error.hint, error.state, error.owner, error.migration) == ("mend it", "rolled back", "alpha", message.id)
    assert account.state is State.ROLLED_BACK
    assert account.failure is not None
    assert (account.failure.code, account.failure.step) == ("COMMAND_FAILED", f"test_{step}")
    assert account.failure.host in hosts


@pytest.mark.parametrize("step", [step for step, hosts in POSITIONS if len(hosts) > 1])
def test_the_way_back_begins_once(cluster: Cluster, step: str) -> None:
    """Also when both sides fail, the rollback is started once."""
    message = cluster.message(**{step: "fail"})
    with pytest.raises(MigrationError):
        _begin(cluster, message).get(timeout=20)
    assert _settled(cluster, message).count("roll_back") == 1


def test_nothing_follows_a_failure(cluster: Cluster) -> None:
    """Steps behind the one that failed are not done."""
    message = cluster.message(second="fail")
    with pytest.raises(MigrationError):
        _begin(cluster, message).get(timeout=20)
    assert not {"third@alpha", "fourth@alpha", "fourth@beta"} & set(_settled(cluster, message))


@pytest.mark.parametrize("undo", ["undo_third", "undo_second", "undo_first@beta"])
@pytest.mark.parametrize("how", ["fail", "defect"])
def test_an_undo_that_fails(cluster: Cluster, undo: str, how: str) -> None:
    """The others are tried all the same, what could not be done is pending, and the original failure is kept."""
    message = cluster.message(third="fail", **{undo: how})
    with pytest.raises(MigrationError, match="third broke on alpha"):
        _begin(cluster, message).get(timeout=20)
    assert _undone(_settled(cluster, message)) == WAY_BACK
    account = _account(cluster, message)
    assert account.failure is not None
    assert account.failure.step == "test_third"
    assert account.result is not None
    (pending,) = account.result["pending"]
    assert pending.startswith(("alpha: ", "beta: "))
    assert undo.partition("@")[0] in pending


def test_an_undo_that_fails_for_the_moment(cluster: Cluster) -> None:
    """A temporary failure of an undo does not end the rollback."""
    message = cluster.message(third="fail", undo_third="temporary 99")
    with pytest.raises(MigrationError, match="third broke on alpha"):
        _begin(cluster, message).get(timeout=3)
    assert _undone(_settled(cluster, message)) == WAY_BACK


def test_a_defect_is_a_failure_like_any_other(cluster: Cluster) -> None:
    """An error that nobody foresaw is recorded and rolled back."""
    message = cluster.message(second="defect")
    with pytest.raises(MigrationError, match="in a way nobody foresaw"):
        _begin(cluster, message).get(timeout=20)
    assert _undone(_settled(cluster, message)) == WAY_BACK
