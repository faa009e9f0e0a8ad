"""The only door to ``subprocess``.

Commands are argument lists, never shell strings. Their stdin is ``/dev/null``, their environment is
clean, they run in a session of their own so that a deadline ends them with everything they started,
and they are always reaped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sojourn.errors import CommandFailed, CommandMissing, CommandTimedOut

Argument = str | os.PathLike[str]

log = logging.getLogger(__name__)

#: What every command gets, so that its messages can be parsed and nothing leaks in from the caller.
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}


@dataclass(frozen=True)
class Completed:
    """A command that has ended: its exit code (negative: the signal that killed it), output, and seconds taken."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    elapsed_s: float

    def describe(self) -> str:
        """Return the command line as it can be pasted into a shell."""
        return shlex.join(self.argv)


class Child:
    """A command that runs in its own session until it ends, is killed, or outlives us on purpose."""

    def __init__(self, argv: Sequence[str], process: subprocess.Popen[str]) -> None:
        self.argv = tuple(argv)
        self.pid = process.pid
        self._process = process

    @property
    def stdout(self) -> IO[str]:
        """The pipe from the command's standard output; only where it was asked for."""
        assert self._process.stdout is not None  # noqa: S101  (a caller that did not ask for a pipe is a bug)
        return self._process.stdout

    def wait(self, deadline_s: float) -> int:
        """Return the exit code; at the deadline, end the whole process group and raise CommandTimedOut."""
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise CommandTimedOut(
                f"{self.argv[0]} was still running after {deadline_s:g} s and was ended: {shlex.join(self.argv)}"
            ) from None

    def ended_within(self, seconds: float) -> bool:
        """Wait so long at most, without ``subprocess``'s naps of up to 50 ms; say whether the command has ended."""
        if self._process.returncode is not None:
            return True
        pidfd = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([pidfd], [], [], max(seconds, 0))
        finally:
            os.close(pidfd)
        return bool(ready)

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End the command, with everything in its process group if it leads one, and reap it."""
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()


def run(
    argv: Sequence[Argument],
    *,
    deadline_s: float,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Completed:
    """Run a command to its end and return what it said.

    Raises CommandMissing if the program is not there, CommandTimedOut at the deadline, and, with ``check``,
    CommandFailed for a non-zero exit code.
    """
    words = [os.fspath(word) for word in argv]
    started = time.monotonic()
    with _popen(words, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, env=env, cwd=cwd) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=deadline_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CommandTimedOut(
                    f"{words[0]} was still running after {deadline_s:g} s and was ended: {shlex.join(words)}"
                ) from None
            raise
    completed = Completed(tuple(words), process.returncode, stdout, stderr, time.monotonic() - started)
    log.debug("ran %s: exit %s after %.3f s", completed.describe(), completed.returncode, completed.elapsed_s)
    if check and completed.returncode != 0:
        raise CommandFailed(_what_it_said(completed))
    return completed


def spawn(
    argv: Sequence[Argument],
    *,
    output: Path | None = None,
    stdin: str | None = None,
    pipe: bool = False,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    own_session: bool = True,
) -> Child:
    """Start a command and return at once; it outlives us unless it is ended.

    Its stderr (and its stdout, unless ``pipe``) is appended to ``output``, or thrown away. ``stdin`` is a
    short text that it is given. Without ``own_session`` it ends with the caller's process group.
    """
    words = [os.fspath(word) for word in argv]
    with _appending(output) as sink:
        process = _popen(
            words,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else sink,
            stderr=sink,
            pass_fds=pass_fds,
            env=env,
            own_session=own_session,
        )
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(stdin or "")
    log.debug("started %s as pid %s", shlex.join(words), process.pid)
    return Child(words, process)


def foreground(argv: Sequence[Argument]) -> int:
    """Run a command with this one's terminal and environment, and return its exit code."""
    words = [os.fspath(word) for word in argv]
    try:
        return subprocess.call(words)
    except FileNotFoundError:
        raise _missing(words[0]) from None


def replace(argv: Sequence[Argument]) -> None:
    """Become another program, with this one's terminal and environment; does not return."""
    words = [os.fspath(word) for word in argv]
    try:
        os.execvp(words[0], words)  # noqa: S606  (no shell is the point)
    except FileNotFoundError:
        raise _missing(words[0]) from None


def _popen(
    words: list[str],
    *,
    stdin: int,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    own_session: bool = True,
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            words,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            env={**CLEAN_ENVIRONMENT, **(env or {})},
            cwd=cwd,
            text=True,
            errors="replace",
            start_new_session=own_session,
        )
    except FileNotFoundError as error:
        raise _missing(str(error.filename)) from None
    except PermissionError:
        raise CommandMissing(
            f"{words[0]} may not be run on this host.", "Is it a program, and not mounted noexec?"
        ) from None


@contextlib.contextmanager
def _appending(output: Path | None) -> Iterator[int | IO[str]]:
    if output is None:
        yield subprocess.DEVNULL
        return
    with output.open("a") as sink:
        yield sink


def _missing(program: str) -> CommandMissing:
    return CommandMissing(f"{program} is not installed on this host.", f"Install the package that provides {program}.")


def _what_it_said(completed: Completed) -> str:
    lines = (completed.stderr or completed.stdout).strip().splitlines()
    said = lines[-1].strip() if lines else "it said nothing"
    return f"{completed.argv[0]} ended with exit code {completed.returncode}: {said} (command: {completed.describe()})"
