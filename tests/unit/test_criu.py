"""CRIU's command lines, logs and images, as far as Sojourn reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.criu import failure
from sojourn.criu.commands import Criu, Restore
from sojourn.criu.failure import cause, errors
from sojourn.criu.logs import run_id
from sojourn.criu.protobuf import fields
from sojourn.criu.stats import DumpStats, figures, of_dump
from sojourn.errors import CommandMissing, CriuFailed
from sojourn.model import Plan
from tests.images import image, message

#: Lines as CRIU 4.2 writes them, of a restore that failed because a file had changed.
LOG = """\
(00.000000) Version: 4.2 (gitid 0)
(00.000014) Warn  (criu/kerndat.c:1153): $XDG_RUNTIME_DIR not set. No kerndat
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
    """What fails in CRIU's restorer has one more prefix, and is a cause as well."""
    (tmp_path / "log").write_text(
        "(00.111858) pie: 4242: Error (criu/pie/restorer.c:1278): Unable to remap a page\n"
    )
    assert errors(tmp_path / "log") == ["Error (criu/pie/restorer.c:1278): Unable to remap a page"]
    (tmp_path / "log").write_text(
        "pie: 4242: Error (criu/pie/parasite.c:92): Can't splice pages to pipe (-1/3/0)\n"
    )
    assert errors(tmp_path / "log") == [
        "Error (criu/pie/parasite.c:92): Can't splice pages to pipe (-1/3/0)"
    ]


def test_the_run_id(tmp_path: Path) -> None:
    """A log begins with the id that names the dump's network lock; None without that line."""
    log = tmp_path / "dump.log"
    assert run_id(log) is None
    log.write_text("")
    assert run_id(log) is None
    log.write_text(
        "(00.000000) CRIU run id = 60feaa84-b74f-4109-88ba-ff4d3e108a22\n(00.000012) Version: 4.1\n"
    )
    assert run_id(log) == "60feaa84-b74f-4109-88ba-ff4d3e108a22"
    log.write_text("(00.000000) Version: 4.1\n(00.1) \ufffd\n")
    assert run_id(log) is None


def test_no_log(tmp_path: Path) -> None:
    """CRIU that died before it wrote a log leaves no errors, and its failure states that."""
    assert errors(tmp_path / "none") == []
    error = failure.of("dump", -9, "criu dump --tree 5", tmp_path / "none")
    assert error.message == "criu dump was killed by signal 9: its log names no error"
    assert error.hint.endswith("To replay by hand: criu dump --tree 5")


def test_a_log_that_is_not_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 do not hide an error."""
    (tmp_path / "log").write_bytes(b"(00.1) \xff\xfe\n(00.2) Error (criu/x.c:1): bad \xff name\n")
    assert errors(tmp_path / "log") == ["Error (criu/x.c:1): bad \ufffd name"]


@pytest.mark.parametrize(
    ("returncode", "ended"),
    [
        (1, "ended with exit code 1"),
        (-11, "was killed by signal 11"),
        (None, "ended with an unknown exit code"),
    ],
)
def test_failure(log: Path, returncode: int | None, ended: str) -> None:
    """The message has the meaning, CRIU's end and its errors; the hint, advice and replay."""
    error = failure.of("restore", returncode, "criu restore -v4", log)
    meaning = "The file /srv/data.log has 12 bytes on the destination and 10 on the source."
    assert error.message.startswith(
        f"{meaning} criu restore {ended}: Error (criu/files-reg.c:2031): File srv/data.log"
    )
    assert "shared storage" in error.hint
    assert error.hint.endswith(f"The whole log is {log}. To replay by hand: criu restore -v4")
    assert error.code == "FILE_DIFFERS"


def test_an_unknown_failure(tmp_path: Path) -> None:
    """An unknown error is reported in CRIU's own words, with a code of its own."""
    (tmp_path / "log").write_text("(00.1) Error (criu/x.c:1): it broke\n")
    error = failure.of("dump", 1, "criu dump", tmp_path / "log")
    assert (error.code, error.message) == (
        "CRIU_FAILED",
        "criu dump ended with exit code 1: Error (criu/x.c:1): it broke",
    )
    logged = cause(tmp_path / "log")
    assert logged is not None
    assert (logged.code, logged.message) == ("CRIU_FAILED", "Error (criu/x.c:1): it broke")
    assert cause(tmp_path / "none") is None


def test_the_error_that_is_known_is_always_shown(tmp_path: Path) -> None:
    """It is shown even after unknown errors."""
    unknown = "(00.1) Error (criu/x.c:1): it broke\n"
    (tmp_path / "log").write_text(
        unknown * 5 + "(00.2) Error (criu/cr-restore.c:1230): Can't fork for 7: File exists\n"
    )
    error = failure.of("restore", 1, "criu restore", tmp_path / "log")
    assert error.code == "PID_TAKEN"
    assert "Can't fork for 7: File exists; Error (criu/x.c:1)" in error.message


def test_a_failure_crosses_the_broker() -> None:
    """Celery recreates exceptions from their arguments: the code must be one of them."""
    error = CriuFailed("message", "hint", "PID_TAKEN")
    assert CriuFailed(*error.args).code == "PID_TAKEN"


