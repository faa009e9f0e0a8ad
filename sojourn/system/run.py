"""The only door to ``subprocess``.

Commands are argument lists, never shell strings. Their stdin is ``/dev/null`` and their environment
is clean. They run in a session of their own, so that a deadline ends them with everything they have
started, and they are always reaped.
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

#: The environment of every command: messages can be parsed, and nothing leaks in from the caller.
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}


@dataclass(frozen=True)
class Completed:
    """A command that has ended: its exit code (negative: a signal), output, and duration."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    elapsed_s: float

    def describe(self) -> str:
        """Return the command line as it can be pasted into a shell."""
        return shlex.join(self.argv)


class Child:
    """A command that runs until it ends or is killed; it may outlive this process on purpose."""

    def __init__(self, argv: Sequence[str], process: subprocess.Popen[str]) -> None:
        self.argv = tuple(argv)
        self.pid = process.pid
        self._process = process

    @property
    def stdout(self) -> IO[str]:
        """The pipe from the command's standard output; only for ``spawn(pipe=True)``."""
        assert self._process.stdout is not None
        return self._process.stdout

    def wait(self, deadline_s: float) -> int:
        """Return the exit code; at the deadline, kill the group and raise CommandTimedOut."""
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise CommandTimedOut(
                f"{self.argv[0]} was still running after {deadline_s:g} s and was ended: "
                f"{shlex.join(self.argv)}"
            ) from None

    def ended_within(self, seconds: float) -> bool:
        """Wait for at most this time; return whether the command has ended."""
        # Once the child was reaped, its PID may be that of another process.
        if self._process.returncode is not None:
            return True
        # ``Popen.wait`` with a time-out polls, at intervals of up to 50 ms; a pidfd wakes at once.
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
            # A child without a session of its own is in our process group, which must not be
            # killed.
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
    """Run a command to its end and return its output.

    Raises CommandMissing if the program does not exist, CommandTimedOut at the deadline, and, with
    ``check``, CommandFailed for a non-zero exit code.
    """
    arguments = [os.fspath(argument) for argument in argv]
    started = time.monotonic()
    source = subprocess.PIPE if stdin is not None else subprocess.DEVNULL
    # In this order: Popen waits for the command when its block is left, so the command must have
    # been ended by then.
    with _popen(arguments, stdin=source, env=env, cwd=cwd) as process, _ended_on_error(process.pid):
        try:
            stdout, stderr = process.communicate(stdin, timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise CommandTimedOut(
                f"{arguments[0]} was still running after {deadline_s:g} s and was ended: "
                f"{shlex.join(arguments)}"
            ) from None
    completed = Completed(
        tuple(arguments), process.returncode, stdout, stderr, time.monotonic() - started
    )
    log.debug(
        "ran %s: exit %s after %.3f s",
        completed.describe(),
        completed.returncode,
        completed.elapsed_s,
    )
    if check and completed.returncode != 0:
        raise CommandFailed(_failure(completed))
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

    Its stderr (and its stdout, unless ``pipe``) is appended to ``output``, or discarded. ``stdin``
    is a short text for its standard input. Without ``own_session`` it ends with the caller's
    process group.
    """
    arguments = [os.fspath(argument) for argument in argv]
    with _appending(output) as sink:
        process = _popen(
            arguments,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else sink,
            stderr=sink,
            pass_fds=pass_fds,
            env=env,
            own_session=own_session,
        )
    if process.stdin is not None:
        # A child that has ended already does not read; its exit code shows that, not this write.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(stdin or "")
    log.debug("started %s as pid %s", shlex.join(arguments), process.pid)
    return Child(arguments, process)


def foreground(argv: Sequence[Argument]) -> int:
    """Run a command with the caller's terminal and environment; return its exit code."""
    arguments = [os.fspath(argument) for argument in argv]
    try:
        return subprocess.call(arguments)
    except FileNotFoundError:
        raise _missing(arguments[0]) from None


def replace(argv: Sequence[Argument]) -> None:
    """Replace this process with another program, terminal and environment unchanged."""
    arguments = [os.fspath(argument) for argument in argv]
    try:
        os.execvp(arguments[0], arguments)
    except FileNotFoundError:
        raise _missing(arguments[0]) from None


def _popen(
    arguments: list[str],
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
            arguments,
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
    # The file name is that of the program or, if that is what is missing, of ``cwd``.
    except FileNotFoundError as error:
        raise _missing(str(error.filename)) from None
    except PermissionError:
        raise CommandMissing(
            f"{arguments[0]} may not be run on this host.",
            "Is it executable, on a file system that is not mounted noexec?",
        ) from None


@contextlib.contextmanager
def _ended_on_error(group: int) -> Iterator[None]:
    """End a process group if the block is left by an error, by an alarm or Ctrl-C too."""
    with contextlib.ExitStack() as undo:
        undo.callback(_kill_group, group)
        yield
        undo.pop_all()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@contextlib.contextmanager
def _appending(output: Path | None) -> Iterator[int | IO[str]]:
    if output is None:
        yield subprocess.DEVNULL
        return
    with output.open("a") as sink:
        yield sink


def _missing(program: str) -> CommandMissing:
    return CommandMissing(
        f"{program} is not installed on this host.", f"Install the package that provides {program}."
    )


def _failure(completed: Completed) -> str:
    lines = (completed.stderr or completed.stdout).strip().splitlines()
    # Programs report the cause last.
    reason = lines[-1].strip() if lines else "it printed nothing"
    return (
        f"{completed.argv[0]} ended with exit code {completed.returncode}: {reason} "
        f"(command: {completed.describe()})"
    )
