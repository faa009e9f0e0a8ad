"""The journal: what this host knows of its migrations, on its own disk. The journals are the truth.

One SQLite file per host, with four tables:

``migration``  one row per migration and role: plan, phase, facts of other hosts, the frozen tree, the verdict
``step``       one row per step that ran here: times, outcome or failure
``held``       one row per thing that must be given back: a mount, a frozen tree, a slot
``passed``     one row per phase that was logged: each is one line of the log, whoever wrote the phase

A phase is written *before* the act that it permits, and only by compare-and-set. It is on the disk before the call
returns. What a step tells of itself, and was told, comes to the disk with the next phase at the latest, since SQLite's
log keeps its order (https://www.sqlite.org/pragma.html#pragma_synchronous): a frozen tree need not wait for that. A
worker that dies loses none of it. A host that dies may lose the last of it, and has lost what it tells of, too: the
tree, or the images in a tmpfs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sojourn.commit import compare_and_set, connect, pause
from sojourn.errors import JournalFailed, PhaseConflict, Temporary
from sojourn.log import STEP
from sojourn.model import Failure, Json, Member, Outcome, Phase, Plan, Role, StepRecord

log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS migration (
    id TEXT NOT NULL, role TEXT NOT NULL, phase TEXT NOT NULL, plan TEXT NOT NULL,
    facts TEXT NOT NULL DEFAULT '{}', tree TEXT NOT NULL DEFAULT '[]',
    created REAL NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (id, role)
) STRICT;
CREATE TABLE IF NOT EXISTS step (
    id TEXT NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, started REAL NOT NULL,
    ended REAL, outcome TEXT NOT NULL DEFAULT '', facts TEXT NOT NULL DEFAULT '{}', failure TEXT,
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
"""

#: The columns that make up an Entry, behind its id and role.
COLUMNS = "phase, plan, facts, tree, created, updated"

FIRST_PHASE = {Role.SOURCE: Phase.OPEN, Role.DESTINATION: Phase.RESERVED}

#: What may follow what. Anything else is a PhaseConflict, whoever asks.
PERMITTED = {
    Phase.OPEN: {Phase.FREEZING, Phase.RESUMED},
    Phase.FREEZING: {Phase.FROZEN, Phase.RESUMED},
    Phase.FROZEN: {Phase.RELEASED, Phase.RESUMED},
    Phase.RELEASED: {Phase.RETIRED, Phase.RESUMED},
    Phase.RESERVED: {Phase.RESTORING, Phase.REFUSED},
    Phase.RESTORING: {Phase.ACCEPTED, Phase.REFUSED},
    Phase.ACCEPTED: {Phase.RESTORED, Phase.REFUSED},  # see sojourn.arrival.refuse
}


@dataclass(frozen=True)
class Entry:
    """One migration as this host's journal had it at one instant."""

    id: str
    role: Role
    phase: Phase
    plan: Plan
    facts: Json
    tree: tuple[Member, ...]
    created: float
    updated: float


@dataclass(frozen=True)
class StepTimes:
    """Some steps of one name that took up to ``bound`` seconds, but longer than the bound before; None: longer."""

    name: str
    failed: bool
    bound: float | None
    count: int
    sum_s: float


class _Database(sqlite3.Connection):
    """The connection to a journal. It says in our words what SQLite can not do: the disk may be full."""

    def execute(self, statement: str, values: Any = (), /) -> sqlite3.Cursor:  # noqa: ANN401  (SQLite's own signature)
        """Run one statement. Raises JournalFailed."""
        try:
            return super().execute(statement, values)
        except sqlite3.OperationalError as error:
            raise _failed(error) from None


def _failed(error: sqlite3.OperationalError) -> JournalFailed:
    return JournalFailed(
        f"The journal of this host failed: {error}.", "Is the disk full, or mounted read-only? See `state_dir`."
    )


