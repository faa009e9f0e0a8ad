"""What a host owes: the notices that it has to deliver, in a file beside its journal.

The end of a migration is written here before it is recorded anywhere else, so that whatever dies
next, it is delivered at least once. The file is not the journal: a slow disk or a full one, or a
receiver that is away for a day, is in no migration's way.

``notice``  one row per notice and target: what is owed, when it is due, and what became of it; kept
            for a while after that, so that the same end is not owed twice
``count``   one row per target and outcome: how many, for metrics
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sojourn.notices.notice import Notice
from sojourn.notices.target import Target
from sojourn.state.commit import connect

SCHEMA = """
CREATE TABLE IF NOT EXISTS notice (
    id TEXT NOT NULL, target TEXT NOT NULL, type TEXT NOT NULL, migration TEXT NOT NULL,
    state TEXT NOT NULL, body TEXT NOT NULL, created REAL NOT NULL, due REAL,
    tries INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (id, target)
) STRICT;
CREATE INDEX IF NOT EXISTS due ON notice (target, due) WHERE due IS NOT NULL;
CREATE TABLE IF NOT EXISTS count (
    target TEXT NOT NULL, outcome TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (target, outcome)
) STRICT;
"""

#: How long a failed attempt is repeated: first after this many seconds, then after twice as many
#: each time, up to the second figure, until the third has passed since the end.
FIRST_S, LONGEST_S, GIVEN_UP_S = 5.0, 600.0, 86_400.0


class Outcome(StrEnum):
    """What came of an attempt."""

    DELIVERED = "delivered"
    #: It is repeated.
    FAILED = "failed"
    #: It is not.
    GIVEN_UP = "given up"


@dataclass(frozen=True)
class Owed:
    """A notice that one target has not received yet, and how often that was tried."""

    notice: Notice
    target: Target
    created: float
    tries: int

    def next_try(self, now: float) -> float | None:
        """Return when to try again after one more failure, None if it is given up."""
        following = now + min(LONGEST_S, FIRST_S * 2 ** min(self.tries, 20))
        return following if following < self.created + GIVEN_UP_S else None


class Outbox:
    """The file of what is owed; any process of the host may use it.

    Every method raises sqlite3.Error, and OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def owe(self, notice: Notice, targets: Iterable[Target]) -> None:
        """Write down that these targets are to receive a notice, unless it is there already."""
        now = time.time()
        rows = [
            (notice.id, each.where, notice.type, notice.migration, notice.state, notice.body)
            for each in targets
        ]
        with self._open() as file:
            file.executemany(
                "INSERT OR IGNORE INTO notice (id, target, type, migration, state, body, created, "
                "due) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(*row, now, now) for row in rows],
            )

    def due(self, target: Target) -> Owed | None:
        """Return the first notice that is due for a target now, None if there is none."""
        with self._open() as file:
            row = file.execute(
                "SELECT id, type, migration, state, body, created, tries FROM notice "
                "WHERE target = ? AND due <= ? ORDER BY due LIMIT 1",
                (target.where, time.time()),
            ).fetchone()
        return None if row is None else Owed(Notice(*row[:5]), target, *row[5:])

    def delivered(self, owed: Owed) -> Outcome:
        """Record that a target has received a notice."""
        return self._settle(owed, None, Outcome.DELIVERED)

    def failed(self, owed: Owed, *, for_good: bool) -> Outcome:
        """Record an attempt that failed; return whether that was the last."""
        following = None if for_good else owed.next_try(time.time())
        return self._settle(owed, following, Outcome.FAILED if following else Outcome.GIVEN_UP)

    def abandon(self, targets: Iterable[Target]) -> list[Owed]:
        """Give up what is owed to others than these, whom the settings do not name any more."""
        named = {target.where for target in targets}
        with self._open() as file:
            rows = file.execute(
                "SELECT id, type, migration, state, body, target, created, tries FROM notice "
                "WHERE due IS NOT NULL"
            ).fetchall()
        left = [
            Owed(Notice(*row[:5]), Target(row[5]), *row[6:]) for row in rows if row[5] not in named
        ]
        for owed in left:
            self._settle(owed, None, Outcome.GIVEN_UP)
        return left

    def forget_old_ones(self, keep_s: float) -> None:
        """Remove what was settled and is older than this."""
        before = time.time() - max(keep_s, GIVEN_UP_S)
        with self._open() as file:
            file.execute("DELETE FROM notice WHERE due IS NULL AND created < ?", (before,))

    def waiting(self) -> dict[str, int]:
        """Return how many notices are owed, by target as the settings have it."""
        return self._numbers("SELECT target, count(due) FROM notice GROUP BY target")

    def counted(self) -> dict[tuple[str, str], int]:
        """Return how many attempts had which outcome, by target and outcome."""
        with self._open() as file:
            rows = file.execute("SELECT target, outcome, number FROM count").fetchall()
        return {(target, outcome): number for target, outcome, number in rows}

    def _numbers(self, query: str) -> dict[str, int]:
        with self._open() as file:
            return dict(file.execute(query).fetchall())

    def _settle(self, owed: Owed, due: float | None, outcome: Outcome) -> Outcome:
        """Record what came of an attempt; a notice that is not due again loses its body."""
        with self._open() as file:
            file.execute("BEGIN IMMEDIATE")
            file.execute(
                "UPDATE notice SET due = ?, tries = tries + 1, body = iif(? IS NULL, '', body) "
                "WHERE id = ? AND target = ?",
                (due, due, owed.notice.id, owed.target.where),
            )
            file.execute(
                "INSERT INTO count VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET number = number + 1",
                (owed.target.where, outcome),
            )
            file.execute("COMMIT")
        return outcome

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # For each use: an end is rare, and a connection must not cross a fork or a thread.
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.closing(connect(str(self.path))) as connection:
            connection.executescript(SCHEMA)
            yield connection
