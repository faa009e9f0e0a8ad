"""A migration as one row of the table: what the ledger says, put into the words and numbers that a browser shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sojourn.ledger import Account, Event
from sojourn.model import Json, State, StepRecord
from workflows.migrate import PIPELINES

#: How the states look. What has ended and needs somebody is ``bad``; what stayed on its source is ``stayed``.
LOOKS = {
    State.QUEUED: "waits",
    State.RUNNING: "runs",
    State.ROLLING_BACK: "turns",
    State.COMPLETED: "good",
    State.CLEANUP_PENDING: "turns",
    State.IN_DOUBT: "bad",
    State.LOST: "bad",
    State.FAILED: "bad",
}
STAYED = "stayed"


@dataclass(frozen=True)
class Crossing:
    """How much of the memory has crossed: bytes so far, bytes in all, and how fast. The ledger keeps none of it."""

    bytes: float = 0
    total: float = 0
    began: float = 0
    seen: float = 0

    def after(self, event: Event, now: float) -> Crossing:
        """Return it with one more mark of progress, seen at ``now`` (seconds of any clock that only rises)."""
        return Crossing(event.data["bytes"], event.data["total"], self.began or now, now)

    @property
    def rate(self) -> float | None:
        """Bytes per second so far, None while nobody knows."""
        return self.bytes / (self.seen - self.began) if self.bytes and self.seen > self.began else None

    @property
    def part(self) -> float:
        """How much of it has crossed, 0 to 1."""
        return min(1.0, self.bytes / self.total) if self.total else 0.0


def look(state: State) -> str:
    """Return how a state looks: one of a handful of words that the style sheet knows."""
    return LOOKS.get(state, STAYED)


def row(account: Account, crossing: Crossing = Crossing()) -> Json:
    """Return a migration as the table shows it."""
    plan, state = account.plan, account.state
    crossing = Crossing() if state.final else crossing
    return {
        "id": account.id,
        "pid": plan.pid,
        "source": plan.source,
        "destination": plan.destination,
        "state": state,
        "look": look(state),
        "owner": account.owner,
        "batch": (account.part or {}).get("batch"),
        "created": account.created,
        "step": _step(account) if not state.final else "",
        "percent": percent(account, crossing),
        "bytes": crossing.bytes or None,
        "rate": crossing.rate,
        "downtime_ms": (account.result or {}).get("downtime_ms"),
        "why": account.failure.message if account.failure and state.final else "",
    }


def percent(account: Account, crossing: Crossing) -> int | None:
    """Return how far a migration has come, by its steps and by the memory that has crossed; None once it turned."""
    if account.state.arrived:
        return 100
    if account.state not in {State.QUEUED, State.RUNNING}:
        return None
    ended = [step for step in account.steps if step.ended is not None]
    part = crossing.part if any(step.name == "dump" for step in _open(account.steps)) else 0
    return min(99, round(100 * (len(ended) + part) / len(PIPELINES[account.plan.mode].steps)))


def _step(account: Account) -> str:
    """Return what is done now, or was done last."""
    steps = [*_open(account.steps)] or list(account.steps)
    return f"{steps[-1].name} on {steps[-1].host}" if steps else ""


def _open(steps: Iterable[StepRecord]) -> list[StepRecord]:
    return [step for step in steps if step.ended is None]
