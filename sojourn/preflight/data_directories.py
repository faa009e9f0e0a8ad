"""Data directories: a database has more files than it has open.

A copy of a data directory that was taken while the database ran differs from it wherever it was
written since, and most of that is in files that are closed at this moment. So where the tree has
files of a data directory open for writing, all of it belongs to the tree: each file must be the
same object on both hosts, or have the same content, as if it were open. A data directory is known
by a file that all databases of its kind keep in it. An SQLite database is a file with others beside
it that have its name and more.

On a file system that other hosts see as well, the open files tell whether it is the same one.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from sojourn.preflight.files import Needed, content_of
from sojourn.preflight.same_file import FileSystems, file_systems, is_vouched, marks, remote_devices
from sojourn.preflight.scan import File, Tree
from sojourn.system import process

#: What is in each data directory of PostgreSQL, MySQL and MariaDB, MongoDB, RocksDB and LevelDB,
#: LMDB, Redis and Valkey, Berkeley DB, Lucene, etcd, Kafka, and Prometheus.
MARKERS = (
    *("PG_VERSION", "ibdata1", "WiredTiger", "CURRENT", "data.mdb", "appendonlydir", "__db.001"),
    *("write.lock", "member", "meta.properties", "chunks_head"),
)

#: What SQLite keeps beside a database (https://www.sqlite.org/tempfiles.html).
BESIDE = ("-wal", "-shm", "-journal")

#: How many files of one data directory are looked at, and how far above an open file it may be.
MOST_FILES, LEVELS = 5000, 4

#: The size of what is too large to compare.
ENDLESS = 2**62


def needed(tree: Tree) -> list[Needed]:
    """Return what a tree needs of its data directories beside what it has open."""
    remote, known = remote_devices(), {file.path for file in tree.files.values() if file.sized}
    written = [file for file in tree.files.values() if _is_written(file, remote)]
    directories = {file.path.rpartition("/")[0] for file in written}
    places = {place for directory in directories if (place := _place(directory))}
    beside = (path for directory in directories for path in _beside(directory, written))
    # Once for each: a data directory may have thousands of files.
    below = {place: _below(place) for place in places}
    paths = {*beside, *(path for inside in below.values() for path in inside)}
    since, systems = process.started(tree.root.pid), file_systems()
    found = (_needed(path, since, systems) for path in sorted(paths - known))
    return [*filter(None, found), *_too_many(below, systems)]


def _is_written(file: File, remote: set[int]) -> bool:
    is_file = modes.S_ISREG(file.stat.st_mode) and file.stat.st_nlink
    local = file.stat.st_dev not in remote and not is_vouched(file.path)
    return bool(is_file and file.written and local)


def _place(directory: str) -> str:
    """Return the data directory that a directory is in, the topmost one; empty if in none."""
    found = ""
    for _ in range(LEVELS):
        if directory and any(os.path.lexists(f"{directory}/{marker}") for marker in MARKERS):
            found = directory
        directory = directory.rpartition("/")[0]
    return found


def _beside(directory: str, written: Iterable[File]) -> Iterator[str]:
    """Yield what is in a directory beside the databases there."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        paths = [entry.path for entry in entries if entry.name.endswith(BESIDE)]
        databases = {file.path for file in written} if paths else ()
        yield from (path for path in paths if path.rpartition("-")[0] in databases)


def _below(place: str) -> list[str]:
    """Return the paths of the files in a data directory, and in those that it links to."""
    found: list[str] = []
    seen: set[str] = set()
    waiting = [place]
    while waiting and len(found) <= MOST_FILES:
        directory = os.path.realpath(waiting.pop())
        if directory in seen:
            continue
        seen.add(directory)
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif entry.is_file():
                    found.append(os.path.realpath(entry.path))
    return found


def _needed(path: str, since: float, systems: FileSystems) -> Needed | None:
    with contextlib.suppress(OSError):
        stat = Path(path).stat()
        if modes.S_ISREG(stat.st_mode):
            file = Needed(
                path,
                stat.st_mode,
                stat.st_size,
                owner=(stat.st_uid, stat.st_gid),
                marks=marks(path, path, stat, systems),
                changed_ns=stat.st_mtime_ns,
            )
            if stat.st_mtime >= since:
                return replace(file, written=True)
            return replace(file, fingerprint=content_of(path, stat))
    return None


def _too_many(below: Mapping[str, list[str]], systems: FileSystems) -> Iterator[Needed]:
    for place, paths in below.items():
        if len(paths) > MOST_FILES:
            stat = Path(place).stat()
            seen = marks(place, place, stat, systems)
            yield Needed(place, stat.st_mode, ENDLESS, written=True, marks=seen)
