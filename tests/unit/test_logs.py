"""The logs of migrations on a host: what is read of them, and when they are removed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from sojourn.criu.logs import GAP, TAIL_BYTES, read, remove_old

GOOD = "(00.1) Version: 4.2 (gitid 0)\n"
BAD = "(00.2) Error (criu/x.c:1): it broke\n"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Make a work directory."""
    directory = tmp_path / "7d3a" / "work"
    directory.mkdir(parents=True)
    return directory


def test_logs_are_read_in_the_order_of_a_migration(work: Path) -> None:
    """Files that are empty, or are not logs, are left out."""
    for name, text in (
        ("restore.log", BAD),
        ("dump.log", GOOD),
        ("holder.log", ""),
        ("stats-dump", "x"),
    ):
        (work / name).write_text(text)
    first, second = read(work, only_errors=False)
    assert (first.path, first.text, first.size_bytes, first.whole) == (
        str(work / "dump.log"),
        GOOD,
        len(GOOD),
        True,
    )
    assert second.path.endswith("restore.log")
    assert read(work.parent / "none", only_errors=False) == []


def test_the_end_of_a_long_log_is_read(work: Path) -> None:
    """It begins with a whole line and fits through the broker; the size is that of all the log."""
    (work / "dump.log").write_text(GOOD * 20_000 + BAD)
    (log,) = read(work, only_errors=False)
    assert log.text.endswith(GOOD + BAD)
    assert log.text.startswith(GOOD)
    assert TAIL_BYTES - len(GOOD) <= len(log.text) <= TAIL_BYTES
    assert log.size_bytes == 20_000 * len(GOOD) + len(BAD)
    assert not log.whole


def test_only_errors(work: Path) -> None:
    """Errors are shown with the lines around them; noise and logs without errors are left out."""
    noise = "(00.0) Error (criu/rlimit.c:20): Can't setup RLIMIT_NOFILE for self: No such process\n"
    lines = [f"(00.1) line {number}\n" for number in range(100)]
    (work / "dump.log").write_text("".join([noise, *lines[:50], BAD, *lines[50:]]))
    (work / "restore.log").write_text(noise + GOOD)
    (log,) = read(work, only_errors=True)
    assert log.text == "".join([f"{GAP}\n", *lines[45:50], BAD, lines[50]]).rstrip("\n")
    assert not log.whole


def test_every_line_of_the_holder_is_an_error(work: Path) -> None:
    """The holder logs only errors, in no particular form."""
    (work / "holder.log").write_text("Traceback\n")
    assert [log.text for log in read(work, only_errors=True)] == ["Traceback"]


def test_what_says_nothing_about_the_cause_is_no_error(work: Path) -> None:
    """A CRIU that waited for its request, and was ended, is none."""
    noise = "Error (criu/cr-service.c:1373): Can't recv request: Connection reset by peer\n"
    (work / "restore.out").write_text(noise)
    assert "restore.out" not in {Path(log.path).name for log in read(work, only_errors=True)}
    assert "restore.out" in {Path(log.path).name for log in read(work, only_errors=False)}


def test_a_log_that_is_not_text(work: Path) -> None:
    """Bytes that are not UTF-8 do not keep the rest from being shown."""
    (work / "dump.log").write_bytes(b"(00.1) \xff\n")
    assert [log.text for log in read(work, only_errors=False)] == ["(00.1) \ufffd\n"]


def _aged(work: Path, days: float) -> None:
    then = time.time() - days * 86_400
    for path in (*work.iterdir(), work):
        os.utime(path, (then, then))


def test_old_logs_are_removed(work: Path) -> None:
    """Only old logs of migrations that are not needed are removed: images and lock stay."""
    runtime = work.parent.parent
    for name in ("fresh", "needed"):
        (runtime / name / "work").mkdir(parents=True)
        (runtime / name / "work/dump.log").write_text(GOOD)
    (work / "dump.log").write_text(GOOD)
    (work.parent / "images").mkdir()
    (work.parent / "lock").touch()
    (runtime / "worker.pid").write_text("1")
    _aged(work, 8)
    _aged(runtime / "needed/work", 8)
    before = time.time() - 7 * 86_400
    assert remove_old(runtime, before, {"needed"}) == ["7d3a"]
    assert sorted(path.name for path in work.parent.iterdir()) == ["images", "lock"]
    assert (runtime / "fresh/work/dump.log").exists()
    assert (runtime / "needed/work/dump.log").exists()
    assert remove_old(runtime, before, {"needed"}) == []


def test_logs_that_fill_the_file_system_are_removed(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first, and no more than necessary; one that is needed stays."""
    runtime = work.parent.parent
    for age, name in enumerate(("new", "old", "needed")):
        (runtime / name / "work").mkdir(parents=True)
        (runtime / name / "work/dump.log").write_bytes(bytes(1000))
        _aged(runtime / name / "work", age)
    monkeypatch.setattr("sojourn.criu.logs.SHARE", 2000 / shutil.disk_usage(runtime).total)
    assert remove_old(runtime, 0, {"needed"}) == ["old"]
    assert (runtime / "new/work/dump.log").exists()


def test_a_log_that_is_still_written_is_not_old(work: Path) -> None:
    """The last write to any of the files counts, not when the directory was created."""
    (work / "dump.log").write_text(GOOD)
    _aged(work, 8)
    (work / "dump.log").write_text(GOOD * 2)
    os.utime(work, (0, 0))
    assert remove_old(work.parent.parent, time.time() - 60, set()) == []
