"""When a lane counts as deaf, by a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.migration.context import Host
from sojourn.settings import Settings
from workers.host import Vital
from workers.lane import DEAF_S


@pytest.fixture
def now() -> list[float]:
    """Give out a clock, which stands at the one number of a list."""
    return [1000.0]


@pytest.fixture
def vital(tmp_path: Path, now: list[float]) -> Vital:
    """Return what shows whether the children of a worker do their work, which has just begun."""
    places = {"state_dir": tmp_path, "runtime_dir": tmp_path / "run"}
    given = {"host": "alpha", "key": "k" * 32, "redis_url": "redis://127.0.0.1:1"}
    made = Vital(Host(Settings.model_validate(given | places)), lambda: now[0])
    for lane in ("main", "frozen"):
        made.hearing.note(lane)
    return made


def test_a_lane_that_hangs(
    vital: Vital, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """It is deaf after a while, which is logged once, and no more when it listens again."""
    now[0] += DEAF_S
    vital.hearing.note("main")
    assert not vital.has_deaf_lanes()
    now[0] += 1
    assert vital.has_deaf_lanes()
    assert vital.has_deaf_lanes()
    assert [line.getMessage()[:11] for line in caplog.records] == ["Lane frozen"]
    vital.hearing.note("frozen")
    assert not vital.has_deaf_lanes()


def test_lanes_after_a_cut(vital: Vital, now: list[float]) -> None:
    """They have as long to come back, once this process reaches Redis again; not for ever."""
    now[0] += DEAF_S - 2
    vital.note_away()
    now[0] += DEAF_S - 2
    assert not vital.has_deaf_lanes()
    now[0] += 3
    assert vital.has_deaf_lanes()
