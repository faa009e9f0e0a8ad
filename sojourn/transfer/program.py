"""Our own programs beside the worker: with the same code, and in a session of their own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
from pathlib import Path

from sojourn.model import Json
from sojourn.system.run import Child, spawn


def start(module: str, assignment: Json, log: Path, found_by: tuple[str, str]) -> Child:
    """Start a module as a program that outlives us, and whose output the caller reads.

    The assignment goes to its standard input, since it may contain a secret. ``found_by`` is a
    variable of its environment, and the value: by these it is found and ended, whoever started it.
    """
    variable, value = found_by
    return spawn(
        [sys.executable, "-m", module],
        stdin=json.dumps(assignment),
        pipe=True,
        output=log,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), variable: value},
    )


def report(**fields: object) -> None:
    """Print a line for the step that has started this program, which may have died since."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(fields), flush=True)  # noqa: T201  (this is the protocol with the step)


def first_report(child: Child) -> Json:
    """Return the first line that a program prints, as JSON; empty if it ended before.

    One that hangs is ended by the step's own limit.
    """
    found: Json = json.loads(child.stdout.readline() or "{}")
    return found


def listen(work: Path, name: str) -> socket.socket:
    """Listen in a work directory, which becomes ours, for one caller."""
    # A path in the address of a Unix socket is short, so it is given from here, as CRIU does.
    os.chdir(work)
    Path(name).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(1)
    return listener


def take_all_descriptors() -> None:
    """Let this program, and what it starts, have as many descriptors as may be had."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
