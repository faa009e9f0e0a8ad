"""``sojourn.trace`` on two real workers: a host reads its own journal and its own logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sojourn.criu.course import STOP
from sojourn.model import Phase, Role
from sojourn.state.message import Message, Outcome
from tests.integration.conftest import PLAN, Cluster
from tests.integration.test_logs import caller
from tests.unit.test_course import DUMP
from workflows.profile import traces_of

__all__ = ["caller"]


def _migration(cluster: Cluster) -> Message:
    """Return a migration of which alpha has a dump, with its log."""
    message = cluster.message()
    journal = cluster.journal("alpha")
    entry = journal.open(message.id, Role.SOURCE, PLAN)
    entry = journal.start_step(entry, "dump", "alpha", {"images_at": 9.0})
    entry = journal.advance(entry, Phase.FREEZING)
    journal.finish_step(entry, "dump", Outcome("dumped", {"freeze_started": 7.0, "pids": [1]}))
    log = cluster.settings("alpha").runtime_dir / message.id / "work" / "dump.log"
    log.parent.mkdir(parents=True)
    log.write_text(DUMP)
    os.utime(log, (1000.0, 1000.0))
    return message


def test_a_host_sends_its_trace(caller: Cluster) -> None:
    """Steps, phases, instants and the course of CRIU; the result does not stay in Redis."""
    message = _migration(caller)
    found = traces_of(message.id, ["alpha", "beta"])
    alpha, beta = found["alpha"], found["beta"]
    assert alpha is not None
    assert beta is not None
    assert [(step.name, step.outcome) for step in alpha.steps] == [("dump", "dumped")]
    assert list(alpha.phases) == ["open", "freezing"]
    assert alpha.facts == {"images_at": 9.0, "freeze_started": 7.0}
    assert [(course.verb, course.parts[0].name) for course in alpha.courses] == [("dump", STOP)]
    assert alpha.courses[0].opened == pytest.approx(1000 - 0.0655)
    assert alpha.figures == {}
    assert (beta.steps, beta.courses) == ((), ())
    kept = caller.app.backend.client.keys("celery-task-meta-*")
    assert not [key for key in kept if "sojourn.trace" in str(key)]


def test_an_id_is_not_used_as_a_path(caller: Cluster) -> None:
    """Only logs of migrations in the journal are read, whatever other files there are."""
    outside = Path(caller.settings("alpha").runtime_dir).parent / "outside" / "work"
    outside.mkdir(parents=True, exist_ok=True)
    (outside / "dump.log").write_text(DUMP)
    found = traces_of("../outside", ["alpha"])["alpha"]
    assert found is not None
    assert found.courses == ()


def test_a_host_that_does_not_answer(caller: Cluster) -> None:
    """It is None, and the other's trace is there all the same."""
    message = _migration(caller)
    caller.workers["beta"].kill()
    found = traces_of(message.id, ["alpha", "beta"])
    assert found["beta"] is None
    assert found["alpha"] is not None
