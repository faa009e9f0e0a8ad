"""page_server and stop_page_server, on the destination: be ready for what comes with the freeze.

The holder (``sojourn.transfer.holder``) listens, checks who calls, and runs CRIU's page server on
that connection. It is started before the freeze and does not need the worker. If the holder, the
network or this host dies, the source's dump fails, and CRIU lets the tree run on there; the
source's journal has not reached ``released``, so nothing can be restored here. A second run ends
the first holder and starts another.

So are the pager, where memory comes after the restore, and the rebuilder, which has a CRIU wait
(``sojourn.transfer``). If one of those dies meanwhile, ``restore`` starts another.
"""

from __future__ import annotations

from sojourn.criu import failure
from sojourn.errors import ChannelFailed
from sojourn.migration import rebuilding, settling
from sojourn.migration.context import Migration
from sojourn.migration.destination import check_pids
from sojourn.model import Phase
from sojourn.state.facts import Facts
from sojourn.state.message import Outcome
from sojourn.transfer import holder, program
from tasks.step import step

#: How long the source may take until it connects, beyond the freeze itself: all tries of its
#: ``reserve``, and more.
PATIENCE_S = 120


@step(deadline_s=30)
def page_server(migration: Migration) -> Outcome:
    """Check again that the PIDs are free, and start the programs."""
    # ``preflight`` has checked them, but ``reserve`` may have waited long for a slot since.
    check_pids(migration)
    migration.end_processes()
    settings = migration.host.settings
    wanted = {"pages": not migration.plan.post_copy, "images": _by_channel(migration)}
    assignment = migration.assignment(
        address=settings.address,
        port=0,
        purposes=tuple(purpose for purpose, wants in wanted.items() if wants),
        deadline_s=PATIENCE_S + migration.plan.max_freeze_s,
    )
    rebuilding.prepare(migration)
    settling.prepare(migration)
    child = holder.start(assignment, migration.directory.work / "holder.log")
    report = program.first_report(child)
    if "port" not in report:
        raise ChannelFailed(
            report.get("message", "The holder of the page channel ended at once."),
            report.get("hint", ""),
        )
    awaited = "images" if migration.plan.post_copy else "memory"
    return Outcome(
        f"waiting for the {awaited} on {settings.address} port {report['port']}",
        {"page_address": settings.address, "page_port": report["port"]},
    )


def _by_channel(migration: Migration) -> bool:
    return migration.host.settings.copy_images_with == "channel"


@step(deadline_s=30, undo=True)
def stop_page_server(migration: Migration) -> Outcome:
    """End the holder and its page server; report its error, often the cause of a failed dump."""
    # A restore that is under way carries the same migration's id and must not be cut short. A tree
    # that runs may need its pager: this step is part of settling too, after a verdict of yes.
    if not migration.is_deciding():
        migration.end_processes()
    if migration.phase in {Phase.RESERVED, Phase.REFUSED}:
        settling.end(migration)
    cause = failure.cause(migration.directory.work / "page-server.log")
    if not cause:
        return Outcome("the page server is gone")
    facts: Facts = {
        "page_server_error": cause.message,
        "page_server_code": cause.code,
        "page_server_hint": cause.hint,
    }
    return Outcome(f"the page server is gone; it had reported: {cause.message}", facts)
