"""An operator's decision that a host is dead, as a sentence for the command line and the pages."""

from __future__ import annotations

from sojourn import units
from sojourn.model import Json, Plan, Role


def sentence(decision: Json, plan: Plan) -> str:
    """Return who declared which host of a migration dead, and when; empty without a decision."""
    if not decision:
        return ""
    role = Role.DESTINATION if decision["resolved"] == Role.DESTINATION else Role.SOURCE
    host, when = plan.host_of(role), units.moment(decision["resolved_at"])
    return f"{decision['resolved_by']} declared {host}, the {role}, dead for good at {when}."
