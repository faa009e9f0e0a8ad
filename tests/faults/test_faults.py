"""A selection of the fault matrix; ``make faults`` runs the whole of it."""

from __future__ import annotations

import pytest

from tests.faults.scenario import FAULTS, play
from tests.lab.site import Site

pytestmark = pytest.mark.lab


@pytest.mark.parametrize(
    ("where", "instant", "fault", "owner"),
    [
        ("alpha", "freezing.after", "worker killed", "alpha"),
        ("alpha", "frozen.after", "worker killed", "alpha"),
        ("alpha", "copy_images.end", "worker killed", "beta"),
        ("beta", "accepted.after", "worker killed", "beta"),
        ("alpha", "retired.after", "worker killed", "beta"),
        ("beta", "accepted.before", "CRIU killed", "alpha"),
        ("alpha", "copy_images.end", "source host crashed", "beta"),
        ("alpha", "released.after", "source host crashed", "nobody"),
        ("alpha", "copy_images.end", "destination host crashed", "alpha"),
        ("alpha", "frozen.after", "Redis emptied", "beta"),
        ("beta", "restore.end", "Redis killed", "beta"),
    ],
)
def test_one_owner_whatever_dies(site: Site, where: str, instant: str, fault: str, owner: str) -> None:
    """Exactly one owner in the end, never two, the process as it was, nothing left behind."""
    cell = play(site, where, instant, FAULTS[fault])
    assert cell.wrong == ()
    assert cell.owner == owner, cell
