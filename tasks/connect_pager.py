"""connect_pager, on the destination: the pager reaches the source, before anything is frozen.

Post-copy only. The pager (``sojourn.transfer.pager``) connects by itself, and again whenever the
connection breaks; this step waits for it, so that a firewall between the two hosts is found while
the process runs on the source as before. If anything dies here, nothing was touched. Safe to run
again.
"""

from __future__ import annotations

import time

from sojourn.errors import ChannelFailed
from sojourn.migration.context import Migration
from sojourn.state.message import Outcome
from sojourn.transfer import pager
from tasks.step import step

#: How long the pager may take, in seconds: several tries. And how often it is looked for.
PATIENCE_S, LOOK_S = 10, 0.01


@step(deadline_s=30)
def connect_pager(migration: Migration) -> Outcome:
    """Wait until the pager has connected to the sender."""
    until = time.monotonic() + PATIENCE_S
    where = f"{migration.facts['memory_address']} port {migration.facts['memory_port']}"
    while not (migration.directory.work / pager.CONNECTED).exists():
        if time.monotonic() > until:
            raise ChannelFailed(
                f"{migration.host.name} cannot connect to {migration.plan.source}, {where}, where "
                "the memory would come from.",
                f"Check that no firewall blocks it; see {migration.directory.work / 'pager.log'}.",
            )
        time.sleep(LOOK_S)
    return Outcome(f"connected to {where}")
