"""CRIU's command lines, logs and images, as far as Sojourn reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from sojourn.criu import Criu, DumpStats, cause, dump_stats, errors, failure, run_id
from sojourn.criu import _fields as fields
from sojourn.errors import CommandMissing, CriuFailed
from sojourn.model import Plan

#: Lines as CRIU 4.2 writes them, of a restore that failed because a file had changed.
LOG = """\
(00.000000) Version: 4.2 (gitid 0)
(00.000014) Warn  (criu/kerndat.c:1153): $XDG_RUNTIME_DIR not set. Cannot find location for kerndat file
(00.000301) Error (criu/rlimit.c:20): Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.004512) Error (criu/files-reg.c:2031): File srv/data.log has bad size 12 (expect 10)
(00.004520)   4242: Error (criu/files.c:1241): Unable to open fd=3 id=0x4
(00.004531) Error (criu/cr-restore.c:1439): 4242 exited, status=1
(00.004540) Error (criu/mount.c:9): the fourth is not shown
(00.004601) Error (criu/cr-restore.c:2605): Killing processes because of failure on restore.
(00.004612) Error (criu/cr-restore.c:2320): Restoring FAILED.
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Write the sample to disk."""
    path = tmp_path / "restore.log"
    path.write_text(LOG)
    return path


def test_errors(log: Path) -> None:
    """The first three errors without the noise, the first one being the cause."""
    assert errors(log) == [
        "Error (criu/files-reg.c:2031): File srv/data.log has bad size 12 (expect 10)",
        "Error (criu/files.c:1241): Unable to open fd=3 id=0x4",
        "Error (criu/cr-restore.c:1439): 4242 exited, status=1",
    ]


def test_errors_of_the_restorer(tmp_path: Path) -> None:
    """What fails in CRIU's restorer blob is told with one more prefix, and is as much a cause."""
    (tmp_path / "log").write_text("(00.111858) pie: 4242: Error (criu/pie/restorer.c:1278): Unable to remap a page\n")
    assert errors(tmp_path / "log") == ["Error (criu/pie/restorer.c:1278): Unable to remap a page"]
    (tmp_path / "log").write_text("pie: 4242: Error (criu/pie/parasite.c:92): Can't splice pages to pipe (-1/3/0)\n")
    assert errors(tmp_path / "log") == ["Error (criu/pie/parasite.c:92): Can't splice pages to pipe (-1/3/0)"]


def test_the_run_id(tmp_path: Path) -> None:
    """A log begins with the id by which the dump named its network lock; without a log, or that line, there is none."""
    log = tmp_path / "dump.log"
    assert run_id(log) is None
    log.write_text("")
    assert run_id(log) is None
    log.write_text("(00.000000) CRIU run id = 60feaa84-b74f-4109-88ba-ff4d3e108a22\n(00.000012) Version: 4.1\n")
    assert run_id(log) == "60feaa84-b74f-4109-88ba-ff4d3e108a22"
    log.write_text("(00.000000) Version: 4.1\n(00.1) \ufffd\n")
    assert run_id(log) is None


def test_no_log(tmp_path: Path) -> None:
    """CRIU that died before it wrote a log leaves no errors, and its failure says that."""
    assert errors(tmp_path / "none") == []
    error = failure("dump", -9, "criu dump --tree 5", tmp_path / "none")
    assert error.message == "criu dump was killed by signal 9: its log names no error"
    assert error.hint.endswith("To replay by hand: criu dump --tree 5")


def test_a_log_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 do not hide an error."""
    (tmp_path / "log").write_bytes(b"(00.1) \xff\xfe\n(00.2) Error (criu/x.c:1): bad \xff name\n")
    assert errors(tmp_path / "log") == ["Error (criu/x.c:1): bad \ufffd name"]


@pytest.mark.parametrize(
    ("returncode", "said"),
    [(1, "ended with exit code 1"), (-11, "was killed by signal 11"), (None, "ended and nobody saw how")],
)
def test_failure(log: Path, returncode: int | None, said: str) -> None:
    """The message names the thing, says how CRIU ended and its words; the hint what to do, and how to replay it."""
    error = failure("restore", returncode, "criu restore -v4", log)
    meaning = "The file /srv/data.log has 12 bytes on the destination and 10 on the source."
    assert error.message.startswith(f"{meaning} criu restore {said}: Error (criu/files-reg.c:2031): File srv/data.log")
    assert "shared storage" in error.hint
    assert error.hint.endswith(f"The whole log is {log}. To replay by hand: criu restore -v4")
    assert error.code == "FILE_DIFFERS"


def test_an_unknown_failure(tmp_path: Path) -> None:
    """What nobody knows is told in CRIU's own words, with a code of its own."""
    (tmp_path / "log").write_text("(00.1) Error (criu/x.c:1): it broke\n")
    error = failure("dump", 1, "criu dump", tmp_path / "log")
    assert (error.code, error.message) == (
        "CRIU_FAILED",
        "criu dump ended with exit code 1: Error (criu/x.c:1): it broke",
    )
    told = cause(tmp_path / "log")
    assert told is not None
    assert (told.code, told.message) == ("CRIU_FAILED", "Error (criu/x.c:1): it broke")
    assert cause(tmp_path / "none") is None


