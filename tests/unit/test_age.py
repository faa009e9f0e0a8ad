"""How far a journal is, and that an older copy of it is recognised."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from sojourn.cluster import age
from sojourn.errors import JournalFailed, JournalLost
from sojourn.model import Phase, Plan, Role
from sojourn.state import commit, mark
from sojourn.state.journal import Journal
from sojourn.state.mark import Mark

PLAN = Plan(4242, "alpha", "beta")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Return an empty journal."""
    return Journal(tmp_path / "journal.db")


def test_each_phase_counts(journal: Journal) -> None:
    """Whoever writes it: the rebuilder too, which writes without this class; facts do not."""
    first = journal.mark()
    entry = journal.open("0123", Role.DESTINATION, PLAN)
    entry = journal.advance(entry, Phase.RESTORING)
    journal.learn(entry, {"tree_bytes": 1})
    connection = commit.connect(str(journal.path))
    assert commit.write(connection, str(journal.path), "0123", "post-restore")
    connection.close()
    assert journal.mark() == Mark(first.identity, first.number + 3)
    assert Journal(journal.path).mark() == journal.mark() == mark.read(journal.path)


def test_two_journals_have_two_identities(journal: Journal, tmp_path: Path) -> None:
    """And a journal keeps its own."""
    assert Journal(tmp_path / "other.db").mark().identity != journal.mark().identity


def test_an_older_copy(journal: Journal, tmp_path: Path) -> None:
    """It is refused, with how much it lacks; the newest one and an empty one are not."""
    entry = journal.open("0123", Role.SOURCE, PLAN)
    copy = Path(shutil.copy(journal.path, tmp_path / "copy.db"))
    shutil.copy(f"{journal.path}-wal", f"{copy}-wal")
    journal.advance(entry, Phase.FREEZING)
    age.keep(tmp_path, journal.mark())
    known = age.kept(tmp_path)
    age.check("alpha", journal.path, journal.mark(), known)
    age.check("alpha", copy, Journal(tmp_path / "new.db").mark(), known)
    with pytest.raises(JournalLost, match=r"copy.db lacks 1 phases that alpha has recorded"):
        age.check("alpha", copy, Journal(copy).mark(), known)


def test_the_journal_of_another_host(journal: Journal, tmp_path: Path) -> None:
    """It is refused, however far it is."""
    for number in range(3):
        journal.open(str(number), Role.SOURCE, PLAN)
    with pytest.raises(JournalLost, match="is not the one that alpha had"):
        age.check("alpha", journal.path, journal.mark(), Mark("another", 1))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"identity": 1, "number": 2}', '{"number": "1"}']
)
def test_a_note_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    """It is none."""
    (tmp_path / age.FILE).write_text(text)
    assert age.kept(tmp_path) is None


@pytest.mark.parametrize("content", [b"damaged", b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_journal(tmp_path: Path, content: bytes) -> None:
    """It is one sentence, whoever opens it, and the file is left as it is."""
    file = tmp_path / "journal.db"
    file.write_bytes(content)
    for open_it in (Journal, mark.read):
        with pytest.raises(JournalFailed) as failed:
            open_it(file)
        assert "recover-a-journal" in failed.value.hint
    assert file.read_bytes() == content


def test_a_page_that_is_damaged(journal: Journal) -> None:
    """What is found only as it is read is the same."""
    for number in range(200):
        journal.open(str(number), Role.SOURCE, PLAN)
    sqlite3.connect(journal.path).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with journal.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (journal.path.stat().st_size - 4096))
    with pytest.raises(JournalFailed):
        Journal(journal.path).unfinished()
