"""copy_images, on the source: the small images follow, and from here on the destination decides.

``released`` is written before the first byte leaves. If the worker, Redis, the network or this host
dies after that, the original stays frozen until the destination's verdict is known: ``restored``
retires it, ``refused`` resumes it. The destination restores only from a set of images that it has
checked for completeness, so a copy cut short ends in ``refused``. Sending twice is safe: the holder
takes one copy and closes.
"""

from __future__ import annotations

import time
from pathlib import Path

from sojourn import units
from sojourn.errors import FreezeTooLong
from sojourn.migration.context import Migration
from sojourn.model import Phase
from sojourn.state.message import Outcome
from sojourn.system.run import run
from sojourn.transfer import channel
from sojourn.transfer.channel import Manifest
from tasks.step import step

#: The small images of a large tree are some tens of MB: this is for a network that has stopped.
#: Files in memory travel with them, by a slow network at this pace; a limit of the plan is added.
COPY_DEADLINE_S = 30
SLOWEST_BYTES_PER_S = 10e6


@step(deadline_s=10, begins_in={Phase.FROZEN}, in_freeze=True)
def copy_images(migration: Migration) -> Outcome:
    """Send every file of the image directory, and keep the list for the destination's check."""
    # Without the memory, which the page server has written on the destination; its exit code
    # vouches for that, as this list does for the rest. In post-copy with what can never come later.
    files = migration.directory.files()
    deadline_s = _deadline_s(migration, files)
    if deadline_s <= 0:
        raise FreezeTooLong(
            f"Process {migration.plan.pid} was frozen for longer than "
            f"{migration.plan.max_freeze_s:g} s before its images could leave "
            f"{migration.host.name}.",
            "Allow more with `--max-freeze`, or find out what delayed the worker.",
        )
    # The point of no return for this host: before the first byte leaves.
    migration.become(Phase.RELEASED)
    send = _by_scp if migration.host.settings.copy_images_with == "scp" else _by_channel
    manifest = send(migration, files, deadline_s)
    total = sum(manifest.values())
    return Outcome(
        f"{units.counted(len(manifest), 'image')}, {units.size(total)}",
        {
            "manifest": manifest,
            "images_bytes": total,
            "images_sent": time.time(),
            # Seconds and not an instant: the destination's clock may differ.
            "freeze_left_s": _freeze_left_s(migration),
        },
    )


def _deadline_s(migration: Migration, files: list[Path]) -> float:
    """Return how long the copy may take: what is left of the freeze at most."""
    size = sum(path.stat().st_size for path in files)
    may_take_s = COPY_DEADLINE_S + size / SLOWEST_BYTES_PER_S
    if migration.plan.bytes_per_s:
        may_take_s += size / migration.plan.bytes_per_s
    return min(_freeze_left_s(migration), may_take_s)


def _freeze_left_s(migration: Migration) -> float:
    return float(migration.plan.max_freeze_s - (time.time() - migration.facts["freeze_started"]))


def _by_channel(migration: Migration, files: list[Path], deadline_s: float) -> Manifest:
    address, port = migration.facts["page_address"], migration.facts["page_port"]
    with channel.connect(address, port, migration.secret, "images", migration.tls_identity) as peer:
        channel.pace(peer, migration.plan.bytes_per_s)
        return channel.send_files(peer, files, deadline_s)


def _by_scp(migration: Migration, files: list[Path], deadline_s: float) -> Manifest:
    """Copy with scp(1), where a site's hosts trust each other's keys."""
    # ``-B`` never asks for a password: a frozen tree waits. ``-l`` counts in Kbit/s.
    mbit = migration.plan.bandwidth_mbit
    limit = ["-l", str(1000 * mbit)] if mbit else []
    target = f"root@{migration.facts['page_address']}:{migration.directory.images}/"
    run(["scp", "-r", "-q", "-B", *limit, *files, target], deadline_s=deadline_s)
    return {path.name: path.stat().st_size for path in files}
