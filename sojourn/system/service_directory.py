"""Services of runit, daemontools and s6, by their directories; and how they are started once only.

Each has a supervisor process per service, in whose directory it works. A service that is *once*
runs on, and is not started again when it ends: ``o`` of sv(8) and svc(8), ``-O`` of s6-svc. None of
these signals the program. A file ``down`` in the directory keeps the supervisor itself from
starting the service, such as after a boot.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import CommandFailed, CommandMissing, CommandTimedOut
from sojourn.system.durable import sync_directory
from sojourn.system.run import run

#: How long a command of a supervisor may take; ``sv`` itself waits up to 7 s.
COMMAND_S = 15.0

#: How long a supervisor may take until it has obeyed, and how often it is looked at.
OBEYS_WITHIN_S, LOOK_S = 5.0, 0.02

#: The length of ``supervise/status`` in runit and in daemontools, and where both have the PID
#: (little-endian) and what is wanted: ``u`` if the service is started again when it ends.
STATUS_BYTES, PID, WANTED = (20, 18), slice(12, 16), 17


@dataclass(frozen=True)
class Suite:
    """One of the three: its name, its supervisor's program, and two commands on a directory."""

    name: str
    program: str
    once: tuple[str, ...]
    up: tuple[str, ...]

    def command(self, directory: str) -> str:
        """Return the command that an operator gives to have the service run once only."""
        return " ".join((*self.once, directory))


SUITES = {
    suite.name: suite
    for suite in (
        Suite("runit", "runsv", ("sv", "once"), ("sv", "up")),
        Suite("daemontools", "supervise", ("svc", "-o"), ("svc", "-u")),
        Suite("s6", "s6-supervise", ("s6-svc", "-O"), ("s6-svc", "-u")),
    )
}


def place_of(suite: Suite, supervisor: int, pid: int) -> Path:
    """Return a service's directory, seen through its supervisor: it may be in a container.

    In runit one supervisor has two services: the second is the logger, in ``log``.
    """
    place = Path(f"/proc/{supervisor}/cwd")
    return place / "log" if _state(suite, place / "log")[0] == pid else place


def starts_again(suite: Suite, directory: str | Path) -> bool:
    """Return whether the service is started again when it ends; so it is where it is not known."""
    return _state(suite, Path(directory))[1]


def is_roots_own(directory: str) -> bool:
    """Return whether only root can change the directory: what root does there leads nowhere else.

    Raises FileNotFoundError.
    """
    for place in (Path(directory), *Path(directory).parents):
        stat = place.stat()
        # In a directory with the sticky bit nobody else can replace what is root's (unlink(2)).
        if stat.st_uid != 0 or (stat.st_mode & 0o022 and not stat.st_mode & 0o1000):
            return False
    return True


def run_once(suite: Suite, directory: str) -> None:
    """Let the service run on, and not start again: neither when it ends nor after a boot.

    Safe to repeat. Raises CommandFailed, CommandMissing, CommandTimedOut, OSError.
    """
    # First the file: a supervisor that is started between the two finds it.
    _create(_down(directory))
    run([*suite.once, directory], deadline_s=COMMAND_S)
    # The command returns when it has written to the supervisor, which reads it a moment later.
    until = time.monotonic() + OBEYS_WITHIN_S
    while starts_again(suite, directory):
        if time.monotonic() > until:
            raise CommandFailed(f"`{suite.command(directory)}` had no effect on the service.")
        time.sleep(LOOK_S)


def put_back(suite: Suite, directory: str) -> None:
    """Have the service supervised again; it is started if it has ended meanwhile. Safe to repeat.

    Raises CommandFailed, CommandMissing, CommandTimedOut, OSError.
    """
    _down(directory).unlink(missing_ok=True)
    # Without the directory, or its supervisor, there is nothing that could be put back.
    if Path(directory, "supervise").is_dir() and _is_supervised(directory):
        run([*suite.up, directory], deadline_s=COMMAND_S)


def _state(suite: Suite, directory: Path) -> tuple[int, bool]:
    """Return a service's PID, 0 if there is none, and whether it is started again."""
    if suite.name == "s6":
        return _state_of_s6(directory)
    try:
        status = (directory / "supervise/status").read_bytes()
    except OSError:
        return 0, True
    if len(status) not in STATUS_BYTES:
        return 0, True
    return int.from_bytes(status[PID], "little"), status[WANTED] == ord("u")


def _state_of_s6(directory: Path) -> tuple[int, bool]:
    # The file's format changes from version to version; the program's output is documented.
    with contextlib.suppress(CommandFailed, CommandMissing, CommandTimedOut, ValueError):
        answer = run(["s6-svstat", "-o", "pid,wantedup", directory], deadline_s=COMMAND_S)
        pid, wanted = answer.stdout.split()
        return int(pid), wanted != "false"
    return 0, True


def _is_supervised(directory: str) -> bool:
    """Return whether a supervisor reads the service's commands: it holds the FIFO open."""
    control = Path(directory, "supervise/control")
    try:
        os.close(os.open(control, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:  # ENXIO without a reader (fifo(7))
        return False
    return True


def _down(directory: str) -> Path:
    return Path(directory, "down")


def _create(path: Path) -> None:
    """Create an empty file that a crash of this host does not take away; one may be there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    os.close(descriptor)
    sync_directory(path.parent)
