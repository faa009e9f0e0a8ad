"""The logs of migrations on this host: reading them within bounds, and removing old ones.

They lie in a migration's work directory (``sojourn.images``), outlive the migration, and go after ``keep_days``.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn import diagnosis

#: What is shown, in the order of a migration; those with ``.out`` are what CRIU says when it can not yet write its log.
NAMES = (
    *("dump.log", "dump.out"),
    *("page-server.log", "page-server.out"),
    *("restore.log", "restore.out"),
    "holder.log",
)

#: How much of the end of one log is read: it crosses the broker.
TAIL_BYTES = 256 * 1024

#: Which part of their file system the logs of all migrations may fill.
SHARE = 0.25

#: How many lines are shown before and after an error.
LINES_BEFORE, LINES_AFTER = 5, 1

#: What stands in the place of lines that are left out between two errors.
GAP = "[…]"


@dataclass(frozen=True)
class Log:
    """One log: its path, its whole size, and its text or the part of it that was asked for."""

    path: str
    size_bytes: int
    text: str
    whole: bool


def read(work: Path, *, only_errors: bool) -> list[Log]:
    """Return the logs of a work directory that are there and not empty: their ends, or their errors with what is near.

    With ``only_errors`` a log without errors is left out.
    """
    paths = [work / name for name in NAMES]
    found = [_read(path, only_errors=only_errors) for path in paths if path.is_file() and path.stat().st_size]
    return [log for log in found if log.text]


def remove_old(runtime_dir: Path, before: float, needed: Collection[str]) -> list[str]:
    """Remove the logs of migrations in which nothing was written since ``before`` (seconds since the epoch).

    Beyond that the oldest, while all together fill more than their share of the file system, which is often memory.
    Those whose id is ``needed`` are kept. Return the ids of the others. What else is there of a migration stays: its
    lock, since a late delivery may hold it, and a tmpfs that is mounted.
    """
    works = sorted(runtime_dir.glob("*/work"), key=_written)
    room = shutil.disk_usage(runtime_dir).total * SHARE - sum(map(_size, works))
    removed = []
    for work in works:
        migration = work.parent.name
        if migration not in needed and (room < 0 or _written(work) < before):
            room += _size(work)
            shutil.rmtree(work)
            removed.append(migration)
    return removed


def _written(work: Path) -> float:
    return max(path.stat().st_mtime for path in (work, *work.iterdir()))


def _size(work: Path) -> int:
    return sum(path.stat().st_size for path in work.iterdir())


def _read(path: Path, *, only_errors: bool) -> Log:
    size = path.stat().st_size
    text = _errors(path) if only_errors else _tail(path, size)
    cut = text.encode(errors="replace")[-TAIL_BYTES:].decode(errors="replace")
    return Log(str(path), size, cut, whole=not only_errors and size <= TAIL_BYTES)


def _tail(path: Path, size: int) -> str:
    """Return the end of a file, from the beginning of a line on."""
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read(TAIL_BYTES).decode(errors="replace")
    return text if size <= TAIL_BYTES else text.partition("\n")[2]


def _errors(path: Path) -> str:
    """Return the lines with errors, with some lines around each, and a mark where lines are left out."""
    lines = path.read_text(errors="replace").splitlines()
    if path.suffix == ".out" or path.name == "holder.log":
        return "\n".join(lines)
    shown = sorted({near for index in _error_lines(lines) for near in _near(index, len(lines))})
    return "\n".join(_with_gaps(lines, shown))


def _error_lines(lines: list[str]) -> list[int]:
    return [index for index, line in enumerate(lines) if diagnosis.errors(line)]


def _near(index: int, end: int) -> range:
    return range(max(0, index - LINES_BEFORE), min(end, index + LINES_AFTER + 1))


def _with_gaps(lines: list[str], shown: list[int]) -> Iterator[str]:
    last = -1
    for index in shown:
        if index > last + 1:
            yield GAP
        yield lines[index]
        last = index
