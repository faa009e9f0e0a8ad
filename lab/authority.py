"""The authority of an encrypted lab: by what it issues, the lab's machines know each other.

The library that makes certificates is imported when one is made: every command imports the lab, and few need it.
"""

from __future__ import annotations

from pathlib import Path

from lab.plan import Plan

#: How long a lab's certificates last: a host gets a new one at each boot.
DAYS = 90


def create(plan: Plan) -> None:
    """Make the authority of a new lab."""
    from sojourn.pki import Authority  # noqa: PLC0415

    Authority.create(plan.authority, DAYS + 1)


def issue(plan: Plan, machine: str, address: str) -> Path:
    """Make a machine's certificates anew, and return the directory with them."""
    from sojourn.pki import Authority  # noqa: PLC0415

    return Authority.load(plan.authority).issue(machine, [address], DAYS)