class Journal:
    """The journal of this host. Each process opens its own; SQLite keeps them apart."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        try:
            self._db = connect(str(path), _Database)
            self._db.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            raise _failed(error) from None

    def open(self, migration: str, role: Role, plan: Plan, phase: Phase | None = None) -> Entry:
        """Make the row of a migration, in its role's first phase unless told otherwise; keep it if it is there."""
        now, first = time.time(), phase or FIRST_PHASE[role]
        with self._transaction():
            made = self._db.execute(
                "INSERT OR IGNORE INTO migration (id, role, phase, plan, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
                (migration, role, first, json.dumps(plan.to_json()), now, now),
            ).rowcount
            passed = self._note(migration, role, [first] if made else [])
        entry = self.entry(migration, role)
        assert entry is not None  # noqa: S101  (rows are never deleted)
        _log(entry, passed)
        return entry

    def entry(self, migration: str, role: Role) -> Entry | None:
        """Return the row as it stands, or None for a migration that this host has never heard of."""
        row = self._db.execute(
            f"SELECT {COLUMNS} FROM migration WHERE id = ? AND role = ?",  # noqa: S608  (a constant)
            (migration, role),
        ).fetchone()
        return _entry(migration, role, *row) if row else None

    def unfinished(self) -> list[Entry]:
        """Return the rows whose phase is not final, and those that still hold something; the stillest first."""
        rows = self._db.execute(
            f"SELECT id, role, {COLUMNS} FROM migration "  # noqa: S608  (a constant)
            "WHERE phase NOT IN (SELECT value FROM json_each(?)) OR (id, role) IN (SELECT id, role FROM held) "
            "ORDER BY updated",
            (json.dumps([phase for phase in Phase if phase.final]),),
        )
        return [_entry(migration, Role(role), *rest) for migration, role, *rest in rows]

    def since(self, earliest: float) -> list[Entry]:
        """Return the rows of migrations that began after ``earliest`` (seconds since the epoch), oldest first."""
        rows = self._db.execute(
            f"SELECT id, role, {COLUMNS} FROM migration WHERE created > ? ORDER BY created",  # noqa: S608  (a constant)
            (earliest,),
        )
        return [_entry(migration, Role(role), *rest) for migration, role, *rest in rows]

    def known(self, entry: Entry) -> Json:
        """Return all facts that this host knows of a migration: what it was told, and what its own steps found."""
        rows = self._db.execute(
            "SELECT facts FROM step WHERE id = ? AND role = ? ORDER BY started", (entry.id, entry.role)
        )
        known = dict(entry.facts)
        for (facts,) in rows:
            known |= json.loads(facts)
        return known

    def advance(self, entry: Entry, phase: Phase) -> Entry:
        """Write the next phase by compare-and-set; durable when this returns.

        Raises PhaseConflict if the rules do not permit it, or if someone else wrote first.
        """
        self.pause(f"{phase}.before")
        permitted = phase in PERMITTED.get(entry.phase, ())
        with self._transaction():
            written = permitted and compare_and_set(self._db, entry.id, entry.role, entry.phase, phase)
            passed = self._note(entry.id, entry.role, [entry.phase, phase] if written else [])
        if not written:
            now = self.entry(entry.id, entry.role)
            raise PhaseConflict(
                f"Migration {entry.id} can not become {phase} here: it is {now.phase if now else 'unknown'}."
            )
        _log(entry, passed)
        self.pause(f"{phase}.after")
        return self._again(entry)

    def witness(self, entry: Entry) -> None:
        """Log what another program wrote, CRIU's action script, if nobody has done so yet. Raises JournalFailed."""
        if self._last_passed(entry.id, entry.role) is not entry.phase:
            with self._transaction():
                passed = self._note(entry.id, entry.role, [entry.phase])
            _log(entry, passed)

    def passed(self, migration: str, role: Role) -> list[Phase]:
        """Return the phases that a migration has passed here and that were logged, in their order."""
        rows = self._db.execute("SELECT phase FROM passed WHERE id = ? AND role = ? ORDER BY rowid", (migration, role))
        return [Phase(phase) for (phase,) in rows]

    def _last_passed(self, migration: str, role: Role) -> Phase | None:
        return next(reversed(self.passed(migration, role)), None)

    def _note(self, migration: str, role: Role, phases: Sequence[Phase]) -> list[tuple[Phase | None, Phase]]:
        """Note phases as passed, with those that must have been passed on the way; return what is to be logged."""
        last, noted = self._last_passed(migration, role), []
        for phase in phases:
            for each in _way(last, phase):
                self._db.execute(
                    "INSERT OR IGNORE INTO passed VALUES (?, ?, ?, ?)", (migration, role, each, time.time())
                )
                noted.append((last, each))
                last = each
        return noted

    def pause(self, instant: str) -> None:
        """Stand still at a named instant if a test asked for it (``sojourn.commit.pause``)."""
        pause(str(self.path), instant)

    def learn(self, entry: Entry, facts: Json) -> Entry:
        """Keep what other hosts or earlier steps said of this migration."""
        self._db.execute(
            "UPDATE migration SET facts = json_patch(facts, ?), updated = ? WHERE id = ? AND role = ?",
            (json.dumps(facts), time.time(), entry.id, entry.role),
        )
        return self._again(entry)

    def record_tree(self, entry: Entry, tree: Iterable[Member]) -> Entry:
        """Keep which processes make up the tree, so that nobody else's are ever resumed or killed."""
        members = json.dumps([member.to_json() for member in tree])
        self._db.execute("UPDATE migration SET tree = ? WHERE id = ? AND role = ?", (members, entry.id, entry.role))
        return self._again(entry)

    def claim_tree(self, entry: Entry, tree: Sequence[Member]) -> str | None:
        """Hold a tree for this migration, or return the id of the migration that holds a process of it already."""
        with self._transaction():
            other = self.claimant(tree, but=entry.id)
            if other is None:
                self.record_tree(entry, tree)
                self.hold(entry, "tree", "frozen")
        return other

    def claimant(self, tree: Sequence[Member], *, but: str) -> str | None:
        """Return the id of a migration, other than ``but``, that holds one of these processes; None if none does."""
        ours = {member.identity for member in tree}
        rows = self._db.execute(
            "SELECT id, tree FROM migration JOIN held USING (id, role) WHERE kind = 'tree' AND id <> ?", (but,)
        )
        for other, members in rows:
            if ours & {Member.from_json(member).identity for member in json.loads(members)}:
                return str(other)
        return None

    def start_step(self, entry: Entry, name: str, host: str, facts: Json) -> Entry:
        """Keep what it was told, and that a step begins now, in one write; a new attempt replaces the old one's row."""
        with self._in_order(), self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO step (id, role, name, host, started) VALUES (?, ?, ?, ?, ?)",
                (entry.id, entry.role, name, host, time.time()),
            )
            return self.learn(entry, facts)

    def finish_step(self, entry: Entry, name: str, outcome: Outcome) -> None:
        """Note that a step is done; a second delivery of it is answered with this outcome."""
        with self._in_order():
            self._db.execute(
                "UPDATE step SET ended = ?, outcome = ?, facts = ? WHERE id = ? AND role = ? AND name = ?",
                (time.time(), outcome.sentence, json.dumps(outcome.facts), entry.id, entry.role, name),
            )

    def fail_step(self, entry: Entry, name: str, failure: Failure) -> None:
        """Note that a step failed for good."""
        with self._in_order():
            self._db.execute(
                "UPDATE step SET ended = ?, outcome = ?, failure = ? WHERE id = ? AND role = ? AND name = ?",
                (time.time(), failure.message, json.dumps(asdict(failure)), entry.id, entry.role, name),
            )

    def outcome(self, entry: Entry, name: str) -> Outcome | None:
        """Return the recorded outcome of a step that is done, None for one that is not."""
        row = self._db.execute(
            "SELECT outcome, facts FROM step WHERE id = ? AND role = ? AND name = ? "
            "AND ended IS NOT NULL AND failure IS NULL",
            (entry.id, entry.role, name),
        ).fetchone()
        return Outcome(row[0], json.loads(row[1])) if row else None

    def steps(self, migration: str) -> list[StepRecord]:
        """Return the steps of a migration that ran here, in the order in which they began."""
        rows = self._db.execute(
            "SELECT name, host, started, ended, outcome, failure IS NOT NULL FROM step WHERE id = ? ORDER BY started",
            (migration,),
        )
        return [
            StepRecord(name, host, started, ended, outcome, failed=bool(failed))
            for name, host, started, ended, outcome, failed in rows
        ]

    def hold(self, entry: Entry, kind: str, what: str) -> None:
        """Note a thing *before* it is taken, so that it is given back whoever dies in between."""
        self._db.execute(
            "INSERT OR IGNORE INTO held (id, role, kind, what) VALUES (?, ?, ?, ?)",
            (entry.id, entry.role, kind, what),
        )

    def let_go(self, entry: Entry, kind: str, what: str) -> None:
        """Note that a thing was given back."""
        self._db.execute(
            "DELETE FROM held WHERE id = ? AND role = ? AND kind = ? AND what = ?",
            (entry.id, entry.role, kind, what),
        )

    def held(self, entry: Entry, kind: str) -> list[str]:
        """Return the things of one kind that this migration still holds here."""
        rows = self._db.execute(
            "SELECT what FROM held WHERE id = ? AND role = ? AND kind = ? ORDER BY rowid",
            (entry.id, entry.role, kind),
        )
        return [what for (what,) in rows]

    def all_held(self) -> dict[str, int]:
        """Return how many things of each kind this host must give back."""
        return dict(self._db.execute("SELECT kind, count(*) FROM held GROUP BY kind").fetchall())

    def frozen_since(self) -> float | None:
        """Return when the dump of the oldest tree began that is held frozen here, None if none is."""
        (began,) = self._db.execute(
            "SELECT min(started) FROM step JOIN held USING (id, role) WHERE kind = 'tree' AND name = 'dump'"
        ).fetchone()
        return None if began is None else float(began)

    def step_times(self, bounds: Sequence[float]) -> list[StepTimes]:
        """Return how many steps of each name have ended here within each bound, in seconds, and their sum."""
        rows = self._db.execute(
            "SELECT name, failure IS NOT NULL, (SELECT min(value) FROM json_each(?) WHERE value >= ended - started), "
            "count(*), sum(max(0, ended - started)) FROM step WHERE ended IS NOT NULL GROUP BY 1, 2, 3",
            (json.dumps(list(bounds)),),
        )
        return [StepTimes(name, bool(failed), bound, count, total) for name, failed, bound, count, total in rows]

    def take_slot(self, entry: Entry, slots: int) -> bool:
        """Take one of this host's places for a frozen tree; False if all are taken. Taking it again is harmless."""
        with self._transaction():
            (taken,) = self._db.execute(
                "SELECT count(*) FROM held WHERE kind = 'slot' AND NOT (id = ? AND role = ?)",
                (entry.id, entry.role),
            ).fetchone()
            if taken < slots:
                self.hold(entry, "slot", "freeze")
        return bool(taken < slots)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has rolled it back already
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _in_order(self) -> Iterator[None]:
        """Let what is written here be on the disk before whatever is written later, and not at once."""
        self._db.execute("PRAGMA synchronous=NORMAL")
        try:
            yield
        finally:
            self._db.execute("PRAGMA synchronous=FULL")

    def _again(self, entry: Entry) -> Entry:
        now = self.entry(entry.id, entry.role)
        assert now is not None  # noqa: S101  (rows are never deleted)
        return now


