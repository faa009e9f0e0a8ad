"""A migration as the ledger has it, and what happens to one, as both are read from Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sojourn import window
from sojourn.cluster import records
from sojourn.model import MIGRATION_ID, Failure, Json, Plan, State, StepRecord, where_it_runs


@dataclass(frozen=True)
class NoticeRecord:
    """What became of a notice of an end, as one host has sent it to one receiver.

    ``outcome`` is delivered, failed (it is tried again) or given up, ``answer`` a sentence.
    """

    id: str
    state: str
    target: str
    outcome: str
    tries: int
    answer: str
    host: str
    at: float


@dataclass(frozen=True)
class Account:
    """A migration as the ledger had it at one instant.

    Where it comes from a host's journal, ``role`` is the side that this host had. ``command`` is
    the beginning of the process's command line, empty until the source has looked at it. ``doubt``
    is what there is to know while it is in doubt (``sojourn.cluster.doubt``).
    """

    id: str
    plan: Plan
    state: State
    created: float
    owner: str | None
    steps: tuple[StepRecord, ...]
    failure: Failure | None = None
    result: Json | None = None
    role: str = ""
    resolved: Json | None = None
    part: Json | None = None
    progress: Json | None = None
    notices: tuple[NoticeRecord, ...] = ()
    asked_by: str | None = None
    command: str = ""
    doubt: Json | None = None

    @property
    def frozen(self) -> float:
        """Since when the process may be frozen: the begin of its dump, or else of the request."""
        dumps = (step.started for step in self.steps if step.name == "dump")
        return next(dumps, self.created)

    @property
    def window(self) -> str:
        """Where the process runs and what it still needs there; empty if that is nothing."""
        return window.where(self.plan, self.state, self.steps, self.progress or {})

    @property
    def where(self) -> str:
        """Where the process is, as a sentence, and what it still needs there."""
        return self.window or where_it_runs(self.state, self.owner)

    def to_json(self) -> Json:
        """Return the migration as ``--json`` gives it, finished or not."""
        if self.result and self.result["state"] == self.state:
            return {**self.result, "doubt": self.doubt}
        return {
            "id": self.id,
            "state": self.state,
            **self.plan.to_json(),
            "command": self.command or None,
            "owner": self.owner,
            "steps": [asdict(step) for step in self.steps],
            "failure": asdict(self.failure) if self.failure else None,
            "resolved": self.resolved,
            "progress": self.progress,
            "doubt": self.doubt,
        }


@dataclass(frozen=True)
class Event:
    """Something that happened to a migration or a batch.

    ``kind`` is state, step, progress, failure or notice; for a batch it is batch, and
    ``migration`` the batch's id.
    """

    migration: str
    kind: str
    data: Json


@dataclass(frozen=True)
class _Part:
    """The batch and the line there to which a migration belongs."""

    batch: str
    line: int


@dataclass(frozen=True)
class _StateEvent:
    """The state that a migration is in from now on."""

    state: State


#: What a step announces of how far it has come.
Numbers = dict[str, records.Number]

#: What the data of each kind of event holds at least.
SHAPES: dict[str, Any] = {
    "state": _StateEvent,
    "step": StepRecord,
    "progress": Numbers,
    "failure": Failure,
    "notice": NoticeRecord,
    "batch": Json,
}


def read_account(migration: str, encoded: Mapping[str, str]) -> Account | None:
    """Return what a hash holds, None if that is no migration.

    What is odd beside its plan and state is left out.
    """
    fields = records.values(encoded)
    plan, state = records.of(Plan, fields.get("plan")), records.of(State, fields.get("state"))
    created = records.of(float, fields.get("created"))
    if plan is None or state is None or created is None or not MIGRATION_ID.fullmatch(migration):
        return None
    return Account(
        id=migration,
        plan=plan,
        state=state,
        created=created,
        owner=records.of(str, fields.get("owner")),
        steps=_steps(fields),
        failure=records.of(Failure, fields.get("failure")),
        result=records.result(fields.get("result")),
        part=asdict(part) if (part := records.of(_Part, fields.get("part"))) else None,
        progress=records.of(Numbers, fields.get("progress")),
        notices=_notices(fields),
        asked_by=records.of(str, fields.get("asked_by")),
        command=records.of(str, fields.get("command")) or "",
    )


def _steps(fields: Json) -> tuple[StepRecord, ...]:
    found = (
        records.of(StepRecord, value) for name, value in fields.items() if name.startswith("step:")
    )
    return tuple(sorted((step for step in found if step), key=lambda step: step.started))


def _notices(fields: Json) -> tuple[NoticeRecord, ...]:
    found = (
        records.of(NoticeRecord, value)
        for name, value in fields.items()
        if name.startswith("notice:")
    )
    return tuple(sorted((notice for notice in found if notice), key=lambda notice: notice.at))


def read_event(fields: Mapping[str, str]) -> Event | None:
    """Return an entry of the stream as an event, None if it is none of ours."""
    kind, migration = fields.get("kind", ""), fields.get("migration", "")
    data = records.mapping(fields.get("data"))
    known = records.of(SHAPES[kind], data) if kind in SHAPES else None
    if data is None or known is None:
        return None
    return Event(migration, kind, data | (known if isinstance(known, dict) else asdict(known)))
