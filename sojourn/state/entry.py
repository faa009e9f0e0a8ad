"""An entry of a journal: one migration on one host, as it was recorded at one instant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from sojourn.model import Member, Phase, Plan, Role
from sojourn.state.facts import Facts

#: The columns of an Entry after its id and role.
COLUMNS = "phase, plan, facts, tree, created, updated"


@dataclass(frozen=True)
class Entry:
    """One migration as recorded in this host's journal at one instant."""

    id: str
    role: Role
    phase: Phase
    plan: Plan
    facts: Facts
    tree: tuple[Member, ...]
    created: float
    updated: float

    @classmethod
    def from_row(
        cls,
        migration: str,
        role: Role,
        phase: str,
        plan: str,
        facts: str,
        tree: str,
        created: float,
        updated: float,
    ) -> Entry:
        """Return the entry of a row of the table ``migration``."""
        members = tuple(Member.from_json(member) for member in json.loads(tree))
        return cls(
            migration, role, Phase(phase), _plan(plan), json.loads(facts), members, created, updated
        )


@lru_cache(maxsize=64)
def _plan(text: str) -> Plan:
    """Return a plan from its text; cached, since a row is read many times and its plan is fixed."""
    return Plan.from_json(json.loads(text))
