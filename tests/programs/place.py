"""A host of the lab on which programs are started, looked at and cleared away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lab.host import Host
from sojourn.system.run import Completed
from tests.lab.machine import Machine

#: How long one command of the catalogue may take.
COMMAND_S = 60

#: How often a condition is looked at.
LOOK_S = 0.25

#: Ends what has started since: all processes but those whose PIDs are arguments, those of the lab's
#: own worker, kernel threads, and itself.
END_OTHERS = """
import os, signal, sys
keep = {*map(int, sys.argv[1:]), os.getpid(), os.getppid()}
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in keep:
        try:
            line = open(f"/proc/{name}/cmdline", "rb").read()
            if line and b"sojourn" not in line and b"/opt/" not in line:
                os.kill(int(name), signal.SIGKILL)
        except OSError:
            pass
"""


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition came true in time; it costs some processes to look, so not too often."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)
    return True


class Place(Protocol):
    """Where commands run."""

    @property
    def name(self) -> str:
        """The host's name."""

    def sh(self, script: str) -> Completed:
        """Run a script of the shell; whether it succeeds is for the caller to see."""


@dataclass(frozen=True)
class OnHost:
    """A host as it is."""

    host: Host

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name

    def sh(self, script: str) -> Completed:
        """Run a script of the shell."""
        return self.host.run(["sh", "-c", script], check=False, deadline_s=COMMAND_S)


@dataclass(frozen=True)
class OnMachine:
    """A host that has systemd as its init."""

    machine: Machine

    @property
    def name(self) -> str:
        """The host's name."""
        return self.machine.host.name

    def sh(self, script: str) -> Completed:
        """Run a script of the shell, in there."""
        return self.machine.shell(f"set +eu +o pipefail\n{script}", check=False)


def pids(place: Place) -> list[int]:
    """Return the processes of a place."""
    return [int(pid) for pid in place.sh("ps -eo pid=").stdout.split()]


def end_others(place: Place, keep: list[int]) -> None:
    """End all processes that were not there before."""
    kept = " ".join(map(str, keep))
    place.sh(f"python3 - {kept} <<'END'\n{END_OTHERS}\nEND\n")
