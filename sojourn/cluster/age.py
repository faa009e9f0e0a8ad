"""Whether a journal has all that this host recorded, or is an older copy of it.

A journal from a backup permits what is over: a destination would refuse a process that runs there,
and a source resume one that has moved. So the journal counts its phases (``Mark``), and the worker
keeps the mark where no backup of the journal is: in ``runtime_dir``, and in Redis. With a journal
that lacks any of it no worker starts.

A journal that is empty is a host's first, or begun again by whoever removed the last one: a host
that had prepared for a migration and has no record of it decides nothing about that one
(``tasks/delivery.py``).
"""

from __future__ import annotations

from pathlib import Path

from sojourn.errors import JournalLost
from sojourn.state.mark import Mark
from sojourn.system import json_file

#: The mark in ``runtime_dir``.
FILE = "journal.json"


def keep(runtime_dir: Path, mark: Mark) -> None:
    """Keep a mark until the next boot. Raises OSError."""
    json_file.write(runtime_dir / FILE, mark.to_json())


def kept(runtime_dir: Path) -> Mark | None:
    """Return the mark that was kept since the last boot, None if there is none."""
    return Mark.of(json_file.read(runtime_dir / FILE))


def check(host: str, journal: Path, mark: Mark, known: Mark | None) -> None:
    """Raise JournalLost if a journal, whose mark is given, lacks what is known to be in it."""
    if known is None or mark.number == 0:
        return
    if mark.identity == known.identity and mark.number >= known.number:
        return
    lacks = (
        f"lacks {known.number - mark.number} phases that {host} has recorded"
        if mark.identity == known.identity
        else f"is not the one that {host} had"
    )
    raise JournalLost(
        f"{journal} {lacks}: it is an older copy, or another host's. Nothing was done by it.",
        "Put the newest one back. If there is none, follow docs/how-to/recover-a-journal.md.",
    )
