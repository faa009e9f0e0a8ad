"""What a host believes of a message, and when it knows that the other host lives."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from sojourn.migration import answers
from sojourn.migration.context import Host, Migration
from sojourn.model import Phase, Plan, Role, Verdict
from sojourn.settings import Settings
from sojourn.state.facts import Facts

ID = "11111111-2222-3333-4444-555555555555"
PLAN = Plan(2**22, "alpha", "beta", mode="post-copy")


def made(place: Path, name: str, **given: Any) -> Migration:
    """Return a migration as it stands on a host whose Redis does not answer."""
    settings = {"host": name, "key": "k" * 32, "redis_url": "redis://127.0.0.1:1"}
    places = {"state_dir": place / name, "runtime_dir": place / name / "run"}
    host = Host(Settings.model_validate(settings | places | given))
    return Migration(host, host.journal.open(ID, PLAN.role_of(name), PLAN))


@pytest.fixture
def source(tmp_path: Path) -> Migration:
    """Return the migration on alpha."""
    return made(tmp_path, "alpha")


@pytest.fixture
def destination(tmp_path: Path) -> Migration:
    """Return the migration on beta."""
    return made(tmp_path, "beta")


def test_what_each_host_answers(source: Migration, destination: Migration) -> None:
    """What its own journal says, whatever it was told; the other host believes that alone."""
    told = Facts(verdict=Verdict.RESTORED, source_phase=Phase.RETIRED, original_gone=True)
    for migration in (source, destination):
        assert answers.believed(migration, told) == {}
    # By these a destination would end the process, or take one of its own for part of it.
    of_a_restore = Facts(memory_lost=0, lost_at=1.0, fenced=True, settled_at=1.0, occupied=[])
    assert answers.believed(destination, of_a_restore) == {}
    assert answers.believed(source, of_a_restore) == of_a_restore
    destination.become(Phase.REFUSED)
    heard = answers.believed(source, told | answers.given(destination))
    assert (heard["verdict"], heard["unsettled"]) == (Verdict.REFUSED, False)
    assert "source_phase" not in heard
    source.learn(original_gone=True)
    source.become(Phase.RESUMED)
    heard = answers.believed(destination, answers.given(source))
    assert (heard["source_phase"], heard["original_gone"]) == (Phase.RESUMED, True)


def test_a_fenced_destination_has_refused(destination: Migration, source: Migration) -> None:
    """It had the process, which an operator has given back."""
    for phase in (Phase.RESTORING, Phase.ACCEPTED, Phase.RESTORED):
        destination.become(phase)
    assert answers.believed(source, answers.given(destination))["verdict"] == Verdict.RESTORED
    destination.learn(fenced=True)
    assert answers.believed(source, answers.given(destination))["verdict"] == Verdict.REFUSED


def test_what_a_host_notes_for_itself(source: Migration, destination: Migration) -> None:
    """It comes from no message; and an answer counts as a sign of life when it comes first."""
    before = time.time()
    said = answers.given(destination)
    forged = Facts(heard_at=1.0, answered_at=1e12, resolution_refused=1e12)
    source.learn(**answers.believed(source, said | forged))
    assert before <= source.host.journal.heard_at("beta") <= time.time()
    assert "resolution_refused" not in source.facts
    assert "heard_at" not in answers.believed(source, said)
    assert source.host.journal.heard_at("gamma") == 0


def decided(at: float, **more: Any) -> Facts:
    """Return what an operator decides: beta is dead."""
    known = Facts(resolved=Role.DESTINATION, resolved_by="ann@hub", resolved_at=at)
    return known | cast("Facts", more)


def test_a_word_that_was_refused(source: Migration, destination: Migration) -> None:
    """It counts never again, when the host has long been silent too; a later one does."""
    source.learn(**answers.believed(source, answers.given(destination)))
    assert source.refuses_resolution(decided(100.0))
    long_ago = time.time() - source.host.settings.patience_s - 1
    source.learn(heard_at=long_ago)
    assert source.refuses_resolution(decided(100.0))
    assert source.refuses_resolution(decided(99.0))
    assert not source.refuses_resolution(decided(101.0))
    assert not source.refuses_resolution(decided(100.0, resolved_by_force=True))


def test_a_word_on_this_host_itself(source: Migration, destination: Migration) -> None:
    """Whoever was declared dead does not judge that; nor anybody by another migration's host."""
    source.learn(**answers.believed(source, answers.given(destination)))
    assert not source.refuses_resolution(decided(100.0) | Facts(resolved=Role.SOURCE))
    other = replace(PLAN, destination="gamma")
    entry = source.host.journal.open("22222222", Role.SOURCE, other)
    assert not Migration(source.host, entry).refuses_resolution(decided(100.0))
