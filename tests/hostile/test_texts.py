"""Text from outside is shown as text: it moves no cursor, turns no line, and forges none."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest
from rich.markup import escape
from rich.table import Table

from sojourn.cli.output import SafeConsole
from sojourn.log import JsonFormatter, TextFormatter
from sojourn.system.process import command_line
from sojourn.text import cleaned, one_line, printable
from tests.conftest import eventually
from web import readable

#: What a name can hold: a terminal's sequences, its title, deleted letters, C1, turned direction,
#: zero width, other ends of lines, and half of a character.
EVIL = "\x1b[2J\x1b]0;title\x07\b\x9b31m\u202e\u2066\u200b\u2028\u2029\x85\ud800"

FORGED = "x\n12:00:01.250 info 0123abcd dump the process runs on beta\r"


def _holds_nothing_evil(shown: str) -> bool:
    return not any(letter in shown for letter in EVIL if not letter.isprintable())


def _record(message: str) -> logging.LogRecord:
    trace = (ValueError, ValueError(message), None)
    return logging.LogRecord("sojourn", logging.INFO, __file__, 1, "%s", (message,), trace)


def test_a_log_line_cannot_be_forged() -> None:
    """What has several lines stands on one, and a traceback is indented."""
    shown = TextFormatter().format(_record(EVIL + FORGED))
    assert shown.count("\n12:00:01") == 0
    assert all(line.startswith("  | ") for line in shown.splitlines()[1:])
    assert _holds_nothing_evil(shown)


def test_a_json_line_is_one() -> None:
    """Its texts hold nothing that would move a cursor when they are printed."""
    line = JsonFormatter().format(_record(EVIL + FORGED))
    assert "\n" not in line
    assert _holds_nothing_evil(json.loads(line)["message"] + json.loads(line)["traceback"])


def test_a_terminal() -> None:
    """The sequences on it are those of its own colours."""
    screen = io.StringIO()
    console = SafeConsole(file=screen, force_terminal=True, width=200)
    table = Table("name")
    table.add_row(escape(EVIL))
    console.print(table)
    console.print(f"[red]{escape(EVIL)}[/]", soft_wrap=True)
    shown = screen.getvalue()
    assert "\x1b[31m" in shown
    for evil in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\u202e", "\u2028", "\ud800"):
        assert evil not in shown


def test_a_command_line() -> None:
    """A process's own arguments are one line."""
    argv = [sys.executable, "-c", "input()", FORGED, "\x1b[2J", "\u202e"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE)
    try:
        eventually(lambda: "-c" in command_line(child.pid))
        shown = command_line(child.pid)
        assert shown.splitlines() == [shown]
        assert _holds_nothing_evil(shown)
        assert r"x\n12:00:01.250 info" in shown
    finally:
        child.kill()
        child.wait()


def test_a_page() -> None:
    """What Flower shows of a task, and what a page is sent, holds none of it."""
    assert _holds_nothing_evil(readable.event({"args": EVIL})["args"])
    assert _holds_nothing_evil(str(cleaned([EVIL])) + json.dumps(cleaned({EVIL: [EVIL]})))


@pytest.mark.parametrize("plain", ["a", "Ünï 漢字 é", "two\nlines\tof it"])
def test_what_is_shown_stays(plain: str) -> None:
    """Letters of all scripts, and lines where there may be some."""
    assert printable(plain) == plain
    assert one_line(plain) == plain.replace("\n", r"\n").replace("\t", r"\t")
