"""The workloads as tests and demonstrations start them, and what they say about themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabFailed
from lab.host import HOST_PYTHON, Host, within
from sojourn.errors import UsageError

NAMES = ("counter", "tree", "tcp_server", "tcp_client")
START_S = 30


@dataclass(frozen=True)
class Arrival:
    """The first beat on a host: its number, and the pause before it in milliseconds (0 on the first host)."""

    host: str
    counter: int
    pause_ms: float


@dataclass(frozen=True)
class Status:
    """What a workload last wrote about itself; ``details`` is what only this workload tells."""

    pid: int
    counter: int
    arrivals: tuple[Arrival, ...]
    longest_gap_ms: float
    details: Mapping[str, object]

    @property
    def host(self) -> str:
        """Where it beats now."""
        return self.arrivals[-1].host

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts it ran on, in order."""
        return tuple(arrival.host for arrival in self.arrivals)


@dataclass(frozen=True)
class Workload:
    """One running program. ``pid`` is its PID on every host; ``file`` its status file, from the outside."""

    name: str
    pid: int
    file: Path

    def status(self) -> Status:
        """Return what it last wrote. Raises LabFailed if it has written nothing."""
        try:
            fields = json.loads(self.file.read_text())
        except FileNotFoundError:
            raise LabFailed(f"The workload {self.name} has not written {self.file}.") from None
        common = {name: fields.pop(name) for name in Status.__dataclass_fields__ if name != "details"}
        arrivals = tuple(Arrival(**arrival) for arrival in common.pop("arrivals"))
        return Status(**common, arrivals=arrivals, details=fields)

    def witnessed(self) -> list[tuple[int, str]]:
        """Return counter and host of every report so far, in the order in which they were written."""
        lines = self.file.with_suffix(".beats").read_text().splitlines()
        return [(int(counter), host) for counter, host in (line.split() for line in lines)]

    def wait_until(self, condition: Callable[[Status], bool], deadline_s: float = 30) -> Status:
        """Wait until the status satisfies a condition, and return it. Raises LabFailed at the deadline."""
        if within(deadline_s, lambda: self.file.exists() and condition(self.status())):
            return self.status()
        last = self.file.read_text() if self.file.exists() else "nothing"
        raise LabFailed(f"The workload {self.name} did not come that far within {deadline_s:g} s; it says {last}.")

    def wait_for_beats(self, count: int = 20, deadline_s: float = 30) -> Status:
        """Wait until it has beaten so many times more than now: it runs, wherever it is."""
        reached = self.status().counter + count
        return self.wait_until(lambda status: status.counter >= reached, deadline_s)


def start(host: Host, name: str, **options: str | float) -> Workload:
    """Start a workload on a host and return when it beats.

    ``options`` are the program's own, such as ``mb=256``; a keyword of Python, as in ``with_="pipes"``, takes
    a trailing underscore.
    Raises UsageError for an unknown name, LabFailed if it does not start.
    """
    if name not in NAMES:
        raise UsageError(f"There is no workload {name!r}.", f"There are {', '.join(NAMES)}.")
    file = _free_name(host, name)
    inside = Path("/shared") / file.name
    words = [f"--{key.rstrip('_').replace('_', '-')}={value}" for key, value in options.items()]
    program = f"/opt/sojourn/src/lab/workloads/{name}.py"
    log = str(inside.with_suffix(".err"))
    pid = host.launch([HOST_PYTHON, program, f"--out={inside}", *words], log=log)
    workload = Workload(name, pid, file)
    try:
        workload.wait_until(lambda _: True, START_S)
    except LabFailed as error:
        said = file.with_suffix(".err").read_text().strip()
        raise LabFailed(f"The workload {name} did not start on {host.name}: {said}") from error
    return workload


def _free_name(host: Host, name: str) -> Path:
    taken = {path.stem for path in host.plan.shared.glob(f"{name}-*")}
    number = next(number for number in range(1, len(taken) + 2) if f"{name}-{number}" not in taken)
    return host.plan.shared / f"{name}-{number}.json"


def processes(host: Host, program: str) -> list[int]:
    """Return the PIDs, inside the host, of everything whose command line holds a text; for tests."""
    found = host.run(["pgrep", "--full", program], check=False)
    return [int(pid) for pid in found.stdout.split()]
