"""The only door to the environment of this process.

It needs nothing but the standard library: ``lab.base`` runs before Sojourn's libraries are there.
"""

from __future__ import annotations

import os


def variable(name: str) -> str | None:
    """Return one variable of the environment; None where it is not set."""
    return os.environ.get(name)


def environment() -> dict[str, str]:
    """Return a copy of the environment, for a program that must see the caller's (pip)."""
    return dict(os.environ)


def export(values: dict[str, str]) -> None:
    """Set variables for this process and the ones it starts."""
    os.environ.update(values)
