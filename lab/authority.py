"""The authority of an encrypted lab, whose certificates the lab's machines accept.

The library that makes certificates is imported when one is made: every command imports the lab, and
few of them need it.
"""

from __future__ import annotations

from pathlib import Path

from lab.plan import Plan

#: How long a lab's certificates are valid: a host gets a new one at each boot.
DAYS = 90


def create(plan: Plan) -> None:
    """Make the authority of a new lab."""
    from sojourn.security.pki import Authority  # noqa: PLC0415

    Authority.create(plan.authority, DAYS + 1)


def issue(plan: Plan, machine: str, address: str) -> Path:
    """Make new certificates for a machine, and return the directory with them."""
    from sojourn.security.pki import Authority  # noqa: PLC0415

    return Authority.load(plan.authority).issue(machine, [address], DAYS)
