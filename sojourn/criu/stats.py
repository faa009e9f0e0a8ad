"""What CRIU measures of a run, from ``stats-dump`` and ``stats-restore``.

https://criu.org/Statistics; ``stats_entry`` of images/stats.proto has the numbers of the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sojourn.criu.protobuf import entries, fields
from sojourn.errors import CriuFailed

#: The field of ``stats_entry`` that a run fills.
ENTRY = {"dump": 1, "restore": 2}

#: The figures of a run by the numbers of their fields: times in microseconds, pages of 4096 bytes.
FIGURES = {
    "dump": {
        1: "freezing_us",
        2: "frozen_us",
        3: "memdump_us",
        4: "memwrite_us",
        5: "pages_scanned",
        7: "pages_written",
    },
    "restore": {3: "forking_us", 4: "restore_us", 5: "pages_restored"},
}


@dataclass(frozen=True)
class DumpStats:
    """What CRIU measured of one dump; times in microseconds, sizes in pages of 4096 bytes."""

    freezing_us: int
    frozen_us: int
    pages_written: int


def of_dump(work: Path) -> DumpStats:
    """Read ``stats-dump``. The figures are only reported to people, so a missing one is zero.

    Raises CriuFailed for a file that is cut short.
    """
    found = _read(work, "dump")
    return DumpStats(*(found.get(name, 0) for name in DumpStats.__dataclass_fields__))


def figures(work: Path, verb: str) -> dict[str, int]:
    """Return the figures of a dump or a restore by name; none if they cannot be read."""
    try:
        return _read(work, verb)
    except (CriuFailed, OSError):
        return {}


def _read(work: Path, verb: str) -> dict[str, int]:
    file = work / f"stats-{verb}"
    return _numbers(file.read_bytes(), verb) if file.exists() else {}


def _numbers(image: bytes, verb: str) -> dict[str, int]:
    """Return the figures that an image has; none for an empty file."""
    begin, end = next(entries(image), (0, 0))
    run = next((field for field in fields(image, begin, end) if field.number == ENTRY[verb]), None)
    if run is None:
        return {}
    return {
        FIGURES[verb][field.number]: field.value
        for field in fields(image, run.begin, run.end)
        if isinstance(field.value, int) and field.number in FIGURES[verb]
    }
