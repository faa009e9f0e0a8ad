"""page_server and stop_page_server, on the destination: be ready for the memory.

The holder (``sojourn.holder``) listens, checks who calls, and runs CRIU's page server on that connection. It is
started before the freeze and does not need the worker. If the holder, the network or this host dies, the
source's dump fails, and CRIU lets the tree run on there; the source's journal has not reached ``released``, so
nothing can be restored here. A second run ends the first holder and starts anew.
"""

from __future__ import annotations

import json

from sojourn import criu, holder
from sojourn.arrival import check_pids
from sojourn.errors import ChannelFailed
from sojourn.host import Migration
from sojourn.model import Json, Outcome
from tasks.step import step

#: How long the source may take until it connects, beyond the freeze itself: all tries of its ``reserve``, and more.
PATIENCE_S = 120


@step(deadline_s=30)
def page_server(migration: Migration) -> Outcome:
    """Look once more whether the PIDs are free, since the places may have been long in coming; start the holder."""
    check_pids(migration)
    migration.end_processes()
    settings = migration.host.settings
    errand = migration.errand(
        address=settings.address,
        port=0,
        purposes=("pages", "images") if settings.copy_images_with == "channel" else ("pages",),
        deadline_s=PATIENCE_S + migration.plan.max_freeze_s,
    )
    child = holder.start(errand, migration.directory.work / "holder.log")
    said: Json = json.loads(child.stdout.readline() or "{}")
    if "port" not in said:
        raise ChannelFailed(said.get("message", "The holder of the page channel ended at once."), said.get("hint", ""))
    return Outcome(
        f"waiting for the memory on {settings.address} port {said['port']}",
        {"page_address": settings.address, "page_port": said["port"]},
    )


@step(deadline_s=30, undo=True)
def stop_page_server(migration: Migration) -> Outcome:
    """End the holder and its page server, and say what the page server complained about: often it is the cause."""
    if not migration.is_deciding():
        migration.end_processes()
    cause = criu.cause(migration.directory.work / "page-server.log")
    if not cause:
        return Outcome("the page server is gone")
    facts = {"page_server_error": cause.message, "page_server_code": cause.code, "page_server_hint": cause.hint}
    return Outcome(f"the page server is gone; it had said: {cause.message}", facts)
