"""A selection of the fault matrix; ``make faults`` runs the whole of it."""

from __future__ import annotations

import pytest

from sojourn.model import Role
from tests.faults.fault import FAULTS
from tests.faults.instant import instant
from tests.faults.scenario import play
from tests.faults.site import FaultSite

pytestmark = pytest.mark.lab

SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION


@pytest.mark.parametrize(
    ("where", "point", "fault", "owner"),
    [
        (SOURCE, "freezing.after", "worker killed", SOURCE),
        (SOURCE, "copy_images.end", "worker killed", DESTINATION),
        (DESTINATION, "accepted.after", "worker killed", DESTINATION),
        (SOURCE, "retired.after", "worker killed", DESTINATION),
        (DESTINATION, "accepted.before", "CRIU killed", SOURCE),
        (SOURCE, "copy_images.end", "source crashed", DESTINATION),
        (SOURCE, "released.after", "source crashed", None),
        (SOURCE, "copy_images.end", "destination crashed", SOURCE),
        (SOURCE, "copy_images.end", "network cut for 5 s", DESTINATION),
        (SOURCE, "released.after", "network cut until healed", SOURCE),
        (SOURCE, "frozen.after", "Redis emptied", DESTINATION),
        (DESTINATION, "restore.end", "Redis killed", DESTINATION),
        (DESTINATION, "accepted.before", "disk full", SOURCE),
        (SOURCE, "copy_images.end", "message doubled", DESTINATION),
        (DESTINATION, "page_server.end", "message lost", SOURCE),
    ],
)
def test_one_owner_whatever_goes_wrong(
    site: FaultSite, where: Role, point: str, fault: str, owner: Role | None
) -> None:
    """Exactly one owner in the end, never two, the process as it was, nothing left behind."""
    cell = play(site, instant(where, point), FAULTS[fault])
    assert cell.wrong == ()
    assert cell.owner is owner, cell
