"""From when to when the process of a migration did not run, for those who draw its timeline.

The result has it by the hosts' journals, each instant by the clock of the host that took it. As
long as there is no result, or an older version made it, the steps bound it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sojourn.cluster.account import Account
from sojourn.model import State, StepRecord

#: The steps that commit: the restore, or the verdict that settled a migration in doubt.
COMMITS = ("restore", "decide")

#: The steps that let the process run on again on its source.
RESUMES = ("resume", "reclaim")


@dataclass(frozen=True)
class Freeze:
    """When a process did not run, in seconds since the epoch; ``known`` if that was measured."""

    began: float
    ended: float
    known: bool = False


def of(account: Account, now: float) -> Freeze | None:
    """Return the freeze of a migration, None if there was none; one under way lasts until now."""
    measured = (account.result or {}).get("freeze")
    if measured and measured["ended"]:
        return Freeze(measured["began"], max(measured["began"], measured["ended"]), known=True)
    began = measured["began"] if measured else None
    return _by_steps(account, now, began)


def commit(account: Account) -> float | None:
    """Return when the destination became the owner, as far as is known; None without a commit."""
    if account.owner != account.plan.destination and account.state is not State.CLEANUP_PENDING:
        return None
    measured = (account.result or {}).get("freeze")
    if measured and measured["ended"]:
        return float(measured["ended"])
    step = _step(account, *COMMITS)
    return step.ended if step and not step.failed else None


def _by_steps(account: Account, now: float, began: float | None) -> Freeze | None:
    dump, restored = _step(account, "dump"), commit(account)
    if dump is None:
        return None
    downtime_ms = (account.result or {}).get("downtime_ms")
    if restored is not None and downtime_ms:
        return Freeze(restored - downtime_ms / 1000, restored, known=True)
    ended = restored or _resumed(account) or (_last(account) if account.state.definite else now)
    return Freeze(began or dump.started, ended)


def _resumed(account: Account) -> float | None:
    # What a step said may be no more than that the tree stays frozen.
    if account.state is State.IN_DOUBT:
        return None
    back = _step(account, *RESUMES)
    return back.ended if back and not back.failed else None


def _last(account: Account) -> float:
    return max(step.ended or step.started for step in account.steps)


def _step(account: Account, *names: str) -> StepRecord | None:
    """Return the last step of one of these names."""
    found = [step for step in account.steps if step.name in names]
    return found[-1] if found else None
