"""A pattern of an operator that would take years on one command line."""

from __future__ import annotations

import pytest

from sojourn.cluster.planfile import from_json
from sojourn.errors import UsageError
from workflows import planning
from workflows.survey import read_trees


def test_a_pattern_that_takes_years(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused after a time, with how to write it; a good one in its place is not."""
    monkeypatch.setattr(planning, "MATCHED_WITHIN_S", 0.3)
    member = {"pid": 7, "command": "a" * 60, "user": 0, "user_name": "root", "cgroup": "/"}
    tree = {"pid": 7, "command": "a", "memory_bytes": 1, "verdict": "", "members": [member]}
    seen = {"alpha": read_trees({"host": "alpha", "trees": [tree]})}
    bad = from_json([{"source": "alpha", "destination": "beta", "command": "(a+)+$b"}])
    with pytest.raises(UsageError, match=r"take longer than 0.3 s") as refused:
        planning._in_time(bad, seen)
    assert "repetitions of repetitions" in refused.value.hint
    good = from_json([{"source": "alpha", "destination": "beta", "command": "^a+$"}])
    (wanted,), wrong, _ = planning._in_time(good, seen)
    assert (wanted.pid, wrong) == (7, [])
