"""The memory of the frozen original, handed out by the source while the process runs elsewhere.

The work is done by a sender (``sojourn.transfer.sender``). It is started before the freeze, and
ends with the original: killed after the last page has arrived, or, where the destination has
refused, before the process runs on here.
"""

from __future__ import annotations

import time

from sojourn.errors import ChannelFailed
from sojourn.migration.context import Migration
from sojourn.model import Role
from sojourn.state.facts import Facts, memory_port_of
from sojourn.system import process
from sojourn.transfer import program, sender


def begin(migration: Migration) -> Facts:
    """Start the sender anew; return where it listens, which is known here too."""
    migration.end_senders()
    port = _start(migration, 0)
    found = Facts(memory_address=migration.host.settings.address, memory_port=port)
    migration.learn(**found)
    return found


def look_after(migration: Migration) -> bool:
    """Start the sender again if it has died, or note that there is nothing left to hand out.

    Return whether that is news for the destination. Raises ChannelFailed if no sender can start.
    """
    if not _may_be_asked(migration) or "original_gone" in migration.facts:
        return False
    if any(process.is_alive(member.identity) for member in migration.entry.tree):
        return not migration.senders() and _start_again(migration)
    migration.learn(original_gone=True)
    return True


def is_busy(migration: Migration) -> bool:
    """Whether memory is being handed out, so that the process runs elsewhere, and gets it.

    Whoever asked for the verdict then would wait for the step that settles, in a place that another
    frozen tree may need.
    """
    if not _may_be_asked(migration):
        return False
    mark = migration.directory.work / sender.HANDED_OUT
    handed_out = mark.stat().st_mtime if mark.exists() else 0
    return time.time() - handed_out < migration.host.settings.stall_s


def _may_be_asked(migration: Migration) -> bool:
    return migration.is_serving() and not migration.is_declared_dead(Role.DESTINATION)


def _start_again(migration: Migration) -> bool:
    """Start another sender where the pager looks for it; return whether that place was taken."""
    wanted = memory_port_of(migration.facts)
    return _start(migration, wanted) != wanted


def _start(migration: Migration, port: int) -> int:
    settings, log = migration.host.settings, migration.directory.work / "sender.log"
    child = sender.start(
        sender.Assignment(
            migration=migration.id,
            journal=str(migration.host.journal.path),
            work=str(migration.directory.work),
            secret=migration.secret.hex(),
            certificates=str(settings.certificates or ""),
            peer=migration.peer,
            address=settings.address,
            port=port,
            bytes_per_s=migration.plan.bytes_per_s,
        ),
        log,
    )
    report = program.first_report(child)
    if "port" not in report:
        raise ChannelFailed(
            f"The program that hands out the memory on {migration.host.name} ended at once.",
            f"See {log}.",
        )
    return int(report["port"])
