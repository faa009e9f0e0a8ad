"""The memory of a tree that runs here already, on its way into place, as a step sees it.

The work is done by a pager and its guard (``sojourn.transfer.pager``), of which either can die. If
both do, what is missing cannot be put into place any more, and the kernel would hand out zeros: the
tree is ended, and the process is lost. So it is in post-copy if the original is gone before its
memory has come. That is written down before it is done, so that it is finished by whoever comes
next.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict

from sojourn.errors import ChannelFailed
from sojourn.migration import remains
from sojourn.migration.context import Migration
from sojourn.model import Identity, Json, Role
from sojourn.state.facts import Facts
from sojourn.system import json_file, process
from sojourn.system.pidfd import Held
from sojourn.transfer import pager, pair

#: How the journal holds a tree whose memory is on its way: no other migration may touch it.
ARRIVING = ("arriving", "memory")

#: How often the journal is read while memory comes into place, in seconds.
READ_S = 0.005

#: How long CRIU may take to connect: from the reservation on, with the freeze and every retry.
PATIENCE_S = 3600


def prepare(migration: Migration) -> None:
    """Start a pager, before the freeze; none if the tree shall wait for its memory."""
    end(migration)
    if migration.facts.get("lazy"):
        # Here and not in ``restore``, for which a frozen tree waits.
        migration.host.journal.hold(migration.entry, *ARRIVING)
        _start(migration)


def prepare_again(migration: Migration) -> None:
    """Start another pager if the first one is dead, or has served an earlier restore."""
    ours = migration.facts.get("pager")
    used = (migration.directory.work / pager.READY).exists()
    if not used and ours and process.is_alive(Identity(**ours)):
        return
    end(migration)
    _start(migration)


def end(migration: Migration) -> None:
    """End the pagers of a tree that will not run, or that needs none any more. Safe to repeat."""
    migration.end_pagers()
    for name in pager.FILES:
        (migration.directory.work / name).unlink(missing_ok=True)


def watch(migration: Migration, until: float) -> None:
    """Watch pager and guard until the journal has more to say, one of them ends, or time is up."""
    with contextlib.ExitStack() as undo:
        pids = pair.pids(migration.directory.work)
        both = [undo.enter_context(contextlib.closing(Held(pid))) for pid in pids]
        while migration.is_unsettled() and time.monotonic() < until and _both_live(both):
            if is_original_gone(migration):
                return
            migration.refresh()


def _both_live(both: list[Held]) -> bool:
    """Wait for a moment; return whether both are there and have not ended."""
    for one in both:
        one.open()
    return bool(both) and not any(
        one.descriptor is None or one.ended_within(READ_S) for one in both
    )


def is_broken(migration: Migration) -> bool:
    """Whether the tree runs, memory is missing, and nobody is there any more to put it into place.

    Nobody can be there again: with the last of them the kernel has forgotten what was missing.
    """
    if not migration.is_unsettled() or "memory_lost" in migration.facts:
        return migration.is_unsettled()
    if migration.pagers() and not is_original_gone(migration):
        return False
    # The last pager reports before it ends; at least that nothing was missing any more.
    migration.refresh()
    filled = migration.directory.work / pager.FILLED
    if migration.is_unsettled() and filled.exists():
        migration.learn(settled_at=filled.stat().st_mtime)
    return migration.is_unsettled()


def is_original_gone(migration: Migration) -> bool:
    """Whether the memory was to come from an original that does not exist any more."""
    if not migration.plan.post_copy:
        return False
    known = bool(migration.facts.get("original_gone")) or migration.is_declared_dead(Role.SOURCE)
    return known or (migration.directory.work / pager.GONE).exists()


def progress(migration: Migration) -> Json:
    """Return how far the pager is: bytes ``missing``, ``faults`` and waits; empty if not known."""
    found: Json = json_file.read(migration.directory.work / pager.PROGRESS) or {}
    return found


def lose(migration: Migration) -> int:
    """End a tree whose memory is lost; return how many bytes were missing. Safe to repeat."""
    if "memory_lost" not in migration.facts:
        gone, missing = is_original_gone(migration), _missing_bytes(migration)
        migration.learn(memory_lost=missing, lost_with_original=gone)
    process.kill(process.descent(remains.made_here(migration)))
    # Not before: whoever comes in between must end the tree, and keep its pager and its original.
    migration.learn(lost_at=time.time())
    # After the tree: it would read zeros.
    migration.end_pagers()
    return migration.facts["memory_lost"]


def loss(migration: Migration) -> Facts:
    """Return what to report of memory that is lost; empty where none is."""
    facts = migration.facts
    if "memory_lost" not in facts:
        return {}
    gone = facts.get("lost_with_original", False)
    return {"memory_lost": facts["memory_lost"], "lost_with_original": gone}


def _missing_bytes(migration: Migration) -> int:
    """Return how much of the page store was not given back, or has not come from the original."""
    if migration.plan.post_copy:
        return int(progress(migration).get("missing", migration.facts["tree_bytes"]))
    pages = migration.directory.images.glob("pages-*.img")
    return sum(image.stat().st_blocks * 512 for image in pages)


def _start(migration: Migration) -> None:
    settings, work = migration.host.settings, migration.directory.work
    child = pager.start(
        pager.Assignment(
            migration=migration.id,
            journal=str(migration.host.journal.path),
            images=str(migration.directory.images),
            work=str(work),
            before_commit=settings.lazy_restore == "before-commit",
            deadline_s=PATIENCE_S,
            from_original=migration.plan.post_copy,
            secret=migration.secret.hex() if migration.plan.post_copy else "",
            certificates=str(settings.certificates or ""),
            peer=migration.peer,
        ),
        work / "pager.log",
    )
    # The output ends with the pager, so this does not wait for one that could not begin.
    if not child.stdout.readline():
        raise ChannelFailed(
            f"The pager on {migration.host.name} ended at once.", f"See {work / 'pager.log'}."
        )
    migration.learn(pager=asdict(process.identity(child.pid)))
