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
from sojourn.environment import variable
from sojourn.model import Identity
from sojourn.system.process import is_alive, send, stat
from sojourn.system.run import CLEAN_ENVIRONMENT, Argument, Completed, run, spawn

BOOT_S = 20
END_S = 10
MOUNT_S = 10
POLL_S = 0.01

#: The start of a workload waits for nothing but its own Python.
LAUNCH_S = 20

#: Without private propagation the host's mounts would appear on this machine (mount_namespaces(7)).
UNSHARE = ("unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork")
HOST_PYTHON = "/usr/bin/python3"
LAUNCHER = "/opt/sojourn/src/lab/launch.py"


@dataclass(frozen=True)
class Host:
    """A host by its name. It holds no state, so any number of objects may stand for one host."""

    plan: Plan
    name: str

    @property
    def address(self) -> str:
        """The address of the host in the lab's network."""
        return self.plan.address(self.name)

    @property
    def directory(self) -> Path:
        """The host's run-time directory on this machine."""
        return self.plan.state / "hosts" / self.name

    @property
    def disk(self) -> Path:
        """The upper directory of the host's root: what it has written, kept from boot to boot."""
        return DISKS / self.plan.name / self.name / "upper"

    @property
    def console(self) -> Path:
        """The output of the host's init and its services' supervisor."""
        return self.directory / "console.log"

    @property
    def init(self) -> Identity | None:
        """The host's init as this machine numbers it, or None while the host is down."""
        processes = self._processes()
        return processes[0] if processes and is_alive(processes[0]) else None

    @property
    def is_up(self) -> bool:
        """Whether the host runs."""
        return self.init is not None

    def start(self, layers: Sequence[Path]) -> None:
        """Boot the host from its disk over the layers, topmost first; return before it is up."""
        Network(self.plan).plug(self.name)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._mount_state()
        (self.directory / "layers").write_text(":".join(str(layer) for layer in layers))
        # Otherwise the dead processes of the last boot would look like a boot that has failed.
        (self.directory / "init.json").unlink(missing_ok=True)
        # ``-P``: no module is taken from the directory in which the command happens to be given.
        boot = [sys.executable, "-P", "-m", "lab.boot", self.plan.name, self.name]
        enter_network = ["nsenter", f"--net=/run/netns/{namespace(self.plan.name, self.name)}"]
        # setsid forks and ends, so init adopts the host, which outlives the process that booted it.
        child = spawn(
            ["setsid", "--fork", *enter_network, *UNSHARE, *boot],
            output=self.console,
            env={"PYTHONPATH": str(CHECKOUT)},
        )
        child.wait(BOOT_S)

    def wait_until_up(self) -> None:
        """Return when init runs in the host's own root. Raises LabFailed if it fails to."""
        within(BOOT_S, lambda: self._runs_init() or self._died_booting())
        if not self._runs_init():
            reason = self._last_line()
            raise LabFailed(f"The host {self.name} did not boot: {reason}", f"Read {self.console}.")

    def crash(self) -> None:
        """Cut the host's power: processes, memory and connections are gone, the disk stays."""
        network = Network(self.plan)
        network.cut(self.name)  # first, so that no FIN or RST of the kernel reaches its peers
        end(self._processes())
        network.unplug(self.name)

    def argv(self, command: Sequence[Argument]) -> list[Argument]:
        """Return the argv that runs a command in the host. Raises LabFailed while it is down."""
        init = self.init
        if init is None:
            raise LabFailed(
                f"The host {self.name} is down.", f"Boot it: sojourn lab boot {self.name}."
            )
        environment = {**CLEAN_ENVIRONMENT, "TERM": variable("TERM") or "dumb"}
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
        assignments = (f"{name}={value}" for name, value in environment.items())
        return [
            *("nsenter", "--target", str(init.pid), *namespaces, "--"),
            *("env", "--ignore-environment", *assignments),
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
        """Run a command inside the host to its end. Raises as ``sojourn.system.run.run`` does."""
        return run(self.argv(command), deadline_s=deadline_s, check=check, stdin=stdin)

    def launch(self, command: Sequence[str], *, log: str = "/dev/null") -> int:
        """Start a workload that migrates well, and return its PID in the host.

        It is a child of the host's init, leads a session of its own, and has no descriptors but
        ``/dev/null`` and the log, which is a path inside the host.
        """
        return int(self.run([HOST_PYTHON, LAUNCHER, log, *command], deadline_s=LAUNCH_S).stdout)

    def service(self, name: str, command: str) -> str:
        """Give the supervisor a command for a service (sv(8)); return its answer."""
        completed = self.run(["sv", command, name], check=False)
        return (completed.stdout + completed.stderr).strip()

    def services(self) -> dict[str, str]:
        """Return the state of each service, as the supervisor reports it."""
        return {name: self.service(name, "status") for name in services.names(self.name)}

    def log(self, service: str) -> str:
        """Return what a service has written since the host's disk was new."""
        path = self.log_path(service)
        return path.read_text(errors="replace") if path.exists() else ""

    def log_path(self, service: str) -> Path:
        """Return the path of a service's log on this machine."""
        return self.disk / "var/log/sojourn" / f"{service}.log"

    def _mount_state(self) -> None:
        """Mount the file system of the host's journal here, where it is kept from boot to boot."""
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

    def _last_line(self) -> str:
        output = self.console.read_text(errors="replace") if self.console.exists() else ""
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"

    def _processes(self) -> list[Identity]:
        """Return init of the last boot, and the process of this machine that waits for it."""
        try:
            processes = json.loads((self.directory / "init.json").read_text())
        except FileNotFoundError:
            return []
        return [Identity(**fields) for fields in processes]


def end(processes: Sequence[Identity]) -> None:
    """Kill these processes and wait until they are gone. Raises LabFailed if they stay."""
    for process in processes:
        send(process, signal.SIGKILL)
    if not within(END_S, lambda: not any(is_alive(process) for process in processes)):
        left = ", ".join(str(process.pid) for process in processes if is_alive(process))
        raise LabFailed(
            f"Killed processes did not end within {END_S} s: {left}.",
            "Look at them with ps, then try again.",
        )


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
