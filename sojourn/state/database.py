"""The file of a journal: its tables, and how it is written.

``migration``  one row per migration and role: plan, phase, facts of other hosts, the frozen tree
``step``       one row per step that ran here: times, outcome or failure
``held``       one row per thing that must be given back: a mount, a frozen tree, a slot
``passed``     one row per phase that was logged, so that it is logged once, whoever wrote the phase
``host``       one row: the identity of this journal, and how many phases were written to it
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sojourn.errors import JournalFailed
from sojourn.model import Untyped
from sojourn.state.commit import connect

SCHEMA = """
CREATE TABLE IF NOT EXISTS migration (
    id TEXT NOT NULL, role TEXT NOT NULL, phase TEXT NOT NULL, plan TEXT NOT NULL,
    facts TEXT NOT NULL DEFAULT '{}', tree TEXT NOT NULL DEFAULT '[]',
    created REAL NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (id, role)
) STRICT;
CREATE TABLE IF NOT EXISTS step (
    id TEXT NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL,
    started REAL NOT NULL, ended REAL, outcome TEXT NOT NULL DEFAULT '',
    facts TEXT NOT NULL DEFAULT '{}', failure TEXT,
    PRIMARY KEY (id, role, name)
) STRICT;
CREATE TABLE IF NOT EXISTS held (
    id TEXT NOT NULL, role TEXT NOT NULL, kind TEXT NOT NULL, what TEXT NOT NULL,
    PRIMARY KEY (id, role, kind, what)
) STRICT;
CREATE TABLE IF NOT EXISTS passed (
    id TEXT NOT NULL, role TEXT NOT NULL, phase TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (id, role, phase)
) STRICT;
CREATE TABLE IF NOT EXISTS host (identity TEXT NOT NULL, number INTEGER NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS opened AFTER INSERT ON migration
    BEGIN UPDATE host SET number = number + 1; END;
CREATE TRIGGER IF NOT EXISTS advanced AFTER UPDATE OF phase ON migration
    BEGIN UPDATE host SET number = number + 1; END;
"""

#: Of several processes that open a new journal at once, one names it.
NAME_IT = """
INSERT INTO host SELECT lower(hex(randomblob(16))), 0 WHERE NOT EXISTS (SELECT 1 FROM host)
"""


#: What to do about a journal that cannot be read.
DAMAGED = (
    "Check the disk and the file system of `state_dir`. If the file is damaged for good, follow "
    "docs/how-to/recover-a-journal.md before you remove it."
)


class Database(sqlite3.Connection):
    """The connection to a journal, which turns SQLite's errors into JournalFailed."""

    def execute(self, statement: str, values: Untyped = (), /) -> sqlite3.Cursor:
        """Run one statement. Raises JournalFailed."""
        try:
            return super().execute(statement, values)
        except sqlite3.DatabaseError as error:
            raise _failed(error) from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all or nothing. Raises JournalFailed."""
        # IMMEDIATE waits for the write lock before anything is read. A transaction that read first
        # would fail with SQLITE_BUSY, however long the time-out, if another process wrote meanwhile
        # (https://www.sqlite.org/isolation.html).
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        finally:
            # Left by an error, Ctrl-C or an alarm; SQLite itself rolls back when the disk is full.
            if self.in_transaction:
                self.execute("ROLLBACK")

    @contextlib.contextmanager
    def in_order(self) -> Iterator[None]:
        """Write without a sync: it is on the disk before whatever is written later, but not yet."""
        # In WAL mode NORMAL skips the sync at a commit; the next commit under FULL syncs all of it.
        self.execute("PRAGMA synchronous=NORMAL")
        try:
            yield
        finally:
            self.execute("PRAGMA synchronous=FULL")


def opened(path: Path) -> Database:
    """Open the file, with its tables. Raises JournalFailed."""
    try:
        database = connect(str(path), Database)
        database.executescript(SCHEMA)
        # Read first: a statement that writes would wait for whoever writes now.
        if not database.execute("SELECT 1 FROM host").fetchone():
            database.execute(NAME_IT)
    except sqlite3.DatabaseError as error:
        raise _failed(error) from None
    assert isinstance(database, Database)
    return database


def _failed(error: sqlite3.DatabaseError) -> JournalFailed:
    if isinstance(error, sqlite3.OperationalError):
        hint = "Check whether the disk of `state_dir` is full or mounted read-only."
    else:
        hint = DAMAGED
    return JournalFailed(f"The journal of this host failed: {error}.", hint)
