"""The logs of migrations on this host: reading them within bounds, and removing old ones.

They are in the migration's work directory (``sojourn.transfer.image_directory``), outlive the
migration, and are removed after ``keep_days``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.criu import diagnosis

#: The first line of a log: ``(00.000000) CRIU run id = 60feaa84-b74f-4109-88ba-ff4d3e108a22``.
RUN_ID_LINE = re.compile(r"CRIU run id = (\S+)")

#: The logs of our own programs, and all that are shown, in the order of a migration. A file with
#: ``.out`` holds what CRIU prints while it cannot write its log yet.
OURS = ("holder.log", "sender.log", "pager.log")
NAMES = (
    *("dump.log", "dump.out"),
    *("page-server.log", "page-server.out"),
    *("restore.log", "restore.out"),
    *OURS,
)

#: How much of the end of one log is read: it travels through the broker.
TAIL_BYTES = 256 * 1024

#: The share of their file system that the logs of all migrations may fill.
SHARE = 0.25

#: How many lines are shown before and after an error.
LINES_BEFORE, LINES_AFTER = 5, 1

#: What replaces the lines that are left out between two errors.
GAP = "[…]"


@dataclass(frozen=True)
class Log:
    """One log: its path, its whole size, and its text or the part that was requested."""

    path: str
    size_bytes: int
    text: str
    whole: bool


def read(work: Path, *, only_errors: bool) -> list[Log]:
    """Return the end of each log of a work directory, or its errors with the lines around them.

    Missing and empty logs are left out; with ``only_errors``, logs without errors too.
    """
    paths = [work / name for name in NAMES]
    found = [
        _read(path, only_errors=only_errors)
        for path in paths
        if path.is_file() and path.stat().st_size
    ]
    return [log for log in found if log.text]


def run_id(log: Path) -> str | None:
    """Return the id of a run of CRIU, which names its network lock; None if there is no log."""
    if not log.exists():
        return None
    with log.open(errors="replace") as lines:
        found = RUN_ID_LINE.search(lines.readline())
    return found[1] if found else None


def remove_old(runtime_dir: Path, before: float, needed: Collection[str]) -> list[str]:
    """Remove the logs of old migrations, and return the ids of those migrations.

    Old are those to which nothing was written since ``before`` (seconds since the epoch), and the
    oldest ones while all logs together fill more than their share of the file system, which is
    often in memory. Those whose id is ``needed`` are kept. The rest of a migration's directory
    stays: its lock, since a late delivery may hold it, and a tmpfs that is still mounted.
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
    # Writing to a log does not change the time of its directory.
    return max(path.stat().st_mtime for path in (work, *work.iterdir()))


def _size(work: Path) -> int:
    return sum(path.stat().st_size for path in work.iterdir())


def _read(path: Path, *, only_errors: bool) -> Log:
    size = path.stat().st_size
    text = _errors(path) if only_errors else _tail(path, size)
    # Replacing what is not UTF-8 can make a text longer, so its size is bounded once more.
    cut = text.encode(errors="replace")[-TAIL_BYTES:].decode(errors="replace")
    return Log(str(path), size, cut, whole=not only_errors and size <= TAIL_BYTES)


def _tail(path: Path, size: int) -> str:
    """Return the end of a file, beginning with a whole line."""
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read(TAIL_BYTES).decode(errors="replace")
    return text if size <= TAIL_BYTES else text.partition("\n")[2]


def _errors(path: Path) -> str:
    """Return the error lines, some lines around each, and a mark where lines are left out."""
    lines = path.read_text(errors="replace").splitlines()
    # These are short, and what they report does not have the form of CRIU's error lines.
    if path.suffix == ".out" or path.name in OURS:
        return "\n".join(line for line in lines if not diagnosis.is_noise(line))
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
