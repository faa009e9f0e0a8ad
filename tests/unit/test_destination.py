"""What a destination does with processes that are there, on real ones of this machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.errors import PhaseConflict, Temporary
from sojourn.migration import destination, life, recovery, settling
from sojourn.migration.context import Host, Migration
from sojourn.model import Phase, Plan, Role
from sojourn.settings import Settings
from sojourn.state.facts import Facts
from sojourn.system import process
from sojourn.transfer import pager

ID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def began() -> int:
    """Return the instant before which nothing of this test was made."""
    return process.ticks_since_boot()


@pytest.fixture
def child(began: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that stands for a restored tree."""
    with subprocess.Popen(["sleep", "1000"]) as running:
        yield running
        running.kill()


@pytest.fixture
def plan() -> Plan:
    """Return what was asked for."""
    return Plan(4242, "alpha", "beta")


@pytest.fixture
def migration(tmp_path: Path, began: int, child: subprocess.Popen[bytes], plan: Plan) -> Migration:
    """Return a migration that was restored here, and that an operator gave to the source."""
    host = Host(
        Settings.model_validate(
            {
                "host": "beta",
                "key": "k" * 32,
                "state_dir": tmp_path,
                "runtime_dir": tmp_path / "run",
            }
        )
    )
    entry = host.journal.open(ID, Role.DESTINATION, plan)
    made = Migration(host, entry)
    for phase in (Phase.RESTORING, Phase.ACCEPTED, Phase.RESTORED):
        made.become(phase)
    facts: Facts = {
        "pids": [child.pid],
        "needed_pids": [child.pid],
        "occupied": [],
        "restore_began": began,
        "restore_boot": process.boot_id(),
    }
    made.learn(**facts)
    return made


def _give_to_source(migration: Migration) -> None:
    migration.learn(resolved=Role.DESTINATION, source_phase=Phase.RESUMED)


def test_what_runs_on_the_source_is_ended_here(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """Once, and a second time there is nothing left to end."""
    _give_to_source(migration)
    assert destination.fence(migration) == 1
    assert child.wait(5) == -9
    assert destination.fence(migration) == 0
    assert migration.host.journal.unfinished() == []


def test_the_worker_died_before_it_ended_the_tree(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """What was written before the kill does not keep the next delivery from it."""
    _give_to_source(migration)
    migration.host.journal.hold(migration.entry, *destination.FENCED)
    migration.learn(fenced=True)
    assert destination.fence(migration) == 1
    assert child.wait(5) == -9


def test_the_reconciler_ends_what_a_dead_worker_left(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """The row is held until the tree is ended, and so it is found."""
    _give_to_source(migration)
    migration.host.journal.hold(migration.entry, *destination.FENCED)
    migration.learn(fenced=True)
    (entry,) = migration.host.journal.unfinished()
    assert recovery.next_move(Migration(migration.host, entry), 1000) is recovery.Move.FINISH
    assert "1 process ended here" in recovery.finish(Migration(migration.host, entry))
    assert child.wait(5) == -9
    assert migration.host.journal.unfinished() == []


def test_nothing_is_ended_without_an_operator(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """A tree that runs is ended for nobody else."""
    with pytest.raises(PhaseConflict):
        destination.fence(migration)
    assert child.poll() is None


def test_a_process_that_lives_on(migration: Migration) -> None:
    """It is watched for a moment, and nothing is reported."""
    assert life.watch(migration, time.time()) == {}


def test_a_process_that_ended_before_the_watch(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """That it ended is known, how is not: nobody held it."""
    child.kill()
    child.wait()
    ended = life.watch(migration, time.time())
    assert ended["ended_by"] == ""
    assert ended["ended_after_ms"] >= 0


def test_a_tree_whose_pids_are_unknown(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """In a PID namespace of its own it has other PIDs here, so nothing is said of it."""
    migration.learn(needed_pids=[])
    child.kill()
    child.wait()
    assert life.watch(migration, time.time()) == {}


def _is_coming(migration: Migration) -> None:
    """Have the memory of the tree on its way, as far as the journal knows."""
    migration.host.journal.hold(migration.entry, *settling.ARRIVING)
    migration.learn(lazy=True)


def test_the_worker_died_before_it_ended_what_is_lost(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """Until that is ended its pager is kept, and the source is not told that it needs no more."""
    _is_coming(migration)
    migration.learn(memory_lost=4096, lost_with_original=False)
    with pytest.raises(Temporary):
        migration.clear()
    assert recovery.known_end(migration) == {}
    (entry,) = migration.host.journal.unfinished()
    assert recovery.next_move(Migration(migration.host, entry), 1000) is recovery.Move.FINISH
    assert "4096 bytes" in recovery.finish(Migration(migration.host, entry))
    assert child.wait(5) == -9
    migration.refresh()
    assert not migration.is_unsettled()
    assert migration.host.journal.unfinished() == []


@pytest.mark.parametrize("plan", [Plan(4242, "alpha", "beta", mode="post-copy")])
def test_the_original_is_gone_after_the_last_page(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """Nothing is lost, though the pager has not reported that yet."""
    _is_coming(migration)
    migration.directory.work.mkdir(parents=True)
    assert settling.is_broken(migration)
    (migration.directory.work / pager.GONE).touch()
    (migration.directory.work / pager.FILLED).touch()
    assert not settling.is_broken(migration)
    assert not migration.is_unsettled()
    assert child.poll() is None
