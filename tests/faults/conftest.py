"""A lab of its own for faults, whose reconcilers are impatient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.lab.site import Site, require_lab

#: So that what stands still is moved on within seconds.
IMPATIENT = {"reconcile_s": 1, "stall_s": 3, "patience_s": 10, "max_freeze_s": 30}


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Return two hosts with their workers, and the hub."""
    require_lab()
    lab = Lab("faults")
    lab.down()
    lab.up(2, settings=IMPATIENT)
    yield Site(lab)
    lab.down()
