"""What control groups do to their members, read from directories like those of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sojourn.system import control_group


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a hierarchy; that of this machine may have none of the controllers."""
    monkeypatch.setattr(control_group, "_top", lambda: tmp_path)
    (tmp_path / "system.slice/one.service").mkdir(parents=True)
    return tmp_path


def test_limits(top: Path) -> None:
    """The nearest limit of each kind counts; the top has none, and ``max`` is none."""
    inner, outer = top / "system.slice/one.service", top / "system.slice"
    for place, name, value in (
        (inner, "pids.max", "77\n"),
        (inner, "memory.max", "max\n"),
        (inner, "cpu.max", "max 100000\n"),
        (inner, "cpuset.cpus", "\n"),
        (outer, "pids.max", "1000\n"),
        (outer, "memory.max", "1073741824\n"),
        (top, "memory.high", "1\n"),
    ):
        (place / name).write_text(value)
    assert control_group.limits(inner) == {"pids.max": "77", "memory.max": "1073741824"}
    assert control_group.limits(top) == {}


def test_no_programs(tmp_path: Path) -> None:
    """A directory that is no control group has none."""
    assert control_group.filters(tmp_path) == set()


def test_a_process_that_is_gone() -> None:
    """It has no group; nor has one whose group cannot be seen from here."""
    assert control_group.of(2**22 + 1) is None
    assert control_group.of(os.getpid()) in {None, control_group.of("self")}