def _image(path: Path, content: bytes) -> None:
    path.write_bytes(image(content) + b"what follows")


def test_dump_stats(tmp_path: Path) -> None:
    """Freezing, frozen and pages written are read; other fields are skipped."""
    numbers = message(
        (1, 1500), (2, 250_000), (3, 7), (4, 8), (5, 99), (6, 0), (7, 300_000), (9, 1)
    )
    _image(tmp_path / "stats-dump", message((1, numbers)))
    assert of_dump(tmp_path) == DumpStats(1500, 250_000, 300_000)


def test_dump_stats_without_numbers(tmp_path: Path) -> None:
    """A field that CRIU left out is zero."""
    _image(tmp_path / "stats-dump", message((1, message((2, 5)))))
    assert of_dump(tmp_path) == DumpStats(0, 5, 0)


def test_figures(tmp_path: Path) -> None:
    """Each run has its own, by name; of a file that is cut short or missing there are none."""
    _image(tmp_path / "stats-dump", message((1, message((1, 1500), (2, 250_000), (6, 4)))))
    _image(tmp_path / "stats-restore", message((2, message((1, 9), (3, 800), (4, 70_000)))))
    assert figures(tmp_path, "dump") == {"freezing_us": 1500, "frozen_us": 250_000}
    assert figures(tmp_path, "restore") == {"forking_us": 800, "restore_us": 70_000}
    (tmp_path / "stats-dump").write_bytes(b"12345678\xff\0\0\0")
    (tmp_path / "stats-restore").unlink()
    assert (figures(tmp_path, "dump"), figures(tmp_path, "restore")) == ({}, {})


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
    """The version follows ``Version:``; a feature exists if CRIU's check succeeds."""
    assert program.version() == "4.2.1"
    assert program.has("mem_dirty_track")
    assert not program.has("uffd")
    with pytest.raises(CommandMissing):
        Criu(tmp_path / "none").version()


def test_a_program_that_is_not_criu() -> None:
    """A program that reports no version is not taken for CRIU."""
    with pytest.raises(CriuFailed, match="does not report its version"):
        Criu(Path("/bin/true")).version()


def test_options_follow_the_plan(tmp_path: Path) -> None:
    """Each flag of the plan is an option of both dump and restore, and absent otherwise."""
    every = Plan(5, "a", "b", tcp_established=True, shell_job=True, file_locks=True)
    wanted = {"--shell-job", "--file-locks"}
    for plan, expected in ((every, wanted), (Plan(5, "a", "b"), set())):
        dump = Criu(Path("criu")).dump(plan, images=tmp_path, work=tmp_path, socket_fd=7)
        restore = _restore(shell_job=plan.shell_job, file_locks=plan.file_locks)
        by_hand = restore.by_hand(Path("criu"))
        assert wanted & set(dump) == wanted & set(by_hand) == expected
        assert ("--tcp-established" in dump) == plan.tcp_established
        # A connection that has ended needs it there, and a dump without it has no other.
        assert "--tcp-established" in by_hand


#: Options of a restore, as words, and as fields of ``criu_opts`` in CRIU's images/rpc.proto.
OPTIONS = {"auto_dedup": 16, "lazy": 48, "shell_job": 7, "file_locks": 8}
WORDS = {"lazy": "--lazy-pages"}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_restore_by_request_and_by_hand(option: str) -> None:
    """What is asked for is what a person would type."""
    word = WORDS.get(option, f"--{option.replace('_', '-')}")
    for value in (True, False):
        restore = _restore(**{option: value})
        asked = restore.options(11, 12)
        found = {field.number: field.value for field in fields(asked, 0, len(asked))}
        assert found[OPTIONS[option]] == int(value)
        assert (word in restore.by_hand(Path("criu"))) is value
        assert (found[1], found[17], found[10], found[9]) == (11, 12, b"restore.log", 4)
        # Connections as they were, our answers, and no cgroups.
        assert (found[5], found[12], found[34]) == (1, 1, 0)


def _restore(**options: bool) -> Restore:
    return Restore("/images", "/work", **dict.fromkeys(OPTIONS, False) | options)


def test_a_dump_never_ends_the_tree(tmp_path: Path) -> None:
    """A plain dump would kill the source before the restore was tried: the tree is left stopped."""
    assert "--leave-stopped" in Criu(Path("criu")).dump(
        Plan(5, "a", "b"), images=tmp_path, work=tmp_path, socket_fd=7
    )


def test_a_dump_that_leaves_the_memory_in_the_tree(tmp_path: Path) -> None:
    """In post-copy there is no page server: CRIU would send it what is to come later."""
    dump = Criu(Path("criu")).dump(
        Plan(5, "a", "b", "post-copy"), images=tmp_path, work=tmp_path, socket_fd=7
    )
    assert "--lazy-pages" in dump
    assert "--page-server" not in dump
    assert dump[dump.index("--ps-socket") + 1] == "7"
    assert "--leave-stopped" in dump
