"""A migration as one row of the table, in the words and numbers that a browser shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sojourn import units
from sojourn.cluster.account import Account, Event
from sojourn.model import Json, State, StepRecord
from workflows.pipelines import PIPELINES

#: The style of each state. ``bad`` has ended and needs an operator; the other ends without arrival
#: are ``stayed``.
LOOKS = {
    State.QUEUED: "waits",
    State.RUNNING: "runs",
    State.ROLLING_BACK: "turns",
    State.COMPLETED: "good",
    State.CLEANUP_PENDING: "turns",
    State.IN_DOUBT: "bad",
    State.LOST: "bad",
    State.ENDED: "bad",
}
STAYED = "stayed"

#: The cards above the table: the name and the title of each, its colour on Flower's pages, and its
#: states. Each state is in one, so that they add up.
CARDS: dict[str, tuple[str, str, frozenset[State]]] = {
    "waiting": ("Waiting", "", frozenset({State.QUEUED})),
    "moving": ("Under way", "active", frozenset({State.RUNNING, State.ROLLING_BACK})),
    "arrived": ("Completed", "success", frozenset({State.COMPLETED, State.CLEANUP_PENDING})),
    "stayed": (
        "Stayed on the source",
        "warning",
        frozenset({State.REFUSED, State.UNREACHABLE, State.ROLLED_BACK, State.ABORTED}),
    ),
    "operator": (
        "Need an operator",
        "danger",
        frozenset({State.IN_DOUBT, State.LOST, State.ENDED}),
    ),
}
CARD_OF = {state: name for name, (_, _, states) in CARDS.items() for state in states}

#: How much of a command line is shown, in characters.
COMMAND = 80

#: The steps in which memory crosses, or comes into place.
CROSSING = {"dump", "settle"}


@dataclass(frozen=True)
class Crossing:
    """How much of the memory has crossed, and how fast, which the ledger does not keep."""

    bytes: float = 0
    total: float = 0
    began: float = 0
    seen: float = 0

    def after(self, event: Event, now: float) -> Crossing:
        """Return it after an event of progress, seen at ``now`` by a monotonic clock."""
        data = event.data
        # What comes into place after the restore is counted by another step, from nothing.
        again = data["bytes"] < self.bytes
        return Crossing(data["bytes"], data["total"], now if again else self.began or now, now)

    @property
    def rate(self) -> float | None:
        """Bytes per second so far, None while that is unknown."""
        return (
            self.bytes / (self.seen - self.began) if self.bytes and self.seen > self.began else None
        )

    @property
    def part(self) -> float:
        """The part of the memory that has crossed, 0 to 1."""
        return min(1.0, self.bytes / self.total) if self.total else 0.0


def look(state: State) -> str:
    """Return the style of a state: one of the names in the style sheet."""
    return LOOKS.get(state, STAYED)


def program(command: str) -> str:
    """Return a command line without the directories of its program; empty if it is not known.

    Those of a script behind its interpreter are left out too. What is long is cut.
    """
    command = command[:COMMAND]
    if command.startswith("["):
        return command  # the name of a process without a command line
    first, *rest = command.split(" ")
    if rest and rest[0].startswith("/"):
        rest[0] = _last(rest[0])
    return " ".join([_last(first), *rest])


def _last(path: str) -> str:
    return path.rpartition("/")[2] or path


def downtime_of(account: Account) -> str:
    """Return the measured downtime of a migration, empty without one."""
    downtime_ms = (account.result or {}).get("downtime_ms")
    return units.span(downtime_ms) if downtime_ms else ""


def row(account: Account, crossing: Crossing = Crossing()) -> Json:
    """Return a migration as the table shows it."""
    plan, state = account.plan, account.state
    crossing = Crossing() if state.final else crossing
    return {
        "id": account.id,
        "pid": plan.pid,
        "command": account.command[:COMMAND],
        "program": program(account.command),
        "source": plan.source,
        "destination": plan.destination,
        "state": state,
        "look": look(state),
        "card": CARD_OF[state],
        "owner": account.owner,
        "batch": (account.part or {}).get("batch"),
        "created": account.created,
        "asked": units.moment(account.created),
        "step": _step(account) if not state.final else "",
        "percent": percent(account, crossing),
        "rate": units.rate(crossing.rate) if crossing.rate else "",
        "downtime": downtime_of(account),
        "why": account.failure.message if account.failure and state.final else "",
        "window": account.window,
    }


def percent(account: Account, crossing: Crossing) -> int | None:
    """Return how far a migration has come, by steps and memory; None if it did not arrive."""
    if account.state.arrived:
        return 100
    if account.state not in {State.QUEUED, State.RUNNING}:
        return None
    # Never 100 before the end: undo steps count too, and the plan does not have them.
    ended = [step for step in account.steps if step.ended is not None]
    crosses = any(step.name in CROSSING for step in _open(account.steps))
    part = crossing.part if crosses else 0
    return min(99, round(100 * (len(ended) + part) / len([*PIPELINES[account.plan.mode].steps()])))


def _step(account: Account) -> str:
    """Return the present step, or the last one."""
    steps = [*_open(account.steps)] or list(account.steps)
    return f"{steps[-1].name} on {steps[-1].host}" if steps else ""


def _open(steps: Iterable[StepRecord]) -> list[StepRecord]:
    return [step for step in steps if step.ended is None]
