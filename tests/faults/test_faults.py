"""A selection of the fault matrix; ``make faults`` runs the whole of it."""

from __future__ import annotations

import pytest

from sojourn.model import Role
from tests.faults.fault import FAULTS
from tests.faults.instant import POST_COPY, Instant, instant
from tests.faults.scenario import play
from tests.faults.site import FaultSite

pytestmark = pytest.mark.lab

SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION


def play_one(site: FaultSite, at: Instant, fault: str, owner: Role | None) -> None:
    """Play a cell, and check that it is as promised, with this owner in the end."""
    cell = play(site, at, FAULTS[fault])
    assert cell.wrong == ()
    assert cell.owner is owner, cell


@pytest.mark.parametrize(
    ("where", "point", "fault", "owner"),
    [
        (SOURCE, "freezing.after", "worker killed", SOURCE),
        (SOURCE, "copy_images.end", "worker killed", DESTINATION),
        (DESTINATION, "accepted.after", "worker killed", DESTINATION),
        (SOURCE, "retired.after", "worker killed", DESTINATION),
        (DESTINATION, "accepted.before", "CRIU killed", SOURCE),
        (DESTINATION, "restoring.after", "rebuilder killed", DESTINATION),
        (DESTINATION, "accepted.before", "rebuilder killed", SOURCE),
        (DESTINATION, "accepted.after", "rebuilder killed", SOURCE),
        (DESTINATION, "restored.before", "rebuilder killed", DESTINATION),
        (SOURCE, "copy_images.end", "source crashed", DESTINATION),
        (SOURCE, "released.after", "source crashed", None),
        (SOURCE, "copy_images.end", "destination crashed", SOURCE),
        (SOURCE, "copy_images.end", "network cut for 5 s", DESTINATION),
        (SOURCE, "released.after", "network cut until healed", SOURCE),
        (SOURCE, "frozen.after", "Redis emptied", DESTINATION),
        (SOURCE, "frozen.after", "Redis read-only", SOURCE),
        (SOURCE, "copy_images.end", "Redis lying", DESTINATION),
        (DESTINATION, "restore.end", "Redis killed", DESTINATION),
        (DESTINATION, "fill.middle", "pager killed", DESTINATION),
        (DESTINATION, "fill.middle", "guard killed", DESTINATION),
        (DESTINATION, "fill.begin", "pager and guard killed", None),
        (DESTINATION, "fill.begin", "disk full", DESTINATION),
        (SOURCE, "dump, in the middle", "disk full", SOURCE),
        (DESTINATION, "accepted.before", "disk full", SOURCE),
        (SOURCE, "copy_images.end", "message doubled", DESTINATION),
        (DESTINATION, "page_server.end", "message lost", SOURCE),
    ],
)
def test_one_owner_whatever_goes_wrong(
    site: FaultSite, where: Role, point: str, fault: str, owner: Role | None
) -> None:
    """In the end there is one owner, never two; the process is unchanged; nothing is left."""
    play_one(site, instant(where, point), fault, owner)


@pytest.mark.parametrize(
    ("where", "point", "fault", "owner"),
    [
        (SOURCE, "fill.begin", "sender killed", DESTINATION),
        (SOURCE, "fill.middle", "worker killed", DESTINATION),
        (DESTINATION, "fill.middle", "source crashed", None),
        (DESTINATION, "fill.begin", "pager and guard killed", None),
        (DESTINATION, "fill.begin", "network cut until healed", DESTINATION),
        (DESTINATION, "restore.end", "Redis gone for a minute", DESTINATION),
    ],
)
def test_one_owner_while_both_hosts_are_needed(
    site: FaultSite, where: Role, point: str, fault: str, owner: Role | None
) -> None:
    """In post-copy the same holds; the process is lost only if the rest of its memory is."""
    play_one(site, instant(where, point, POST_COPY), fault, owner)