@contextlib.contextmanager
def lock(path: Path, deadline_s: float) -> Iterator[None]:
    """Keep two deliveries for one migration on this host apart; the kernel lets go when the holder dies.

    Raises Temporary if another delivery still holds it at the deadline.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    until = time.monotonic() + deadline_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > until:
                raise Temporary(f"Another delivery of the same migration has been at work for {deadline_s:g} s.")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _way(last: Phase | None, phase: Phase) -> list[Phase]:
    """Return the phases from behind one to another, the shortest way; what it was opened as, if nothing is known."""
    if last is phase:
        return []
    following = PERMITTED.get(last, set()) if last else set()
    if last is None or phase in following:
        return [phase]
    ways = [[each, *way] for each in sorted(following) if (way := _way(each, phase))]
    return min(ways, key=len, default=[])


def _log(entry: Entry, passed: Iterable[tuple[Phase | None, Phase]]) -> None:
    """Log each change of phase once: one event, with the migration's id, which is the same on both hosts."""
    host = entry.plan.host_of(entry.role)
    for before, after in passed:
        told = f"from {before} to {after}" if before else f"opened as {after}"
        context = {"migration": entry.id, "host": host, "step": STEP.get(), "role": str(entry.role)}
        log.info("%s: %s", host, told, extra={**context, "from": before and str(before), "to": str(after)})


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _entry(
    migration: str, role: Role, phase: str, plan: str, facts: str, tree: str, created: float, updated: float
) -> Entry:
    members = tuple(Member.from_json(member) for member in json.loads(tree))
    return Entry(migration, role, Phase(phase), _plan(plan), json.loads(facts), members, created, updated)


@lru_cache(maxsize=64)
def _plan(text: str) -> Plan:
    """Return a plan as it was written once; a row is read many times while its migration moves."""
    return Plan.from_json(json.loads(text))
