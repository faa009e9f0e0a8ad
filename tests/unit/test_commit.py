"""The commit: what it writes, and what it refuses to write."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from sojourn.model import Phase, Plan, Role
from sojourn.state import commit
from sojourn.state.journal import Journal
from tests.conftest import eventually

PLAN = Plan(4242, "alpha", "beta")
ID = "0123abcd-4567"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Return an empty journal."""
    return Journal(tmp_path / "journal.db")


def _written(journal: Journal, moment: str, migration: str = ID) -> bool:
    with contextlib.closing(commit.connect(str(journal.path))) as connection:
        return commit.write(connection, str(journal.path), migration, moment)


@pytest.mark.parametrize("moment", commit.TRANSITIONS)
@pytest.mark.parametrize("phase", Phase)
def test_every_moment_in_every_phase(journal: Journal, phase: Phase, moment: str) -> None:
    """``accepted`` follows only ``restoring``, ``restored`` only ``accepted``; else it is no."""
    journal.open(ID, Role.DESTINATION, PLAN, phase)
    expected = {
        ("restoring", "post-restore"): Phase.ACCEPTED,
        ("accepted", "post-resume"): Phase.RESTORED,
    }.get((phase, moment))
    assert _written(journal, moment) is bool(expected)
    after = journal.entry(ID, Role.DESTINATION)
    assert after is not None
    assert after.phase is (expected or phase)


def test_the_source_row_is_not_touched(journal: Journal) -> None:
    """Only the destination's row can be committed, whatever the source's row contains."""
    journal.open(ID, Role.SOURCE, PLAN, Phase.RESTORING)
    assert not _written(journal, "post-restore")


@pytest.mark.parametrize("migration", ["ffffffff", "' OR 1=1 --"])
def test_an_unknown_migration(journal: Journal, migration: str) -> None:
    """An unknown migration cannot be committed, and no other is."""
    entry = journal.open(ID, Role.DESTINATION, PLAN, Phase.RESTORING)
    assert not _written(journal, "post-restore", migration)
    assert journal.entry(ID, Role.DESTINATION) == entry


def test_no_journal(tmp_path: Path) -> None:
    """Without a journal there is no answer."""
    with (
        contextlib.closing(commit.connect(str(tmp_path / "journal.db"))) as connection,
        pytest.raises(sqlite3.Error, match="no such table"),
    ):
        commit.write(connection, str(tmp_path / "journal.db"), ID, "post-restore")


def test_only_one_verdict(journal: Journal) -> None:
    """After ``refused`` nothing leads to ``accepted``, and a commit happens once."""
    entry = journal.open(ID, Role.DESTINATION, PLAN, Phase.RESTORING)
    journal.advance(entry, Phase.REFUSED)
    assert not _written(journal, "post-restore")
    other = journal.open("ffffffff", Role.DESTINATION, PLAN, Phase.RESTORING)
    assert [_written(journal, "post-restore", other.id) for _ in range(2)] == [True, False]


def test_a_fail_point_stops_only_migrations_that_it_does_not_list(tmp_path: Path) -> None:
    """A listed one passes and leaves it armed; another one waits until the file is gone."""
    armed, reached = (tmp_path / f"failpoints/accepted.before{end}" for end in ("", ".reached"))
    armed.parent.mkdir()
    armed.write_text(f"ffffffff {ID}\n")
    commit.pause(str(tmp_path / "journal.db"), ID, armed.name)
    assert armed.exists()
    thread = threading.Thread(
        target=commit.pause, args=(str(tmp_path / "journal.db"), "01234567", armed.name)
    )
    thread.start()
    eventually(reached.exists)
    assert thread.is_alive()
    reached.unlink()
    thread.join(10)
    assert not thread.is_alive()
    assert not armed.exists()
