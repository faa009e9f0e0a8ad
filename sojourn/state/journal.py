"""The journal: this host's record of its migrations, on its own disk. The journals are the truth.

One SQLite file per host (``sojourn.state.database`` has its tables): each migration with its phase
and facts (``sojourn.state.entry``), its steps, what it holds, and which phases were logged.

A phase is written *before* the action that it permits, and only by compare-and-set. It is on the
disk before the call returns. What a step received and reported is on the disk with the next phase
at the latest, since SQLite's log keeps its order
(https://www.sqlite.org/pragma.html#pragma_synchronous): a frozen tree need not wait for a sync of
its own. A worker that dies loses none of it. A host that dies may lose the last of it, but then it
has also lost what that describes: the tree, or the images in a tmpfs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sojourn.errors import PhaseConflict
from sojourn.log import STEP
from sojourn.model import Failure, Member, Phase, Plan, Role, StepRecord
from sojourn.state import database
from sojourn.state.commit import compare_and_set, pause
from sojourn.state.entry import COLUMNS, Entry
from sojourn.state.facts import Facts
from sojourn.state.mark import Mark
from sojourn.state.message import Outcome
from sojourn.state.phases import FIRST_PHASE, PERMITTED, way

log = logging.getLogger("sojourn.journal")


@dataclass(frozen=True)
class StepTimes:
    """The steps of one name that took up to ``bound`` seconds and more than the previous bound.

    Without a ``bound`` they took longer than the last one.
    """

    name: str
    failed: bool
    bound: float | None
    count: int
    sum_s: float


class Journal:
    """The journal of this host. Every process opens its own; SQLite serializes their writes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._db = database.opened(path)

    def mark(self) -> Mark:
        """Return how far this journal is."""
        return Mark(*self._db.execute("SELECT identity, number FROM host").fetchone())

    def open(self, migration: str, role: Role, plan: Plan, phase: Phase | None = None) -> Entry:
        """Create the row of a migration, by default in its role's first phase, unless it exists."""
        now, first = time.time(), phase or FIRST_PHASE[role]
        with self._db.transaction():
            made = self._db.execute(
                "INSERT OR IGNORE INTO migration (id, role, phase, plan, created, updated) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (migration, role, first, json.dumps(plan.to_json()), now, now),
            ).rowcount
            passed = self._note(migration, role, [first] if made else [])
        entry = self.entry(migration, role)
        assert entry is not None
        _log(entry, passed)
        return entry

    def entry(self, migration: str, role: Role) -> Entry | None:
        """Return the current row, or None for a migration that this host does not know."""
        row = self._db.execute(
            f"SELECT {COLUMNS} FROM migration WHERE id = ? AND role = ?",  # noqa: S608  (a constant)
            (migration, role),
        ).fetchone()
        return Entry.from_row(migration, role, *row) if row else None

    def unfinished(self) -> list[Entry]:
        """Return the rows that are not final or still hold something, longest idle first."""
        rows = self._db.execute(
            f"SELECT id, role, {COLUMNS} FROM migration "  # noqa: S608  (a constant)
            "WHERE phase NOT IN (SELECT value FROM json_each(?)) "
            "OR (id, role) IN (SELECT id, role FROM held) ORDER BY updated",
            (json.dumps([phase for phase in Phase if phase.final]),),
        )
        return [Entry.from_row(migration, Role(role), *rest) for migration, role, *rest in rows]

    def since(self, earliest: float) -> list[Entry]:
        """Return the rows created after ``earliest`` (seconds since the epoch), oldest first."""
        rows = self._db.execute(
            f"SELECT id, role, {COLUMNS} FROM migration "  # noqa: S608  (a constant)
            "WHERE created > ? ORDER BY created",
            (earliest,),
        )
        return [Entry.from_row(migration, Role(role), *rest) for migration, role, *rest in rows]

    def known(self, entry: Entry) -> Facts:
        """Return all facts of a migration: those received, and those that its own steps found."""
        rows = self._db.execute(
            "SELECT facts FROM step WHERE id = ? AND role = ? ORDER BY started",
            (entry.id, entry.role),
        )
        known = self._again(entry).facts
        for (facts,) in rows:
            known |= json.loads(facts)
        return known

    def advance(self, entry: Entry, phase: Phase, facts: Facts | None = None) -> Entry:
        """Write the next phase by compare-and-set; durable when this returns.

        ``facts`` that others find with the phase are written with it: each write waits for the
        disk.

        Raises PhaseConflict if ``PERMITTED`` does not allow it, or if another process wrote first.
        """
        self.pause(entry.id, f"{phase}.before")
        permitted = phase in PERMITTED.get(entry.phase, ())
        with self._db.transaction():
            written = permitted and compare_and_set(
                self._db, entry.id, entry.role, entry.phase, phase
            )
            passed = self._note(entry.id, entry.role, [entry.phase, phase] if written else [])
            if written and facts:
                self.learn(entry, facts)
        if not written:
            now = self.entry(entry.id, entry.role)
            raise PhaseConflict(
                f"Migration {entry.id} cannot become {phase} here: "
                f"it is {now.phase if now else 'unknown'}."
            )
        # Logged after the commit: no line may claim a phase that is not on the disk.
        _log(entry, passed)
        self.pause(entry.id, f"{phase}.after")
        return self._again(entry)

    def log_phase(self, entry: Entry) -> None:
        """Log the phase that the rebuilder wrote, unless logged. Raises JournalFailed."""
        if self._last_passed(entry.id, entry.role) is not entry.phase:
            with self._db.transaction():
                # The row has not changed since, or whoever changed it would have logged the phase.
                passed = self._note(entry.id, entry.role, [entry.phase], entry.updated)
            _log(entry, passed)

    def passed(self, migration: str, role: Role) -> list[Phase]:
        """Return the phases of a migration that were logged here, in their order."""
        rows = self._db.execute(
            "SELECT phase FROM passed WHERE id = ? AND role = ? ORDER BY rowid", (migration, role)
        )
        return [Phase(phase) for (phase,) in rows]

    def phase_times(self, entry: Entry) -> dict[str, float]:
        """Return when the phases of a migration were logged here, in seconds since the epoch.

        Those that the rebuilder writes are logged by the step that waits for it.
        """
        rows = self._db.execute(
            "SELECT phase, at FROM passed WHERE id = ? AND role = ? ORDER BY rowid",
            (entry.id, entry.role),
        )
        return dict(rows.fetchall())

    def _last_passed(self, migration: str, role: Role) -> Phase | None:
        return next(reversed(self.passed(migration, role)), None)

    def _note(
        self, migration: str, role: Role, phases: Sequence[Phase], at: float | None = None
    ) -> list[tuple[Phase | None, Phase]]:
        """Record phases as passed, and those that must have come between; return what to log.

        ``at`` is when they were written, if that was not now.
        """
        at = at or time.time()
        last, noted = self._last_passed(migration, role), []
        for phase in phases:
            for following in way(last, phase):
                self._db.execute(
                    "INSERT OR IGNORE INTO passed VALUES (?, ?, ?, ?)",
                    (migration, role, following, at),
                )
                noted.append((last, following))
                last = following
        return noted

    def pause(self, migration: str, instant: str) -> None:
        """Wait at a fail point if a test has armed it (``sojourn.state.commit.pause``)."""
        pause(str(self.path), migration, instant)

    def heard_at(self, peer: str) -> float:
        """Return when the last answer of another host came, on any migration; 0 if none has."""
        (heard,) = self._db.execute(
            "SELECT max(json_extract(facts, '$.heard_at')) FROM migration "
            "WHERE ? IN (json_extract(plan, '$.source'), json_extract(plan, '$.destination'))",
            (peer,),
        ).fetchone()
        return float(heard or 0)

    def learn(self, entry: Entry, facts: Facts) -> Entry:
        """Record what other hosts or earlier steps reported of this migration."""
        self._db.execute(
            # json_patch deletes a fact that is null (RFC 7396): so facts that are spent leave the
            # row.
            "UPDATE migration SET facts = json_patch(facts, ?), updated = ? "
            "WHERE id = ? AND role = ?",
            (json.dumps(facts), time.time(), entry.id, entry.role),
        )
        return self._again(entry)

    def learn_unsynced(self, entry: Entry, facts: Facts) -> Entry:
        """Record facts that a crash of this host may take along, without waiting for its disk."""
        with self._db.in_order():
            return self.learn(entry, facts)

    def record_tree(self, entry: Entry, tree: Iterable[Member]) -> Entry:
        """Record the processes of the tree, so that no other process is ever resumed or killed."""
        members = json.dumps([member.to_json() for member in tree])
        self._db.execute(
            "UPDATE migration SET tree = ? WHERE id = ? AND role = ?",
            (members, entry.id, entry.role),
        )
        return self._again(entry)

    def claim_tree(self, entry: Entry, tree: Sequence[Member]) -> str | None:
        """Hold a tree for this migration, or return the id of one that holds a process of it."""
        with self._db.transaction():
            # One transaction, since two migrations of overlapping trees may get here at once.
            other = self.claimant(tree, but=entry.id)
            if other is None:
                self.record_tree(entry, tree)
                self.hold(entry, "tree", "frozen")
        return other

    def claimant(self, tree: Sequence[Member], *, but: str) -> str | None:
        """Return the id of a migration, other than ``but``, that holds one of these processes."""
        ours = {member.identity for member in tree}
        pids = {who.pid for who in ours}
        rows = self._db.execute(
            "SELECT id, kind, tree, facts FROM migration JOIN held USING (id, role) "
            "WHERE kind IN ('tree', 'arriving') AND id <> ?",
            (but,),
        )
        for other, kind, members, facts in rows:
            if ours & {Member.from_json(member).identity for member in json.loads(members)}:
                return str(other)
            # A tree that arrives here was recorded by its source, with other start times.
            if kind == "arriving" and pids & set(json.loads(facts).get("pids", [])):
                return str(other)
        return None

    def start_step(self, entry: Entry, name: str, host: str, facts: Facts) -> Entry:
        """Record that a step begins, with the facts it received, in one write.

        A new attempt replaces the row of the previous one.
        """
        # In this order: SQLite refuses to change ``synchronous`` inside a transaction.
        with self._db.in_order(), self._db.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO step (id, role, name, host, started) "
                "VALUES (?, ?, ?, ?, ?)",
                (entry.id, entry.role, name, host, time.time()),
            )
            return self.learn(entry, facts)

    def finish_step(self, entry: Entry, name: str, outcome: Outcome) -> None:
        """Record that a step is done; a second delivery of it is answered with this outcome."""
        with self._db.in_order():
            self._db.execute(
                "UPDATE step SET ended = ?, outcome = ?, facts = ? "
                "WHERE id = ? AND role = ? AND name = ?",
                (
                    time.time(),
                    outcome.sentence,
                    json.dumps(outcome.facts),
                    entry.id,
                    entry.role,
                    name,
                ),
            )

    def fail_step(self, entry: Entry, name: str, failure: Failure) -> None:
        """Record that a step failed permanently."""
        with self._db.in_order():
            self._db.execute(
                "UPDATE step SET ended = ?, outcome = ?, failure = ? "
                "WHERE id = ? AND role = ? AND name = ?",
                (
                    time.time(),
                    failure.message,
                    json.dumps(asdict(failure)),
                    entry.id,
                    entry.role,
                    name,
                ),
            )

    def outcome(self, entry: Entry, name: str) -> Outcome | None:
        """Return the recorded outcome of a step that is done; None if it is not."""
        row = self._db.execute(
            "SELECT outcome, facts FROM step WHERE id = ? AND role = ? AND name = ? "
            "AND ended IS NOT NULL AND failure IS NULL",
            (entry.id, entry.role, name),
        ).fetchone()
        return Outcome(row[0], json.loads(row[1])) if row else None

    def steps(self, migration: str) -> list[StepRecord]:
        """Return the steps of a migration that ran here, in the order in which they began."""
        rows = self._db.execute(
            "SELECT name, host, started, ended, outcome, failure IS NOT NULL FROM step "
            "WHERE id = ? ORDER BY started",
            (migration,),
        )
        return [
            StepRecord(name, host, started, ended, outcome, failed=bool(failed))
            for name, host, started, ended, outcome, failed in rows
        ]

    def hold(self, entry: Entry, kind: str, what: str) -> None:
        """Record a thing *before* it is taken: then it is given back whatever dies in between."""
        self._db.execute(
            "INSERT OR IGNORE INTO held (id, role, kind, what) VALUES (?, ?, ?, ?)",
            (entry.id, entry.role, kind, what),
        )

    def hold_in_memory(self, entry: Entry, kind: str, things: Iterable[str]) -> None:
        """Record things before they are made in memory: a crash of the host takes all of it."""
        with self._db.in_order(), self._db.transaction():
            for what in things:
                self.hold(entry, kind, what)

    def let_go(self, entry: Entry, kind: str, what: str) -> None:
        """Record that a thing was given back."""
        self._db.execute(
            "DELETE FROM held WHERE id = ? AND role = ? AND kind = ? AND what = ?",
            (entry.id, entry.role, kind, what),
        )

    def let_go_all(self, entry: Entry, kind: str) -> None:
        """Record that all things of one kind were given back, or need not be any more."""
        self._db.execute(
            "DELETE FROM held WHERE id = ? AND role = ? AND kind = ?", (entry.id, entry.role, kind)
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
        """Return when the dump of the oldest tree held here began; None if none is held.

        Without the originals that are kept for what runs elsewhere: those of ``kept_since``.
        """
        return self._dumped_since(kept=False)

    def kept_since(self) -> float | None:
        """Return when the dump of the oldest original began that post-copy needs; None without."""
        return self._dumped_since(kept=True)

    def _dumped_since(self, *, kept: bool) -> float | None:
        (began,) = self._db.execute(
            "SELECT min(started) FROM step JOIN held USING (id, role) "
            "JOIN migration USING (id, role) WHERE kind = 'tree' AND name = 'dump' "
            "AND (phase = ? AND json_extract(plan, '$.mode') IS 'post-copy') = ?",
            (Phase.RELEASED, kept),
        ).fetchone()
        return None if began is None else float(began)

    def step_times(self, bounds: Sequence[float]) -> list[StepTimes]:
        """Return a histogram of the times of ended steps, by name; ``bounds`` are in seconds."""
        rows = self._db.execute(
            "SELECT name, failure IS NOT NULL, "
            "(SELECT min(value) FROM json_each(?) WHERE value >= ended - started), "
            "count(*), sum(max(0, ended - started)) "
            "FROM step WHERE ended IS NOT NULL GROUP BY 1, 2, 3",
            (json.dumps(list(bounds)),),
        )
        return [
            StepTimes(name, bool(failed), bound, count, total)
            for name, failed, bound, count, total in rows
        ]

    def take_slot(self, entry: Entry, slots: int) -> bool:
        """Take one of this host's slots for a frozen tree; False if all are taken. Idempotent."""
        with self._db.transaction():
            (taken,) = self._db.execute(
                "SELECT count(*) FROM held WHERE kind = 'slot' AND NOT (id = ? AND role = ?)",
                (entry.id, entry.role),
            ).fetchone()
            if taken < slots:
                self.hold(entry, "slot", "freeze")
        return bool(taken < slots)

    def _again(self, entry: Entry) -> Entry:
        now = self.entry(entry.id, entry.role)
        assert now is not None
        return now


def _log(entry: Entry, passed: Iterable[tuple[Phase | None, Phase]]) -> None:
    """Log every change of phase, as one event with the migration's id, which both hosts share."""
    host = entry.plan.host_of(entry.role)
    for before, after in passed:
        change = f"from {before} to {after}" if before else f"opened as {after}"
        context = {"migration": entry.id, "host": host, "step": STEP.get(), "role": str(entry.role)}
        log.info(
            "%s: %s",
            host,
            change,
            extra={**context, "from": before and str(before), "to": str(after)},
        )
