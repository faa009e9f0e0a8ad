"""The audit trail: who asked for what, when, from where, and whether it was done.

Each host writes down what it was asked, in a file of its own for each day (UTC), to which it only
appends: nobody who can write to Redis can change it. A copy goes to Redis for people, sealed by the
host that wrote it; it can be hidden there, and not forged.

Keys:

``sojourn:audit``  stream: one entry per request, ``id`` and ``entry`` (sealed JSON); keeps the last
                   ten thousand
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sojourn.cluster import records
from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import StoreUnreachable
from sojourn.model import Json
from sojourn.system.caller import Caller
from sojourn.text import one_line

log = logging.getLogger("sojourn.audit")

STREAM, KEPT = "sojourn:audit", 10_000

#: What seals name an entry.
ENTRY = "audit entry"

#: How large the file of a day may become, and how long a text of an entry: a crowd of requests must
#: not fill the disk that the journal needs.
MOST_BYTES, LONGEST = 64_000_000, 300

#: The name of a day's file.
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.jsonl")

#: What becomes of a request.
ACCEPTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True)
class Entry:
    """One request.

    ``id`` names the entry; ``at`` is in seconds since the epoch by the clock of ``host``, which
    recorded it. ``user``, ``uid``, ``came_from`` and ``via`` are what the caller claims
    (``sojourn.system.caller``). ``subject`` is the migration, batch or host that it is about, and
    ``why`` the reason of a refusal.
    """

    id: str
    at: float
    host: str
    user: str
    uid: int | None
    came_from: str
    via: str
    action: str
    subject: str
    what: str
    outcome: str
    why: str = ""

    @property
    def caller(self) -> Caller:
        """Who asked, as they claim."""
        return Caller(self.user, self.uid, self.came_from, self.via)

    def to_json(self) -> Json:
        """Return the entry as ``--json`` gives it, with its time by ISO 8601 too."""
        when = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds")
        return {"time": when, **asdict(self)}


class Trail:
    """The audit trail of one host, and the copy of all hosts' in Redis."""

    def __init__(self, store: Store, directory: Path, host: str) -> None:
        self._store, self._sealed = store, Sealed(store)
        self._directory, self._host = directory, host

    def record(
        self, caller: Caller, action: str, subject: str, what: str = "", refused: str = ""
    ) -> None:
        """Write down a request, which was accepted unless ``refused`` has the reason.

        What cannot be written down is logged; the request goes on.
        """
        entry = Entry(
            id=str(uuid.uuid4()),
            at=time.time(),
            host=self._host,
            user=caller.user,
            uid=caller.uid,
            came_from=caller.host,
            via=caller.via,
            action=_short(action),
            subject=_short(subject),
            what=_short(what),
            outcome=REFUSED if refused else ACCEPTED,
            why=_short(refused),
        )
        log.info("%s asks to %s %s: %s", caller, entry.action, entry.subject, entry.outcome)
        try:
            self._append(json.dumps(asdict(entry)))
        except OSError as error:
            log.error("It is not in this host's audit trail: %s", error)
        with contextlib.suppress(StoreUnreachable):
            self._copy(entry)

    def own(self, since: float = 0.0) -> Iterator[Entry]:
        """Yield what this host has recorded since then, oldest first. Raises OSError."""
        for file in self._files():
            if _end_of(file) > since:
                yield from _entries(file, since)

    def copies(self, since: float = 0.0) -> list[Entry]:
        """Return what all hosts have copied to Redis since then, oldest first.

        Without what nobody has sealed. Raises StoreUnreachable.
        """
        found = {}
        for fields in self._store.newest(STREAM, KEPT):
            name, text = fields.get("id", ""), fields.get("entry", "")
            entry = records.of(Entry, self._sealed.content(ENTRY, name, text))
            if entry and entry.at >= since:
                found[name] = entry  # what somebody has put there twice counts once
        return sorted(found.values(), key=lambda entry: entry.at)

    def forget(self, before: float) -> None:
        """Remove the files of the days that ended before then."""
        for file in self._files():
            if _end_of(file) < before:
                # Somebody may have made it unchangeable: chattr(1).
                with contextlib.suppress(OSError):
                    file.unlink()

    def _append(self, line: str) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._directory / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"
        # One write at the end of the file, so that the lines of several processes do not mix.
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.fstat(handle).st_size > MOST_BYTES:
                raise OSError(f"{file} is full")
            os.write(handle, f"{line}\n".encode())
            os.fdatasync(handle)
        finally:
            os.close(handle)

    def _copy(self, entry: Entry) -> None:
        sealed = self._sealed.text(ENTRY, entry.id, asdict(entry))
        self._store.write(
            [["XADD", STREAM, "MAXLEN", "~", KEPT, "*", "id", entry.id, "entry", sealed]]
        )

    def _files(self) -> list[Path]:
        try:
            # Not by a pattern, which would find nothing in a directory that may not be read.
            files = sorted(self._directory.iterdir())
        except FileNotFoundError:
            return []
        return [file for file in files if DAY.fullmatch(file.name)]


def _short(text: str) -> str:
    return one_line(text)[:LONGEST]


def _entries(file: Path, since: float) -> Iterator[Entry]:
    """Yield the entries of a day; a line that a crash has torn is left out."""
    with file.open(errors="replace") as lines:
        for line in lines:
            entry = records.read(Entry, line)
            if entry and entry.at >= since:
                yield entry


def _end_of(file: Path) -> float:
    """Return when the day of a file ended, in seconds since the epoch; 0 if it is of no day."""
    try:
        day = datetime.strptime(file.stem, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    return (day + timedelta(days=1)).timestamp()
