"""A pipeline compiled into a Celery canvas, on two real workers: the way there, the ways back."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from celery import chord, group

from sojourn.cluster.account import Account
from sojourn.errors import MigrationError
from sojourn.model import State
from sojourn.state.message import Message
from tests.conftest import eventually
from tests.integration.conftest import HOSTS, Cluster
from tests.integration.steps import PIPELINE, let_go, marker
from workflows.canvas import CONCLUDE, ROLL_BACK, forward

#: The undos in the order in which they must be done.
WAY_BACK = ["undo_third@alpha", "undo_first@alpha", "undo_second@beta", "undo_first@beta"]

#: Where a migration can fail: the step, the hosts that fail in it. A ``Both`` fails on either side,
#: at any link of one, and on both at once.
POSITIONS = [
    *(("zeroth", ["alpha"]), ("zeroth", ["beta"])),
    *(("first", ["alpha"]), ("first", ["beta"]), ("first", ["alpha", "beta"])),
    *(("second", ["beta"]), ("third", ["alpha"])),
    *(("fourth", ["alpha"]), ("fourth", ["beta"]), ("fourth", ["alpha", "beta"])),
    ("fifth", ["alpha"]),
]

#: Pairs of tasks that fail at once on the two sides of a ``Both``.
PAIRS = [
    *(("first", "first"), ("second", "first")),
    *(("fourth", "fourth"), ("fourth", "fifth")),
]


def _begin(cluster: Cluster, message: Message) -> Any:
    """Send the whole pipeline, as ``workflows.start`` does; return the answer to wait for."""
    cluster.ledger.open(message.id, message.plan)
    forward(PIPELINE, message, errback="test.roll_back").apply_async()
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
    shared = cluster.app.conf.task_default_queue
    for queue in ("alpha", "alpha.frozen", "beta", "beta.frozen", shared):
        assert marker.s("after").set(queue=queue).apply_async().get(timeout=10) == "after"
    return cluster.acts(message)


def _is_idle(cluster: Cluster) -> bool:
    workers = [f"main@{host}" for host in HOSTS]
    active = cluster.app.control.inspect(destination=workers).active() or {}
    return len(active) == len(HOSTS) and not any(active.values())


def _undone(acts: list[str]) -> list[str]:
    return [act for act in acts if act.startswith("undo")]


def test_the_way_there(cluster: Cluster) -> None:
    """Each step is done once, on its host, in its order; facts of both hosts arrive at the end."""
    message = cluster.message()
    result = _begin(cluster, message).get(timeout=20)
    acts = _settled(cluster, message)
    assert acts[:2] == ["zeroth@alpha", "zeroth@beta"]
    assert sorted(acts[2:5]) == ["first@alpha", "first@beta", "second@beta"]
    assert acts.index("first@beta") < acts.index("second@beta") < acts.index("third@alpha") == 5
    assert sorted(acts[6:]) == ["fifth@alpha", "fourth@alpha", "fourth@beta"]
    assert acts.index("fourth@alpha") < acts.index("fifth@alpha")
    assert (result["state"], result["owner"], result["id"]) == ("completed", "beta", message.id)
    assert result["failure"] is None
    assert Counter(step["name"] for step in result["steps"])["test_fourth"] == 2
    assert _account(cluster, message).state is State.COMPLETED


def test_two_hosts_work_side_by_side(cluster: Cluster) -> None:
    """One side of a ``Both`` goes on while the other one waits; what follows waits for both."""
    message = cluster.message(**{"first@alpha": "wait"})
    _begin(cluster, message)
    eventually(lambda: "second@beta" in cluster.acts(message))
    eventually(lambda: "first@alpha" in cluster.acts(message))
    assert "third@alpha" not in _passed(cluster, message)
    let_go(cluster.place, message.id)
    eventually(lambda: "fifth@alpha" in cluster.acts(message))


def test_each_step_is_a_task_on_its_hosts_queue(cluster: Cluster) -> None:
    """Celery's own chain and chord, each task by its own name, with its own time limit."""
    canvas = forward(PIPELINE, cluster.message())
    assert _shape(canvas) == [
        ("sojourn.test_zeroth", "alpha", 32.5),
        ("sojourn.test_zeroth", "beta", 32.5),
        [
            [("sojourn.test_first", "beta", 32.5), ("sojourn.test_second", "beta", 32.5)],
            [("sojourn.test_first", "alpha", 32.5)],
        ],
        ("sojourn.test_third", "alpha.frozen", 32.5),
        [
            [("sojourn.test_fourth", "beta", 32.5)],
            [("sojourn.test_fourth", "alpha", 32.5), ("sojourn.test_fifth", "alpha", 32.5)],
        ],
        ("sojourn.conclude", None, None),
    ]


def test_a_worker_knows_what_the_canvas_names(cluster: Cluster) -> None:
    """The last link and the errback are linked by name: a worker refuses an unknown task."""
    names = cluster.app.control.inspect(destination=["main@alpha"]).registered()["main@alpha"]
    assert {CONCLUDE, ROLL_BACK} <= set(names)


