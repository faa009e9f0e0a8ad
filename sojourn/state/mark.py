"""How far a journal is: by its mark an older copy is told from the newest one."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

from sojourn.errors import JournalFailed
from sojourn.model import Json
from sojourn.state.database import DAMAGED


@dataclass(frozen=True)
class Mark:
    """How far a journal is: its identity, made with it, and how many phases it has written."""

    identity: str
    number: int

    def to_json(self) -> Json:
        """Return it as it is kept."""
        return asdict(self)

    @classmethod
    def of(cls, kept: object) -> Mark | None:
        """Return a mark that was kept, None if there is none that can be read."""
        if not isinstance(kept, dict):
            return None
        identity, number = kept.get("identity"), kept.get("number")
        if not isinstance(identity, str) or type(number) is not int:
            return None
        return cls(identity, number)


def read(journal: Path) -> Mark | None:
    """Return the mark of a journal without changing it; None if there is no journal.

    Raises JournalFailed for one that cannot be read.
    """
    if not journal.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
            row = database.execute("SELECT identity, number FROM host").fetchone()
    except sqlite3.DatabaseError as error:
        raise JournalFailed(f"{journal} cannot be read: {error}.", DAMAGED) from None
    return Mark(*row) if row else None
