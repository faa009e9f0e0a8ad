"""The one door to subprocess: what commands get, what they return, how they are ended."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import pytest

from sojourn.errors import CommandFailed, CommandMissing, CommandTimedOut
from sojourn.system.run import CLEAN_ENVIRONMENT, run, spawn
from tests.conftest import eventually

#: A command whose child would outlive it, and that prints its child's PID.
PARENT = ["sh", "-c", "sleep 60 & echo $!; wait"]


def _gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(") ", 1)[1][0] in "ZX"


def test_the_result() -> None:
    """It has both outputs, the exit code and the duration."""
    done = run(["sh", "-c", "echo out; echo err >&2; exit 3"], deadline_s=5, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    assert 0 < done.elapsed_s < 5


def test_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's environment leaks in, whether dangerous or only confusing."""
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    variables = run(["/usr/bin/env"], deadline_s=5, env={"MINE": "1"}).stdout.split()
    assert sorted(variables) == sorted(
        f"{key}={value}" for key, value in {**CLEAN_ENVIRONMENT, "MINE": "1"}.items()
    )


def test_stdin_is_null() -> None:
    """A command that reads gets end of file at once, and not the operator's terminal."""
    assert run(["cat"], deadline_s=5).stdout == ""
    assert run(["cat"], deadline_s=5, stdin="given").stdout == "given"


def test_the_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    """At the deadline the command is ended with everything that it started."""
    began = time.monotonic()
    with pytest.raises(CommandTimedOut, match=r"sh was still running after 0\.3 s"):
        run(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], deadline_s=0.3)
    assert time.monotonic() - began < 3
    eventually(lambda: _gone(int((tmp_path / "pid").read_text())))


def test_a_missing_program() -> None:
    """It is reported in one sentence, whichever way the program was to be started."""
    for start in (
        lambda: run(["no-such-program"], deadline_s=5),
        lambda: spawn(["no-such-program"]),
    ):
        with pytest.raises(CommandMissing, match="no-such-program is not installed"):
            start()


def test_a_program_that_may_not_be_run(tmp_path: Path) -> None:
    """A file that cannot be executed is reported in one sentence too."""
    (tmp_path / "program").write_text("#!/bin/sh\n")
    with pytest.raises(CommandMissing):
        run([tmp_path / "program"], deadline_s=5)


def test_a_failure_can_be_replayed() -> None:
    """The message has the command's last line, and ends with a line to paste into a shell."""
    argv = ["sh", "-c", "echo first >&2; echo 'the cause' >&2; exit 4", "it's"]
    with pytest.raises(CommandFailed) as caught:
        run(argv, deadline_s=5)
    message = caught.value.message
    assert message.startswith("sh ended with exit code 4: the cause (command: ")
    pasted = message.split("(command: ")[1].removesuffix(")")
    assert shlex.split(pasted) == argv


def test_a_failure_without_output() -> None:
    """The message states that the command printed nothing."""
    with pytest.raises(CommandFailed, match="false ended with exit code 1: it printed nothing"):
        run(["false"], deadline_s=5)


def test_no_shell(tmp_path: Path) -> None:
    """Arguments are never interpreted, whatever they look like."""
    odd = "$(touch x); `id` | cat > y & \n"
    assert run(["printf", "%s", odd], deadline_s=5, cwd=tmp_path).stdout == odd
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_not_text() -> None:
    """Bytes that are not UTF-8 are replaced, and are not an error."""
    assert run(["printf", r"\377x"], deadline_s=5).stdout == "\ufffdx"


def test_spawn_with_stdin_and_pipe() -> None:
    """A child gets a short text, and its output can be read while it runs."""
    child = spawn(
        ["sh", "-c", "read line; echo got $line; sleep 60"], stdin="a secret\n", pipe=True
    )
    assert child.stdout.readline() == "got a secret\n"
    assert child.poll() is None
    child.kill()
    assert child.poll() == -9


def test_spawn_with_a_child_that_does_not_read() -> None:
    """A child that ends without reading its input is not an error."""
    assert spawn(["true"], stdin="x" * 200_000).wait(5) == 0


def test_spawn_with_an_output_file(tmp_path: Path) -> None:
    """Both outputs are appended to the file, one run after another."""
    for text in ("one", "two"):
        assert (
            spawn(["sh", "-c", f"echo {text}; echo e{text} >&2"], output=tmp_path / "out").wait(5)
            == 0
        )
    assert sorted((tmp_path / "out").read_text().split()) == ["eone", "etwo", "one", "two"]


def test_waiting_for_too_long_ends_the_group() -> None:
    """A child that still runs at the deadline is ended with its children."""
    child = spawn(PARENT, pipe=True)
    grandchild = int(child.stdout.readline())
    with pytest.raises(CommandTimedOut, match="sh was still running"):
        child.wait(0.1)
    eventually(lambda: _gone(grandchild))
    assert child.poll() == -9


def test_waiting_without_ending() -> None:
    """It returns in time whether the child has ended, and still does once it is reaped."""
    child = spawn(["sh", "-c", "read line"], stdin=None, pipe=True)
    assert child.ended_within(5)
    assert child.wait(1) == 1
    assert child.ended_within(0)
    sleeper = spawn(["sleep", "60"])
    assert not sleeper.ended_within(0.05)
    sleeper.kill()
    assert sleeper.ended_within(0)


def test_a_session_of_its_own() -> None:
    """A child leads a session by default; without one, killing it ends no other process."""
    for own in (True, False):
        child = spawn(["sleep", "60"], own_session=own)
        assert (os.getsid(child.pid) == child.pid) is own
        child.kill()
        child.kill()


def test_descriptors_are_handed_over_on_request_only() -> None:
    """A child has the descriptors that were passed to it, and no others."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    child = spawn(["ls", "/proc/self/fd"], pipe=True, pass_fds=[writing])
    seen = set(map(int, child.stdout.read().split()))
    child.wait(5)
    assert writing in seen
    assert reading not in seen
    os.close(reading)
    os.close(writing)
