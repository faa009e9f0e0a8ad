"""A separate lab for faults, whose reconcilers wait only seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.faults.site import FaultSite
from tests.lab.site import require_lab


@pytest.fixture(scope="session")
def site() -> Iterator[FaultSite]:
    """Return two hosts with their workers, and the hub."""
    require_lab()
    lab = Lab("faults")
    yield FaultSite.fresh(lab)
    lab.down()
