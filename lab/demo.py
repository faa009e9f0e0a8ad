"""``sojourn lab demo``: a process moves to another host and back, and every promise is checked.

The process counts, and hashes its memory slice by slice. The screen shows the output of commands
that anybody can run, and that output is what is checked.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab import workload
from lab.errors import LabFailed
from lab.lab import Lab
from lab.layer import Report
from lab.workload import Arrival, Status, Workload
from lab.workloads.counter import SLICE_BYTES
from sojourn.model import Json
from sojourn.system import run

NAME = "demo"
THERE_AND_BACK = (("alpha", "beta"), ("beta", "alpha"))

#: How far the process counts before it is moved, and how long a step may take.
WARM_UP_BEATS = 400
PATIENCE_S = 120

#: The process measures from beat to beat, so its pause is a beat longer than the downtime, and more
#: on a busy machine.
TOLERANCE = 0.25
TOLERANCE_MS = 100

#: For `sojourn migrate` when its output goes to a file, which has no width of its own.
COLUMNS = 120

out = Console(highlight=False)

Progress = Callable[[], AbstractContextManager[Report]]


class PromiseBroken(LabFailed):
    """The demonstration has shown a broken promise."""

    code = "PROMISE_BROKEN"


@dataclass(frozen=True)
class Check:
    """One promise and whether it was kept, with the numbers that prove it."""

    promise: str
    kept: bool
    seen: str


@dataclass(frozen=True)
class Trip:
    """One migration: the process's status before, at and after it, and Sojourn's result."""

    source: str
    destination: str
    before: Status
    arrival: Arrival
    after: Status
    result: Json

    @property
    def name(self) -> str:
        """The trip as a heading."""
        return f"{self.source} → {self.destination}"


def show(progress: Progress, *, size_mb: int, keep: bool) -> None:
    """Give the demonstration. Raises PromiseBroken with the first promise that was not kept."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that these, too, take the lab down
    with _standing_lab(progress, keep=keep) as lab:
        counter = _start(lab, size_mb)
        verdicts = []
        for source, destination in THERE_AND_BACK:
            _print_heading(f"Migrate it from {source} to {destination}")
            trip = _migrate(lab, counter, source, destination)
            verdicts.append((trip.name, _check(lab, trip)))
        _print_verdict(verdicts)


@contextmanager
def _standing_lab(progress: Progress, *, keep: bool) -> Iterator[Lab]:
    """Give a fresh lab of two hosts, and take it down at the end, even after an error."""
    _print_heading("A lab: two hosts and a hub on this machine")
    started = time.monotonic()
    lab = Lab(NAME)
    lab.down()
    try:
        with progress() as report:
            Lab(NAME, report).up(2)
        _print(f"Up in {time.monotonic() - started:.1f} s.")
        _show(lab, "hosts")
        yield lab
    finally:
        if keep:
            _print_hint(lab)
        else:
            lab.down()
            _print("\nThe lab is gone.")


def _start(lab: Lab, size_mb: int) -> Workload:
    _print_heading(f"A process with {size_mb} MB of random memory, on alpha")
    counter = workload.start(lab.host("alpha"), "counter", mb=size_mb)
    status = counter.wait_for_beats(WARM_UP_BEATS)
    _exec(lab, "alpha", *_ps(counter.pid))
    sha256 = status.details["sha256"]
    _print(f"It has counted to {status.counter}. The SHA-256 of its memory is {sha256}.")
    return counter


