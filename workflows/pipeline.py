"""The language of the pipeline table: steps, the host that each runs on, and how it is undone."""

from __future__ import annotations

from dataclasses import dataclass

from sojourn.model import Role
from tasks.step import HostStep

#: The two hosts, as tables name them.
SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION


@dataclass(frozen=True)
class Step:
    """One row of the table. ``frozen`` marks a step whose message a stopped tree waits for: that has its own lane."""

    do: HostStep
    on: Role
    undo: HostStep | None = None
    frozen: bool = False


class Pipeline:
    """The rows in the order in which they are done; the undos are done in the opposite order."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
