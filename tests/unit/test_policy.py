"""How long a step may take, and how long it waits before it is tried again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sojourn.model import Phase, Plan
from sojourn.state.message import Outcome
from tasks.policy import HARD_LIMIT_AFTER_S, LONGEST_BACK_OFF_S, HostStep

PLAN = Plan(4242, "alpha", "beta", max_freeze_s=120)


def _step(*, in_freeze: bool = False) -> HostStep:
    return HostStep("dump", lambda _: Outcome("done"), 30, in_freeze=in_freeze)


def test_the_name_of_a_steps_task() -> None:
    """Operators find it in Flower by this name, and messages in flight are addressed to it."""
    assert _step().task_name == "sojourn.dump"


def test_a_step_outside_the_freeze_has_its_own_limit() -> None:
    """The plan's freeze does not lengthen it."""
    assert _step().limit_s(PLAN) == 30


def test_a_step_in_the_freeze_may_take_as_long_as_the_freeze_may_last() -> None:
    """Its own deadline is what it gets beyond that."""
    assert _step(in_freeze=True).limit_s(PLAN) == 150


@pytest.mark.parametrize("in_freeze", [False, True])
def test_celery_ends_a_step_only_after_its_own_limits(in_freeze: bool) -> None:
    """Else one that waited for the lock would be killed before it can record that it timed out."""
    step = _step(in_freeze=in_freeze)
    assert step.hard_limit_s(PLAN) == step.patience_s + step.limit_s(PLAN) + HARD_LIMIT_AFTER_S
    assert step.patience_s == 15


def test_a_step_begins_before_the_freeze_by_default() -> None:
    """A step that may begin later says so: a late message of any other one does nothing."""
    assert set(_step().begins_in) == {Phase.OPEN, Phase.RESERVED}


@pytest.mark.parametrize(("retries", "expected_s"), [(0, 0.5), (1, 1), (3, 4), (5, 15), (1000, 15)])
def test_back_off_doubles_up_to_its_limit(retries: int, expected_s: float) -> None:
    """With a jitter of a quarter to either side."""
    for _ in range(100):
        assert 0.75 * expected_s <= _step().back_off_s(retries) <= 1.25 * expected_s
    assert _step().back_off_s(retries) <= 1.25 * LONGEST_BACK_OFF_S


def test_a_step_may_come_back_sooner() -> None:
    """While nobody watches, something may happen that must be seen."""
    often = replace(_step(), longest_back_off_s=0.5)
    assert often.back_off_s(1000) <= 1.25 * 0.5


def test_back_offs_differ() -> None:
    """Migrations that failed for want of the same slot do not all come back at once."""
    assert len({_step().back_off_s(2) for _ in range(10)}) > 1
