"""What a program may open later: guessed from a real process, and compared with what is here."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.model import Plan
from sojourn.preflight import wanted
from sojourn.preflight.finding import Finding, Verdict
from sojourn.preflight.scan import scan
from sojourn.preflight.wanted import Wanted, missing

PLAN = Plan(4242, "alpha", "beta")

#: Opens its first argument, writes its PID to ``pid``, and waits.
PROGRAM = """
import os, sys, time
held = open(sys.argv[1])
beside = os.path.join(os.path.dirname(sys.argv[1]), "one.pid")
open(beside, "w").write(f"{os.getpid()}\\n")
print("ready", flush=True)
time.sleep(60)
"""


def note(things: list[Wanted]) -> list[Finding]:
    """Return the findings of the destination, which stop nothing."""
    found = list(missing(things, PLAN))
    assert all(one.verdict is Verdict.NOTE and not one.stops for one in found)
    return found


@pytest.mark.parametrize(
    ("argument", "paths"),
    [
        ("/etc/a.conf", ["/etc/a.conf"]),
        ("--config=/etc/a.conf", ["/etc/a.conf"]),
        ("-c/etc/a.conf", ["/etc/a.conf"]),
        ("file=/etc/a.conf", ["/etc/a.conf"]),
        ("a.conf", ["/srv/a.conf"]),
        ("--config=a.conf", ["/srv/a.conf"]),
        ("../a.conf", ["/a.conf"]),
        ("/a:/b", ["/a:/b", "/a", "/b"]),
        ("--verbose", []),
        ("-v", []),
        ("", []),
    ],
)
def test_what_an_argument_may_mean(argument: str, paths: list[str]) -> None:
    """Whole paths, also behind an option, and names beside the working directory."""
    assert list(wanted.paths_in(argument, "/srv")) == paths


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory with what a program names."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/page").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("held", "named", "other", "two\nlines", "bytes-\udc80"):
        (tmp_path / name).write_text("1\n")
    return tmp_path


@pytest.fixture
def asked(place: Path) -> Iterator[list[Wanted]]:
    """Run a program in there; return what it may open later."""
    options = [f"--conf={place}/named", "root", "two\nlines", "bytes-\udc80", "gone", "/dev/null"]
    argv = [sys.executable, "-c", PROGRAM, str(place / "held"), *options, *map(str, range(10**4))]
    with subprocess.Popen(argv, cwd=place, stdout=subprocess.PIPE) as program:
        assert program.stdout
        program.stdout.readline()
        yield wanted.wanted(scan(program.pid))
        program.kill()


def test_what_a_program_names(place: Path, asked: list[Wanted]) -> None:
    """Files that exist and are not open, directories, and the PID file beside what is open."""
    mine = {one.path.removeprefix(f"{place}/"): one for one in asked if str(place) in one.path}
    assert {*mine} == {str(place), "named", "root", "two\nlines", "bytes-\udc80", "one.pid"}
    assert mine["root"] == Wanted(f"{place}/root", is_directory=True, filled=True)
    assert note(asked) == []


def test_what_is_missing(place: Path, asked: list[Wanted]) -> None:
    """One note names the first paths, whatever is in a name, and the hint has those for a shell."""
    (place / "root/page").unlink()
    for name in ("named", "two\nlines", "bytes-\udc80"):
        (place / name).unlink()
    (found,) = note(asked)
    assert found.code == "WANTED_LATER"
    assert f"{place}/named, {place}/root, '{place}/two\\nlines' and 1 more." in found.sentence
    assert f"`tar -cPf FILE {place}/named {place}/root` on alpha" in found.hint
    found.to_json()["sentence"].encode()


def test_names_that_nobody_should_paste() -> None:
    """A name with a control character is in no command; one with a blank is quoted."""
    (found,) = note([Wanted("/no\nwhere")])
    assert "tar" not in found.hint
    (found,) = note([Wanted("/no where; x")])
    assert shlex.quote("/no where; x") in found.hint


def test_what_another_host_reports_is_data() -> None:
    """Names that no system call takes are missing, and many of them make one short note."""
    odd = [Wanted("/a\0b"), Wanted("/" + "x" * 10**5, is_directory=True, filled=True)]
    (found,) = note(odd)
    assert "'/a\\x00b'" in found.sentence
    (found,) = note([Wanted(f"/nowhere/{number}") for number in range(100)])
    assert "and 97 more" in found.sentence
    assert len(found.hint) < 1000


def test_an_empty_directory_may_stay_empty(place: Path) -> None:
    """Only what had something in it on the source must have it here."""
    empty = str(place / "empty")
    assert note([Wanted(empty, is_directory=True)]) == []
    assert len(note([Wanted(empty, is_directory=True, filled=True)])) == 1
    assert len(note([Wanted(empty)])) == 1
