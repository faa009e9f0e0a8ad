"""The lab's workloads: how they are started, and the status that they write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabFailed
from lab.host import HOST_PYTHON, Host, within
from sojourn.errors import UsageError

NAMES = ("counter", "tree", "storm", "tcp_server", "tcp_client")
START_S = 30


@dataclass(frozen=True)
class Arrival:
    """The first beat on a host: its number, and the pause before it (0 ms on the first host)."""

    host: str
    counter: int
    pause_ms: float


@dataclass(frozen=True)
class Status:
    """What a workload last wrote about itself; ``details`` differ from workload to workload."""

    pid: int
    counter: int
    arrivals: tuple[Arrival, ...]
    longest_gap_ms: float
    details: Mapping[str, object]

    @property
    def host(self) -> str:
        """Where it runs now."""
        return self.arrivals[-1].host

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts it ran on, in order."""
        return tuple(arrival.host for arrival in self.arrivals)


@dataclass(frozen=True)
class Workload:
    """One running program: its PID, the same on every host, and the path of its status file."""

    name: str
    pid: int
    file: Path

    def status(self) -> Status:
        """Return what it last wrote. Raises LabFailed if it has written nothing."""
        try:
            fields = json.loads(self.file.read_text())
        except FileNotFoundError:
            raise LabFailed(f"The workload {self.name} has not written {self.file}.") from None
        common = {
            name: fields.pop(name) for name in Status.__dataclass_fields__ if name != "details"
        }
        arrivals = tuple(Arrival(**arrival) for arrival in common.pop("arrivals"))
        return Status(**common, arrivals=arrivals, details=fields)

    def witnessed(self) -> list[tuple[int, str]]:
        """Return counter and host of every report so far, in the order of writing."""
        lines = self.file.with_suffix(".beats").read_text().splitlines()
        return [(int(counter), host) for counter, host in (line.split() for line in lines)]

    def wait_until(self, condition: Callable[[Status], bool], deadline_s: float = 30) -> Status:
        """Wait until the status meets a condition; return it. Raises LabFailed at the deadline."""
        if within(deadline_s, lambda: self.file.exists() and condition(self.status())):
            return self.status()
        last = self.file.read_text() if self.file.exists() else "nothing"
        raise LabFailed(
            f"The workload {self.name} did not get that far in {deadline_s:g} s. Status: {last}."
        )

    def wait_for_beats(self, count: int = 20, deadline_s: float = 30) -> Status:
        """Wait for this number of further beats: then it runs, wherever it is."""
        reached = self.status().counter + count
        return self.wait_until(lambda status: status.counter >= reached, deadline_s)


def start(
    host: Host, name: str, *, deadline_s: float = START_S, **options: str | float
) -> Workload:
    """Start a workload on a host and return when it runs.

    ``options`` are the program's own, such as ``mb=256``; a keyword of Python takes a trailing
    underscore, as in ``with_="pipes"``.

    Raises UsageError for an unknown name, LabFailed if it does not start.
    """
    if name not in NAMES:
        raise UsageError(f"There is no workload {name!r}.", f"There are {', '.join(NAMES)}.")
    file = _free_name(host, name)
    inside = Path("/shared") / file.name
    arguments = [f"--{key.rstrip('_').replace('_', '-')}={value}" for key, value in options.items()]
    program = f"/opt/sojourn/src/lab/workloads/{name}.py"
    log = str(inside.with_suffix(".err"))
    pid = host.launch([HOST_PYTHON, program, f"--out={inside}", *arguments], log=log)
    workload = Workload(name, pid, file)
    try:
        workload.wait_until(lambda _: True, deadline_s)
    except LabFailed as error:
        reason = file.with_suffix(".err").read_text().strip()
        raise LabFailed(f"The workload {name} did not start on {host.name}: {reason}") from error
    return workload


def _free_name(host: Host, name: str) -> Path:
    taken = {path.stem for path in host.plan.shared.glob(f"{name}-*")}
    number = next(number for number in range(1, len(taken) + 2) if f"{name}-{number}" not in taken)
    return host.plan.shared / f"{name}-{number}.json"


def processes(host: Host, program: str) -> list[int]:
    """Return the PIDs, in the host, of all processes whose command line contains a text."""
    found = host.run(["pgrep", "--full", program], check=False)
    return [int(pid) for pid in found.stdout.split()]
