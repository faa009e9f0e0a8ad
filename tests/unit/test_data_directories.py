"""Data directories: what is closed belongs to a database as well."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.migration import written
from sojourn.preflight import data_directories, files, same_file
from sojourn.preflight.files import Needed
from sojourn.preflight.scan import scan

#: Keeps a file open for writing, in a directory with others.
KEEPS = """
import sys
kept = open(sys.argv[1], "r+b")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a data directory like PostgreSQL's, with a file of long ago and one of now."""
    base = tmp_path / "data" / "base"
    base.mkdir(parents=True)
    for name in ("open", "old", "new"):
        (base / name).write_text(name)
    os.utime(base / "old", (10**9, 10**9))
    (tmp_path / "data" / "PG_VERSION").write_text("17")
    os.utime(tmp_path / "data" / "PG_VERSION", (10**9, 10**9))
    return base


@pytest.fixture
def keeper(place: Path) -> Iterator[int]:
    """Start a program that keeps one file of it open."""
    command = [sys.executable, "-c", KEEPS, str(place / "open")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        yield running.pid
        running.kill()


def by_name(found: list[Needed]) -> dict[str, Needed]:
    """Return what is needed, by the names of the files."""
    return {Path(file.path).name: file for file in found}


def test_what_is_closed_is_compared_too(keeper: int, place: Path) -> None:
    """In the freeze if it was written since the tree began, else by its content or its time."""
    time.sleep(0.02)
    (place / "new").write_text("newer")
    found = by_name(data_directories.needed(scan(keeper)))
    assert {*found} == {"PG_VERSION", "old", "new"}
    assert found["new"].written
    assert not found["old"].written
    assert codes(*found.values()) == []
    (place / "old").write_text("odd")
    assert codes(found["old"]) == ["FILE_DIFFERS"]


def test_no_data_directory(keeper: int, place: Path) -> None:
    """Other files of a directory are no business of the tree."""
    (place.parent / "PG_VERSION").unlink()
    assert data_directories.needed(scan(keeper)) == []


def test_too_many_files(keeper: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not compared, so the whole directory must be the same one."""
    monkeypatch.setattr(data_directories, "MOST_FILES", 1)
    whole = by_name(data_directories.needed(scan(keeper)))["data"]
    assert codes(whole) == []
    other = Needed(whole.path, whole.mode, whole.size, written=True, marks=("another",))
    (finding,) = files.missing_or_different([other])
    assert "too large to be compared" in finding.sentence


def test_what_sqlite_keeps_beside(place: Path) -> None:
    """A log of writes belongs to its database, whoever has it open."""
    database = place / "rows.db"
    writer = sqlite3.connect(database)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE rows (text TEXT)")
    writer.commit()
    (place.parent / "PG_VERSION").unlink()
    command = [sys.executable, "-c", KEEPS, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        found = by_name(data_directories.needed(scan(running.pid)))
        running.kill()
    writer.close()
    assert {*found} == {"rows.db-wal", "rows.db-shm"}


def codes(*needed: Needed) -> list[str]:
    """Return what speaks against files."""
    return [finding.code for finding in files.missing_or_different(needed)]


def test_what_was_written_to_shared_storage_is_flushed(
    keeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only there: a local file is no other host's business."""
    assert written.flush([keeper]) == 0
    network = {Path(f"/proc/{keeper}/fd/3").stat().st_dev}
    monkeypatch.setattr(same_file, "remote_devices", lambda: network)
    assert written.flush([keeper]) == 1
