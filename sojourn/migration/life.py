"""Whether the tree that was let go lives: CRIU's exit code does not say so.

CRIU succeeds when it has let every task run. What the first instructions do, it does not see: a
program may end because of what it finds on the other host. The root is held by a descriptor from
before it runs, so that the kernel can say how it ended (``sojourn.system.pidfd``).

The original is watched likewise when it was woken: a signal may wait for it that the restore has
caused elsewhere (``docs/protocol.md``).

A tree in a PID namespace of its own has PIDs here that nobody knows before the restore; its
arrival is not watched.
"""

from __future__ import annotations

import time

from sojourn.criu import restored
from sojourn.migration import remains
from sojourn.migration.context import Migration
from sojourn.state.facts import Facts
from sojourn.system.pidfd import Held

#: How long after its release the root is watched, in seconds. What CRIU changed for a process ends
#: it within milliseconds; a longer watch would keep the migration's places from others.
WATCH_S = 0.1

#: How long the restore itself watches it, in seconds: it alone holds the root since before the root
#: ran, so that it can say how it ended.
AT_ONCE_S = 0.03


def root_of(migration: Migration) -> Held:
    """Return the root of the tree, not held yet: its PID may belong to nobody so far."""
    pids = remains.tree_pids(migration)
    known = pids and migration.facts.get("needed_pids")
    return Held(pids[0] if known else 0)


def ended(root: Held, resumed_at: float, seconds: float = 0) -> Facts:
    """Return how the root ended within the next ``seconds``; empty if it lives on or is not known.

    ``resumed_at`` is when the tree was let run, in seconds since the epoch.
    """
    if not root.ended_within(seconds):
        return {}
    after_ms = round(max(0.0, time.time() - resumed_at) * 1000, 1)
    return {"ended_after_ms": after_ms, "ended_by": root.how_it_ended()}


def sentence(facts: Facts) -> str:
    """Return how a process ended, for a sentence that begins with the process."""
    by = f", by {facts['ended_by']}" if facts.get("ended_by") else ""
    return f"ended {facts['ended_after_ms']:.0f} ms later{by}"


def watch(migration: Migration, resumed_at: float) -> Facts:
    """Return how the root ended, if it does so before its watch is over; empty if it lives on."""
    root = root_of(migration)
    if not root.pid or not remains.is_of_this_boot(migration):
        return {}
    facts = migration.facts
    root.open()
    try:
        if not restored.members([root.pid], facts["restore_began"], facts["occupied"]):
            # It ended before it could be held, or its PID has gone to another process.
            return {"ended_after_ms": round((time.time() - resumed_at) * 1000, 1), "ended_by": ""}
        return ended(root, resumed_at, resumed_at + WATCH_S - time.time())
    finally:
        root.close()