def _migrate(lab: Lab, counter: Workload, source: str, destination: str) -> Trip:
    """Run the command in this terminal; then let the process hash all of its memory again."""
    before = counter.status()
    exit_code = _show(lab, "migrate", str(counter.pid), "--from", source, "--to", destination)
    if exit_code != 0:
        raise PromiseBroken(
            f"The migration from {source} to {destination} ended with exit code {exit_code}."
        )
    arrival = counter.wait_until(lambda status: status.host == destination).arrivals[-1]
    slices = -(-int(str(before.details["memory_bytes"])) // SLICE_BYTES)
    _print(f"\nNow it hashes all of its {slices} slices of memory again, one at each count …")
    after = counter.wait_until(
        lambda status: status.counter >= arrival.counter + slices, PATIENCE_S
    )
    return Trip(source, destination, before, arrival, after, _last_result(lab))


def _last_result(lab: Lab) -> Json:
    listed = run.run([*_sojourn(lab), "list", "--last=1", "--json"], deadline_s=PATIENCE_S).stdout
    result: Json = json.loads(listed)[0]
    return result


def _check(lab: Lab, trip: Trip) -> list[Check]:
    """Show what is on both hosts now, and check every promise. Raises PromiseBroken."""
    _print("What is left on the source, and what runs on the destination:")
    pid = trip.before.pid
    gone = _exec(lab, trip.source, *_ps(pid)) != 0
    runs = _exec(lab, trip.destination, *_ps(pid)) == 0
    mounts = _image_mounts(lab)
    checks = [
        Check("same PID", runs and trip.after.pid == pid, f"{pid} on both hosts"),
        _counts_on(trip),
        _memory_is_whole(trip),
        Check("the original is gone", gone, f"{trip.source} has no process {pid}"),
        Check(
            "no tmpfs is left",
            not mounts,
            ", ".join(mounts) or "neither on the source nor on the destination",
        ),
        _pause_is_reported(trip),
    ]
    _print_checks(checks)
    for check in checks:
        if not check.kept:
            raise PromiseBroken(
                f"{trip.name}: the promise {check.promise!r} was not kept: {check.seen}."
            )
    return checks


def _counts_on(trip: Trip) -> Check:
    before, first, after = trip.before.counter, trip.arrival.counter, trip.after.counter
    seen = f"{before} just before, {first} at its first count on {trip.destination}, {after} by now"
    return Check("it counts on", before < first < after, seen)


def _memory_is_whole(trip: Trip) -> Check:
    same = trip.after.details["sha256"] == trip.before.details["sha256"]
    damaged = trip.after.details["damaged_slices"]
    hashed = trip.after.counter - trip.arrival.counter
    seen = f"{hashed} slices hashed since it arrived, {damaged} damaged"
    sha256 = f"SHA-256 {'as' if same else 'not as'} before"
    return Check("its memory is whole", same and damaged == 0, f"{seen}; {sha256}")


def _pause_is_reported(trip: Trip) -> Check:
    downtime, felt = trip.result["downtime_ms"], trip.arrival.pause_ms
    honest = downtime - TOLERANCE_MS <= felt <= downtime * (1 + TOLERANCE) + TOLERANCE_MS
    return Check(
        "the pause is reported",
        honest,
        f"the process felt {felt:.0f} ms, the downtime was reported as {downtime:.0f} ms",
    )


def _image_mounts(lab: Lab) -> list[str]:
    """Return the mounts of image directories on both hosts; show the tables they are in."""
    found = []
    for host in (host.name for host in lab.hosts()):
        _exec(lab, host, "findmnt", "--types=tmpfs", "--list", "--output=TARGET,SOURCE,SIZE,USED")
        table = lab.host(host).run(["cat", "/proc/self/mountinfo"]).stdout.splitlines()
        found += [
            f"{host}:{line.split()[4]}"
            for line in table
            if line.split()[4].startswith("/run/sojourn/")
        ]
    return found


def _ps(pid: int) -> tuple[str, ...]:
    return ("ps", "-o", "pid,stat,etime,rss,args", "-p", str(pid))


def _exec(lab: Lab, host: str, *command: str) -> int:
    """Run a command in a host, show it with its output, and return its exit code."""
    _print_command("lab", "exec", "--name", NAME, host, "--", *command)
    completed = lab.host(host).run(command, check=False)
    out.print(escape((completed.stdout + completed.stderr).rstrip()), soft_wrap=True)
    return completed.returncode


def _show(lab: Lab, *command: str) -> int:
    """Run a command of Sojourn in this terminal, and return its exit code."""
    _print_command(*command)
    sys.stdout.flush()
    return run.foreground([*_sojourn(lab), *command])


def _sojourn(lab: Lab) -> list[str]:
    width = [] if out.is_terminal else [f"COLUMNS={COLUMNS}"]
    return ["env", f"SOJOURN_CONFIG={lab.config}", *width, sys.executable, "-m", "sojourn"]


def _print(sentence: str) -> None:
    out.print(escape(sentence), soft_wrap=True)


def _print_heading(text: str) -> None:
    out.print(f"\n[bold]== {escape(text)}[/]\n", soft_wrap=True)


def _print_command(*command: str) -> None:
    out.print(f"[bold cyan]$ sojourn {escape(' '.join(command))}[/]", soft_wrap=True)


def _print_checks(checks: Sequence[Check]) -> None:
    out.print()
    for check in checks:
        mark = "[bold green]✓[/]" if check.kept else "[bold red]✗[/]"
        out.print(f"{mark} [bold]{check.promise}[/]: {escape(check.seen)}", soft_wrap=True)


def _print_verdict(verdicts: Sequence[tuple[str, list[Check]]]) -> None:
    _print_heading("The verdict")
    table = Table(
        "promise", *(name for name, _ in verdicts), box=None, pad_edge=False, header_style="dim"
    )
    for row in zip(*(checks for _, checks in verdicts), strict=True):
        table.add_row(row[0].promise, *("[green]✓ kept[/]" for _ in row))
    out.print(table)


def _print_hint(lab: Lab) -> None:
    _print_heading("The lab stays")
    _print(f"export SOJOURN_CONFIG={lab.config}")
    _print("sojourn list                           its migrations")
    _print(f"{lab.plan.flower_url:<38} the same in a browser; {lab.flower_login}")
    _print(f"sojourn lab down --name {NAME}           takes it down")
