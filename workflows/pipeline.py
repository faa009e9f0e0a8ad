"""The language of the pipeline table: steps, the hosts they run on, and how each is undone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sojourn.model import Plan, Role
from tasks.step import HostStep


class On(Enum):
    """On which of the two hosts a step runs."""

    SOURCE = (Role.SOURCE,)
    DESTINATION = (Role.DESTINATION,)
    BOTH = (Role.SOURCE, Role.DESTINATION)

    def hosts(self, plan: Plan) -> list[str]:
        """Return the names of those hosts in a migration."""
        return [plan.host_of(role) for role in self.value]


@dataclass(frozen=True)
class Step:
    """One row of the table. ``frozen`` marks the steps that a stopped tree waits for: they have a lane of their own."""

    do: HostStep
    on: On
    undo: HostStep | None = None
    frozen: bool = False


class Pipeline:
    """The rows in the order in which they are done; the undos are done in the opposite order."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
