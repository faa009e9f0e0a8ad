"""What people are shown while a process runs and needs the memory of its original."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sojourn import window
from sojourn.model import Plan, State, StepRecord

PLAN = Plan(4242, "alpha", "beta", "post-copy")
RESTORED = StepRecord("restore", "beta", 1.0, 2.0, "process 4242 runs on beta")
SETTLING = StepRecord("settle", "beta", 2.0)
HALF = {"bytes": 5e8, "total": 8e8, "missing": 312_000_000, "faults": 0}
BOTH = "It runs on beta; 312.0 MB still to come from alpha, so both hosts are needed"
WAITED = HALF | {"faults": 158, "wait_median_ms": 0.5, "wait_longest_ms": 6.9}


@pytest.mark.parametrize(
    ("progress", "sentence"),
    [
        ({}, "It runs on beta; memory still to come from alpha, so both hosts are needed."),
        (HALF, f"{BOTH}."),
        (WAITED, f"{BOTH}; it waited for 158 pages, 7 ms at most."),
    ],
    ids=["nothing known yet", "nobody waited", "threads waited"],
)
def test_both_hosts_are_needed(progress: dict[str, Any], sentence: str) -> None:
    """From the restore on, whether or not the pager has reported yet."""
    assert window.sentence(PLAN, [RESTORED, SETTLING], progress) == sentence


def test_only_the_destination_is_needed() -> None:
    """In stop-and-copy the memory is there already, and only comes into place."""
    plan = replace(PLAN, mode="stop-and-copy")
    assert window.sentence(plan, [RESTORED], {}) == ""
    assert window.sentence(plan, [RESTORED], HALF) == (
        "It runs on beta; 312.0 MB still to come into place there."
    )


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [replace(RESTORED, ended=None)],
        [replace(RESTORED, failed=True)],
        [RESTORED, replace(SETTLING, ended=3.0)],
    ],
    ids=["not begun", "not restored yet", "not restored", "all is there"],
)
def test_no_window(steps: list[StepRecord]) -> None:
    """Before the process runs there, and after the last page."""
    assert window.sentence(PLAN, steps, {"bytes": 1, "total": 2}) == ""


def test_a_window_that_was_left_open_by_an_end() -> None:
    """Such as a process that was lost in it: what became of it is said elsewhere."""
    for state in State:
        plain = window.where(PLAN, state, [RESTORED], HALF)
        assert bool(plain) is not state.final


def test_in_a_few_characters() -> None:
    """For a cell of a table."""
    assert window.to_come(HALF) == "312.0 MB to come"
    assert window.to_come({"bytes": 1, "total": 2}) == ""
