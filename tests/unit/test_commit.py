"""The commit, run as CRIU runs it: a program of its own that imports nothing of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sojourn import commit
from sojourn.journal import Journal
from sojourn.model import Phase, Plan, Role
from sojourn.run import Argument, Completed, run

PLAN = Plan(4242, "alpha", "beta")
ID = "0123abcd-4567"


def _commit(journal: Path, moment: str, migration: str = ID) -> Completed:
    argv: list[Argument] = [sys.executable, "-I", "-S", commit.__file__, journal, migration, moment]
    return run(argv, deadline_s=10, check=False)


@pytest.mark.parametrize("moment", ["post-restore", "post-resume"])
@pytest.mark.parametrize("phase", Phase)
def test_each_moment_in_each_phase(tmp_path: Path, phase: Phase, moment: str) -> None:
    """``accepted`` is written from ``restoring`` only and ``restored`` from ``accepted`` only; else exit code 1."""
    journal = Journal(tmp_path / "journal.db")
    journal.open(ID, Role.DESTINATION, PLAN, phase)
    written = {
        ("restoring", "post-restore"): Phase.ACCEPTED,
        ("accepted", "post-resume"): Phase.RESTORED,
    }.get((phase, moment))
    assert _commit(journal.path, moment).returncode == (0 if written else 1)
    after = journal.entry(ID, Role.DESTINATION)
    assert after is not None
    assert after.phase is (written or phase)


def test_the_source_row_is_not_touched(tmp_path: Path) -> None:
    """Only the destination's row can be committed, whatever stands in the source's."""
    journal = Journal(tmp_path / "journal.db")
    journal.open(ID, Role.SOURCE, PLAN, Phase.RESTORING)
    assert _commit(journal.path, "post-restore").returncode == 1


@pytest.mark.parametrize("migration", ["ffffffff", "' OR 1=1 --"])
def test_an_unknown_migration(tmp_path: Path, migration: str) -> None:
    """What the journal does not know can not be committed, and commits nothing else."""
    journal = Journal(tmp_path / "journal.db")
    entry = journal.open(ID, Role.DESTINATION, PLAN, Phase.RESTORING)
    assert _commit(journal.path, "post-restore", migration).returncode == 1
    assert journal.entry(ID, Role.DESTINATION) == entry


def test_no_journal(tmp_path: Path) -> None:
    """Where there is no journal at all the answer is no."""
    assert _commit(tmp_path / "journal.db", "post-restore").returncode == 1


def test_another_moment(tmp_path: Path) -> None:
    """A moment that is not ours is an error, not a yes."""
    journal = Journal(tmp_path / "journal.db")
    journal.open(ID, Role.DESTINATION, PLAN, Phase.RESTORING)
    assert _commit(journal.path, "pre-restore").returncode == 1


def test_only_one_verdict(tmp_path: Path) -> None:
    """After ``refused`` was written there is no way to ``accepted``, and the commit happens once."""
    journal = Journal(tmp_path / "journal.db")
    entry = journal.open(ID, Role.DESTINATION, PLAN, Phase.RESTORING)
    journal.advance(entry, Phase.REFUSED)
    assert _commit(journal.path, "post-restore").returncode == 1
    other = journal.open("ffffffff", Role.DESTINATION, PLAN, Phase.RESTORING)
    assert [_commit(journal.path, "post-restore", other.id).returncode for _ in range(2)] == [0, 1]
