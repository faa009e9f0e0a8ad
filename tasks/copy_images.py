"""copy_images, on the source: the small images follow, and from here on the destination decides.

``released`` is written before the first byte leaves. If the worker, Redis, the network or this host dies after
that, the original stays frozen until the destination's verdict is known: ``restored`` retires it, ``refused``
resumes it. The destination restores only from a set of images that it has checked for completeness, so a copy cut
short ends in ``refused``. Sending twice is harmless: the holder takes one copy and closes.
"""

from __future__ import annotations

import time
from pathlib import Path

from sojourn import channel
from sojourn.channel import Manifest
from sojourn.errors import FreezeTooLong
from sojourn.host import Migration
from sojourn.model import Outcome, Phase
from sojourn.run import run
from tasks.step import step

#: The small images of a large tree are some tens of MB: this is for a network that has stopped.
COPY_DEADLINE_S = 30


@step(deadline_s=10, begins_in={Phase.FROZEN}, in_freeze=True)
def copy_images(migration: Migration) -> Outcome:
    """Send every file of the image directory and keep the list, by which the destination checks them."""
    files, deadline_s = migration.directory.files(), min(_freeze_left_s(migration), COPY_DEADLINE_S)
    if deadline_s <= 0:
        raise FreezeTooLong(
            f"Process {migration.plan.pid} was frozen for longer than {migration.plan.max_freeze_s:g} s before its "
            f"images could leave {migration.host.name}.",
            "Allow more with `--max-freeze`, or look what kept the worker.",
        )
    migration.become(Phase.RELEASED)
    send = _by_scp if migration.host.settings.copy_images_with == "scp" else _by_channel
    manifest = send(migration, files, deadline_s)
    total = sum(manifest.values())
    return Outcome(
        f"{len(manifest)} images, {total / 1e3:.0f} kB",
        {
            "manifest": manifest,
            "images_bytes": total,
            "images_sent": time.time(),
            "freeze_left_s": _freeze_left_s(migration),
        },
    )


def _freeze_left_s(migration: Migration) -> float:
    return float(migration.plan.max_freeze_s - (time.time() - migration.facts["freeze_started"]))


def _by_channel(migration: Migration, files: list[Path], deadline_s: float) -> Manifest:
    address, port = migration.facts["page_address"], migration.facts["page_port"]
    with channel.connect(address, port, migration.secret, "images", migration.party) as peer:
        return channel.send_files(peer, files, deadline_s)


def _by_scp(migration: Migration, files: list[Path], deadline_s: float) -> Manifest:
    """Copy with scp(1), where the sites's hosts trust each other's keys; never asks for a password."""
    target = f"root@{migration.facts['page_address']}:{migration.directory.images}/"
    run(["scp", "-r", "-q", "-B", *files, target], deadline_s=deadline_s)
    return {path.name: path.stat().st_size for path in files}