def test_the_error_that_is_known_is_always_told(tmp_path: Path) -> None:
    """Also where others that nobody knows stand before it."""
    unknown = "(00.1) Error (criu/x.c:1): it broke\n"
    (tmp_path / "log").write_text(
        unknown * 5 + "(00.2) Error (criu/cr-restore.c:1230): Can't fork for 7: File exists\n"
    )
    error = failure("restore", 1, "criu restore", tmp_path / "log")
    assert error.code == "PID_TAKEN"
    assert "Can't fork for 7: File exists; Error (criu/x.c:1)" in error.message


def test_a_failure_crosses_the_broker() -> None:
    """Celery makes exceptions anew from their arguments: the code must be one of them."""
    error = CriuFailed("message", "hint", "PID_TAKEN")
    assert CriuFailed(*error.args).code == "PID_TAKEN"


def _varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


def _message(*values: tuple[int, int | bytes]) -> bytes:
    """Write a protobuf message."""
    parts = []
    for number, value in values:
        if isinstance(value, bytes):
            parts.append(_varint(number << 3 | 2) + _varint(len(value)) + value)
        else:
            parts.append(_varint(number << 3) + _varint(value))
    return b"".join(parts)


def _image(path: Path, message: bytes) -> None:
    path.write_bytes(struct.pack("<III", 0x57093306, 0x58313116, len(message)) + message + b"what follows")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(some.tuples(some.integers(1, 2**20), some.integers(0, 2**64) | some.binary(max_size=300))))
def test_fields(values: list[tuple[int, int | bytes]]) -> None:
    """Numbers of any size and bytes of any kind come back as they were written, in their order."""
    assert list(fields(_message(*values))) == values


def test_a_message_cut_short() -> None:
    """A number without an end is an error, not a small number."""
    with pytest.raises(CriuFailed, match="cut short"):
        list(fields(b"\x08\xff"))


def test_dump_stats(tmp_path: Path) -> None:
    """Freezing, frozen and pages written are read; fields between them and behind them are passed over."""
    numbers = _message((1, 1500), (2, 250_000), (3, 7), (4, 8), (5, 99), (6, 0), (7, 300_000), (9, 1))
    _image(tmp_path / "stats-dump", _message((1, numbers)))
    assert dump_stats(tmp_path) == DumpStats(1500, 250_000, 300_000)


def test_dump_stats_without_numbers(tmp_path: Path) -> None:
    """A field that CRIU left out is zero."""
    _image(tmp_path / "stats-dump", _message((1, _message((2, 5)))))
    assert dump_stats(tmp_path) == DumpStats(0, 5, 0)


#: What ``criu`` answers, where CRIU itself need not be installed.
ANSWERS = """#!/bin/sh
case "$*" in
--version) echo Version: 4.2.1; echo GitID: v4.2 ;;
*mem_dirty_track) ;;
*) exit 1 ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Criu:
    """Make a program that answers as ``criu`` does, where CRIU itself need not be installed."""
    script = tmp_path / "criu"
    script.write_text(ANSWERS)
    script.chmod(0o700)
    return Criu(script)


def test_version_and_features(program: Criu, tmp_path: Path) -> None:
    """The version is the word behind ``Version:``; a feature is there if CRIU's check says so."""
    assert program.version() == "4.2.1"
    assert program.has("mem_dirty_track")
    assert not program.has("uffd")
    with pytest.raises(CommandMissing):
        Criu(tmp_path / "none").version()


def test_a_program_that_is_not_criu() -> None:
    """A program that says no version is not taken for CRIU."""
    with pytest.raises(CriuFailed, match="does not say its version"):
        Criu(Path("/bin/true")).version()


def test_options_follow_the_plan(tmp_path: Path) -> None:
    """Each flag of the plan is an option of dump and restore alike, and none is there unasked."""
    every = Plan(5, "a", "b", tcp_established=True, shell_job=True, file_locks=True)
    wanted = {"--tcp-established", "--shell-job", "--file-locks"}
    for plan, expected in ((every, wanted), (Plan(5, "a", "b"), set())):
        criu = Criu(Path("criu"))
        dump = criu.dump(plan, images=tmp_path, work=tmp_path, socket_fd=7)
        restore = criu.restore(plan, images=tmp_path, work=tmp_path, script=tmp_path, auto_dedup=False)
        assert wanted & set(dump) == wanted & set(restore) == expected


def test_a_dump_never_ends_the_tree(tmp_path: Path) -> None:
    """A plain dump would kill the source before the restore was tried: it is left stopped, always."""
    assert "--leave-stopped" in Criu(Path("criu")).dump(Plan(5, "a", "b"), images=tmp_path, work=tmp_path, socket_fd=7)