def _shape(canvas: Any) -> list[Any]:
    """Return a canvas as a list of tasks; what is done side by side as a list of such lists."""
    if isinstance(canvas, chord):
        return [_sides(canvas.tasks), *_shape(canvas.body)]
    if isinstance(canvas, group):
        return [_sides(canvas.tasks)]
    if canvas.task == "celery.chain":
        return [shape for task in canvas.tasks for shape in _shape(task)]
    return [(canvas.task, canvas.options.get("queue"), canvas.options.get("time_limit"))]


def _sides(tasks: Any) -> list[Any]:
    return [_shape(task) for task in getattr(tasks, "tasks", tasks)]


def test_no_step_has_a_second_alarm(cluster: Cluster) -> None:
    """Celery's soft limit could come while the failure by the step's own limit is recorded."""
    text = json.dumps(forward(PIPELINE, cluster.message()))
    assert "time_limit" in text
    assert "soft_time_limit" not in text


def test_a_step_is_tried_again_by_itself(cluster: Cluster) -> None:
    """What was done before it is not done twice, also on one side of a ``Both``."""
    message = cluster.message(second="temporary 2")
    assert _begin(cluster, message).get(timeout=20)["state"] == "completed"
    acts = Counter(_settled(cluster, message))
    assert (acts["first@beta"], acts["second@beta"], acts["third@alpha"]) == (1, 3, 1)


def test_a_step_gives_up(cluster: Cluster) -> None:
    """It has as many attempts as its policy permits, and its failure names it."""
    message = cluster.message(second="temporary 99")
    with pytest.raises(MigrationError, match="second has no room on beta"):
        _begin(cluster, message).get(timeout=20)
    acts = _settled(cluster, message)
    assert (acts.count("first@beta"), acts.count("second@beta"), _undone(acts)) == (1, 3, WAY_BACK)
    failure = _account(cluster, message).failure
    assert failure is not None
    assert (failure.step, failure.host) == ("test_second", "beta")


def test_facts_are_handed_on(cluster: Cluster) -> None:
    """What one host finds is in the other's journal when its turn comes, many steps later too."""
    message = cluster.message()
    _begin(cluster, message).get(timeout=20)
    entries = {entry.id: entry for entry in cluster.journal("alpha").unfinished()}
    facts: Any = entries[message.id].facts
    assert facts["second_destination"] == "beta"
    assert facts["zeroth_destination"] == "beta"


@pytest.mark.parametrize(("step", "hosts"), POSITIONS, ids=str)
def test_the_way_back(cluster: Cluster, step: str, hosts: list[str]) -> None:
    """Wherever it fails, everything is undone once, last first, and the caller gets the reason."""
    message = cluster.message(**{f"{step}@{host}": "fail" for host in hosts})
    answer = _begin(cluster, message)
    with pytest.raises(MigrationError) as caught:
        answer.get(timeout=20)
    acts = _settled(cluster, message)
    assert _undone(acts) == WAY_BACK
    error, account = caught.value, _account(cluster, message)
    assert error.message in {f"{step} broke on {host} The process runs on alpha." for host in hosts}
    assert (error.hint, error.state, error.owner) == ("mend it", "rolled back", "alpha")
    assert error.migration == message.id
    assert account.state is State.ROLLED_BACK
    assert account.failure is not None
    assert (account.failure.code, account.failure.step) == ("COMMAND_FAILED", f"test_{step}")
    assert account.failure.host in hosts


@pytest.mark.parametrize(("step", "hosts"), POSITIONS, ids=str)
def test_the_errback_is_called_once(cluster: Cluster, step: str, hosts: list[str]) -> None:
    """Wherever it fails, also on both sides of a ``Both``, the rollback is started exactly once."""
    message = cluster.message(**{f"{step}@{host}": "fail" for host in hosts})
    with pytest.raises(MigrationError):
        _begin(cluster, message).get(timeout=20)
    assert _settled(cluster, message).count("roll_back") == 1


@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_two_header_tasks_fail_at_once(cluster: Cluster, there: str, here: str) -> None:
    """Both sides of a ``Both`` fail, at whatever link: still one rollback."""
    message = cluster.message(**{f"{there}@beta": "fail", f"{here}@alpha": "fail"})
    with pytest.raises(MigrationError):
        _begin(cluster, message).get(timeout=20)
    acts = _settled(cluster, message)
    assert acts.count("roll_back") == 1
    assert _undone(acts) == WAY_BACK


def test_nothing_follows_a_failure(cluster: Cluster) -> None:
    """Steps behind the one that failed are not done."""
    message = cluster.message(second="fail")
    with pytest.raises(MigrationError):
        _begin(cluster, message).get(timeout=20)
    assert not {"third@alpha", "fourth@alpha", "fourth@beta"} & set(_settled(cluster, message))


@pytest.mark.parametrize("undo", ["undo_third", "undo_second", "undo_first@beta"])
@pytest.mark.parametrize("how", ["fail", "defect"])
def test_an_undo_that_fails(cluster: Cluster, undo: str, how: str) -> None:
    """The others are tried all the same, it becomes pending, and the first failure stays."""
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
    """An error without a class of its own is recorded and rolled back."""
    message = cluster.message(second="defect")
    with pytest.raises(MigrationError, match="by a defect of Sojourn"):
        _begin(cluster, message).get(timeout=20)
    assert _undone(_settled(cluster, message)) == WAY_BACK
