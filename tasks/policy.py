"""A step and its policy: when it may begin, how long it may take, how often it is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sojourn.migration.context import Migration
from sojourn.model import Phase, Plan
from sojourn.state.message import Outcome

#: The share of its deadline that a step may wait for another delivery of the same migration.
LOCK_SHARE = 0.5

#: Seconds that a task gets beyond what its step may take, to record that the step timed out, before
#: Celery ends its process.
HARD_LIMIT_AFTER_S = 10

#: Back-off of temporary failures: 0.5 s, doubled each time up to this, with a jitter of a quarter.
LONGEST_BACK_OFF_S = 15

#: The phases in which nothing has happened yet that a step could spoil.
BEFORE_THE_FREEZE = (Phase.OPEN, Phase.RESERVED)

Work = Callable[[Migration], Outcome]


@dataclass(frozen=True)
class HostStep:
    """A step: its name, what it does, and its policy.

    * ``begins_in``: the phases in which it may begin; in any other its message comes too late, and
      is refused before anything is touched.
    * ``deadline_s``: how long one attempt may take. With ``in_freeze`` it may take as long as the
      plan lets a freeze last, and ``deadline_s`` beyond that, to end by its own means what hangs.
    * ``opens``: it may be the first one of a migration on this host.
    * ``undo``: it is part of a rollback.
    * ``retries``: the maximum number of attempts that follow a Temporary failure, and
      ``longest_back_off_s`` the longest time between two of them, in seconds.
    * ``locks``: it waits for other deliveries of the same migration, and they wait for it.
    """

    name: str
    work: Work
    deadline_s: float
    begins_in: Collection[Phase] = BEFORE_THE_FREEZE
    in_freeze: bool = False
    opens: bool = False
    undo: bool = False
    retries: int = 0
    longest_back_off_s: float = LONGEST_BACK_OFF_S
    locks: bool = True

    @property
    def task_name(self) -> str:
        """The name of its Celery task, which people see in Flower."""
        return f"sojourn.{self.name}"

    @property
    def patience_s(self) -> float:
        """How long one attempt may wait for another delivery of the same migration."""
        return self.deadline_s * LOCK_SHARE

    def limit_s(self, plan: Plan) -> float:
        """Return how long one attempt may take in a migration."""
        return self.deadline_s + (plan.max_freeze_s if self.in_freeze else 0)

    def hard_limit_s(self, plan: Plan) -> float:
        """Return when Celery ends the process of an attempt that no signal could stop."""
        return self.patience_s + self.limit_s(plan) + HARD_LIMIT_AFTER_S

    def back_off_s(self, retries: int) -> float:
        """Return how long to wait before the next attempt, with jitter so that many do not meet."""
        jitter = random.uniform(0.75, 1.25)  # noqa: S311  (no secret depends on it)
        return float(min(0.5 * 2**retries, self.longest_back_off_s) * jitter)
