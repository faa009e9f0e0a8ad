"""What CRIU's logs mean: every row of the table against a line as CRIU 4.2 writes it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sojourn.criu.diagnosis import Row, diagnose, errors, messages

#: A line per row: its code, what the sentence must name, and CRIU's line.
LINES = (Path(__file__).parent / "criu-messages.txt").read_text().splitlines()


def _samples() -> list[tuple[str, str, str]]:
    code_names_line = (line.split("\t", 2) for line in LINES if line and not line.startswith("#"))
    return [(code, names, line) for code, names, line in code_names_line]


def _rows_of(error: str) -> list[Row]:
    return [row for row in messages() if re.search(row.pattern, error)]


@pytest.mark.parametrize(("code", "names", "line"), _samples())
def test_a_known_message(code: str, names: str, line: str) -> None:
    """The code, and what the sentence names."""
    found = diagnose(line)
    assert found is not None, line
    assert found.code == code
    assert names in found.sentence, found.sentence
    assert found.error in line


def test_every_row_has_a_line() -> None:
    """The first row that matches a line decides, so each row must be first for one of the lines."""
    first = {row.pattern for _, _, line in _samples() for row in _rows_of(errors(line)[0])[:1]}
    assert {row.pattern for row in messages()} - first == set()


def test_every_row_has_a_sentence_a_hint_and_a_source() -> None:
    """Sentences and hints end with a full stop; a source is a file and its functions."""
    for row in messages():
        assert row.sentence.endswith("."), row
        assert row.hint.endswith((".", ". ")), row
        assert re.fullmatch(r"([\w/.-]+\.c \w+(, )?)+(, ?\w+)*", row.source), row.source
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", row.code), row


def test_a_malformed_row_is_rejected() -> None:
    """A wrong type or a malformed pattern shows when the file is read, not when a log is."""
    good = messages()[0]
    with pytest.raises(TypeError):
        replace(good, vague="yes")  # type: ignore[arg-type]  # as a file could have it
    with pytest.raises(re.error):
        replace(good, pattern="(")


def test_the_first_known_message_decides() -> None:
    """Unknown messages are skipped, and so are those that every failing run logs."""
    log = """\
(00.000301) Error (criu/rlimit.c:20): Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.004400) Error (criu/new.c:7): something that no row knows
(00.004512)   4242: Error (criu/files-reg.c:2175): File srv/data.log has bad size 12 (expect 10)
(00.004531) Error (criu/cr-restore.c:1230): Can't fork for 7: File exists
"""
    found = diagnose(log)
    assert found is not None
    assert found.code == "FILE_DIFFERS"
    assert (
        found.sentence
        == "The file /srv/data.log has 12 bytes on the destination and 10 on the source."
    )


def test_a_vague_message_decides_last() -> None:
    """That a task was killed is often the consequence of what a later line reports."""
    killed = "(00.01) Error (criu/cr-restore.c:1262): 4242 killed by signal 9: Killed\n"
    cause = "(00.02) Error (criu/cr-restore.c:1230): Can't fork for 7: File exists\n"
    assert [found.code for found in (diagnose(killed), diagnose(killed + cause)) if found] == [
        "RESTORE_KILLED",
        "PID_TAKEN",
    ]


@pytest.mark.parametrize(
    "log", ["", "not a line of CRIU", "(00.1) Error (criu/new.c:7): something that no row knows\n"]
)
def test_an_unknown_message(log: str) -> None:
    """An unknown message has no diagnosis."""
    assert diagnose(log) is None


def test_the_port_is_that_of_the_task_that_failed() -> None:
    """CRIU logs the port one line earlier; lines of other tasks may stand between the two."""
    bound = "inet: \tRestore: family AF_INET    type SOCK_STREAM    proto IPPROTO_TCP      "
    failed = "inet: Can't bind inet socket (id 11): Address already in use"
    log = [
        f"(00.01)  100: {bound}port 80 state TCP_LISTEN       src_addr 10.0.0.7",
        f"(00.01)  200: {bound}port 99 state TCP_LISTEN       src_addr 10.0.0.9",
        f"(00.01)  100: Error (criu/sk-inet.c:1059): {failed}",
    ]
    found = diagnose("\n".join(log))
    assert found is not None
    assert (found.code, found.sentence) == (
        "PORT_TAKEN",
        "Port 80 of address 10.0.0.7 is in use on the destination.",
    )


def test_the_process_of_a_dump_is_named() -> None:
    """Errors of a dump seldom name their process; the lines before them do."""
    failed = "inet: Connected TCP socket, consider using --tcp-established option."
    log = [
        "(00.01) Dumping task (pid: 4242 comm: node)",
        "(00.02) 4242 fdinfo 4: pos:                0 flags:                2/0x1",
        f"(00.03) Error (criu/sk-inet.c:200): {failed}",
    ]
    found = diagnose("\n".join(log))
    assert found is not None
    assert found.sentence == "Process 4242 has an established TCP connection: descriptor 4."
