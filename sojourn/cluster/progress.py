"""How far a migration or a batch has come, as a state and a mapping for a caller's program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sojourn.cluster import freeze
from sojourn.cluster.account import Account
from sojourn.cluster.batches import Record
from sojourn.model import Json, State, StepRecord

#: The step that freezes the process, and the one at whose end it runs.
FREEZES, RUNS_AGAIN = "dump", "restore"

#: The states of a migration whose process is being stopped, and stands still.
FREEZING, FROZEN = "FREEZING", "FROZEN"


@dataclass(frozen=True)
class Progress:
    """A state, in capitals as Celery's, and what is known beside it."""

    state: str
    info: Json


def of_migration(account: Account, now: float) -> Progress:
    """Return how far a migration has come at ``now``, in seconds since the epoch."""
    steps = {step.name: step for step in account.steps}
    last = _last(account.steps)
    done = account.progress or {}
    return Progress(
        _state(account.state, steps),
        {
            "step": last.name if last else None,
            "host": last.host if last else None,
            "bytes": done.get("bytes"),
            "total_bytes": done.get("total"),
            "downtime_ms": _downtime_ms(account, now),
            "owner": account.owner,
        },
    )


def of_batch(record: Record) -> Progress:
    """Return how far a batch has come: how many of how many migrations have ended."""
    return Progress(_celery(record.state), {"ended": record.ended, "total": record.total})


def _celery(state: str) -> str:
    return state.upper().replace(" ", "_")


def _state(state: State, steps: dict[str, StepRecord]) -> str:
    if state is not State.RUNNING or FREEZES not in steps or _is_over(steps.get(RUNS_AGAIN)):
        return _celery(state)
    return FROZEN if _is_over(steps[FREEZES]) else FREEZING


def _is_over(step: StepRecord | None) -> bool:
    return step is not None and step.ended is not None


def _last(steps: Sequence[StepRecord]) -> StepRecord | None:
    """Return the step under way that began last, else the one that ended last."""
    under_way = [step for step in steps if step.ended is None]
    return max(under_way or steps, key=lambda step: step.started, default=None)


def _downtime_ms(account: Account, now: float) -> float | None:
    """Return for how long the process has stood still, as far as that is known."""
    found = freeze.of(account, now)
    return max(0.0, (found.ended - found.began) * 1000) if found else None
