"""The reconciler: one row that it cannot judge keeps no other from being judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.migration.context import Host, Migration
from sojourn.migration.recovery import Move, next_move
from sojourn.model import Phase, Plan, Role
from sojourn.settings import Settings
from workers import reconciler
from workers.reconciler import Reconciler


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a host whose Redis does not answer."""
    given = {"host": "alpha", "key": "k" * 32, "redis_url": "redis://127.0.0.1:1"}
    places = {"state_dir": tmp_path, "runtime_dir": tmp_path / "run", "patience_s": 0.001}
    return Host(Settings.model_validate(given | places))


def test_a_row_that_cannot_be_judged(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of ours is stood in for; the other row is resumed though it comes later."""
    odd, other = (
        host.journal.open(name, Role.SOURCE, Plan(2**22, "alpha", "beta")) for name in "ab"
    )

    def judged(migration: Migration, still_s: float, *, given_up: bool) -> Move:
        if migration.id == odd.id:
            raise KeyError("a defect")
        return next_move(migration, still_s, given_up=given_up)

    monkeypatch.setattr(reconciler, "next_move", judged)
    Reconciler(host).look()
    now = {entry.id: entry.phase for entry in host.journal.since(0)}
    assert now == {odd.id: Phase.OPEN, other.id: Phase.RESUMED}
    assert "The row could not be judged" in caplog.text
    assert "a defect" in caplog.text
