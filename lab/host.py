"""One host of a lab: how it is booted, crashed and entered."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import services
from lab.errors import LabFailed
from lab.libraries import CHECKOUT
from lab.network import Network, namespace
from lab.plan import DISKS, Plan
from sojourn.model import Identity
from sojourn.process import is_alive, send, stat
from sojourn.run import CLEAN_ENVIRONMENT, Argument, Completed, run, spawn
from sojourn.settings import variable

BOOT_S = 20
END_S = 10
MOUNT_S = 10
POLL_S = 0.01

#: The start of a workload does not wait for anything but its own Python.
LAUNCH_S = 20

UNSHARE = ("unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork")
HOST_PYTHON = "/usr/bin/python3"
LAUNCHER = "/opt/sojourn/src/lab/launch.py"


@dataclass(frozen=True)
class Host:
    """A host by its name. It holds nothing but names, so it may be made anew at any time."""

    plan: Plan
    name: str

    @property
    def address(self) -> str:
        """The address of the host in the lab's network."""
        return self.plan.address(self.name)

    @property
    def directory(self) -> Path:
        """The host's run-time directory on the outside."""
        return self.plan.state / "hosts" / self.name

    @property
    def disk(self) -> Path:
        """The upper directory of the host's root: what it has written, kept from boot to boot."""
        return DISKS / self.plan.name / self.name / "upper"

    @property
    def console(self) -> Path:
        """What the host's init and its services' supervisor said."""
        return self.directory / "console.log"

    @property
    def init(self) -> Identity | None:
        """The host's init as the outside numbers it, or None while the host is down."""
        processes = self._processes()
        return processes[0] if processes and is_alive(processes[0]) else None

    @property
    def is_up(self) -> bool:
        """Whether the host runs."""
        return self.init is not None

    def start(self, layers: Sequence[Path]) -> None:
        """Boot the host from its disk over the layers, the topmost first, and return before it is up."""
        Network(self.plan).plug(self.name)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._mount_state()
        (self.directory / "layers").write_text(":".join(str(layer) for layer in layers))
        (self.directory / "init.json").unlink(missing_ok=True)
        boot = [sys.executable, "-P", "-m", "lab.boot", self.plan.name, self.name]
        enter_network = ["nsenter", f"--net=/run/netns/{namespace(self.plan.name, self.name)}"]
        # setsid forks and ends, so that the host is nobody's child and outlives whoever started it.
        child = spawn(
            ["setsid", "--fork", *enter_network, *UNSHARE, *boot],
            output=self.console,
            env={"PYTHONPATH": str(CHECKOUT)},
        )
        child.wait(BOOT_S)

    def wait_until_up(self) -> None:
        """Return when init runs in the host's own root. Raises LabFailed if it does not come to that."""
        within(BOOT_S, lambda: self._runs_init() or self._died_booting())
        if not self._runs_init():
            raise LabFailed(f"The host {self.name} did not boot: {self._last_words()}", f"Read {self.console}.")

    def crash(self) -> None:
        """Take the host's power away: processes, memory and connections are gone at once, the disk stays."""
        network = Network(self.plan)
        network.cut(self.name)  # first, so that the kernel's farewells to its peers are not heard
        end(self._processes())
        network.unplug(self.name)

    def argv(self, command: Sequence[Argument]) -> list[Argument]:
        """Return the command line that runs a command inside the host. Raises LabFailed while it is down."""
        init = self.init
        if init is None:
            raise LabFailed(f"The host {self.name} is down.", f"Boot it: sojourn lab boot {self.name}.")
        environment = {**CLEAN_ENVIRONMENT, "TERM": variable("TERM") or "dumb"}
        return [
            *("nsenter", "--target", str(init.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"),
            *("env", "--ignore-environment", *(f"{name}={value}" for name, value in environment.items())),
            *command,
        ]

    def run(
        self,
        command: Sequence[Argument],
        *,
        deadline_s: float = 60,
        check: bool = True,
        stdin: str | None = None,
    ) -> Completed:
        """Run a command inside the host to its end. Raises as ``sojourn.run.run`` does."""
        return run(self.argv(command), deadline_s=deadline_s, check=check, stdin=stdin)

    def launch(self, command: Sequence[str], *, log: str = "/dev/null") -> int:
        """Start a workload that migrates well, and return its PID in the host.

        It is a child of the host's init, leads a session of its own, and has no descriptors but
        ``/dev/null`` and the log, which is a path inside the host.
        """
        return int(self.run([HOST_PYTHON, LAUNCHER, log, *command], deadline_s=LAUNCH_S).stdout)

    def service(self, name: str, command: str) -> str:
        """Tell the supervisor what to do with a service (sv(8): status, up, down…); return its answer."""
        completed = self.run(["sv", command, name], check=False)
        return (completed.stdout + completed.stderr).strip()

    def services(self) -> dict[str, str]:
        """Return what the supervisor says of each service."""
        return {name: self.service(name, "status") for name in services.names(self.name)}

    def log(self, service: str) -> str:
        """Return what a service has written since the host's disk was new."""
        path = self.log_path(service)
        return path.read_text(errors="replace") if path.exists() else ""

    def log_path(self, service: str) -> Path:
        """Return where a service's log lies, seen from the outside."""
        return self.disk / "var/log/sojourn" / f"{service}.log"

    def _mount_state(self) -> None:
        """Mount the host's own file system for its journal, on the outside, so that it is kept from boot to boot."""
        disk = self.plan.state_disk(self.name)
        if self.plan.state_mb and not disk.is_mount():
            disk.mkdir(parents=True, exist_ok=True)
            size = f"mode=0700,size={self.plan.state_mb}m"
            run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], deadline_s=MOUNT_S)

    def _runs_init(self) -> bool:
        init = self.init
        return init is not None and stat(init.pid).name == "tini"

    def _died_booting(self) -> bool:
        return bool(self._processes()) and not self.is_up

    def _last_words(self) -> str:
        lines = self.console.read_text(errors="replace").split("\n") if self.console.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def _processes(self) -> list[Identity]:
        """Return init and the process outside that waits for it, as they were at the last boot."""
        try:
            written = json.loads((self.directory / "init.json").read_text())
        except FileNotFoundError:
            return []
        return [Identity(**fields) for fields in written]


def end(processes: Sequence[Identity]) -> None:
    """Kill exactly these processes and wait until they are gone. Raises LabFailed if they do not go."""
    for process in processes:
        send(process, signal.SIGKILL)
    if not within(END_S, lambda: not any(is_alive(process) for process in processes)):
        left = ", ".join(str(process.pid) for process in processes if is_alive(process))
        raise LabFailed(
            f"Killed processes did not end within {END_S} s: {left}.", "Look at them with ps, then try again."
        )


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
