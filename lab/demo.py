"""``sojourn lab demo``: a process moves to another host and back, and every promise is checked on real output.

The process counts, and hashes its memory slice by slice. What the screen shows are the answers of commands that
anybody can run; what is checked is what they say.
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
from sojourn import run
from sojourn.model import Json

NAME = "demo"
THERE_AND_BACK = (("alpha", "beta"), ("beta", "alpha"))

#: How long the process counts before it is moved, and how long everything may take that needs seconds.
WARM_UP_BEATS = 400
PATIENCE_S = 120

#: The pause is felt from beat to beat, so it is a beat longer than the downtime, and more on a busy machine.
TOLERANCE = 0.25
TOLERANCE_MS = 100

#: For `sojourn migrate` when its output goes to a file, which has no width of its own.
COLUMNS = 120

out = Console(highlight=False)

Progress = Callable[[], AbstractContextManager[Report]]


class PromiseBroken(LabFailed):
    """The demonstration showed that something is not as promised."""

    code = "PROMISE_BROKEN"


@dataclass(frozen=True)
class Check:
    """One promise and whether it was kept, with the numbers that say so."""

    promise: str
    kept: bool
    seen: str


@dataclass(frozen=True)
class Leg:
    """One migration: what the process said before, at and after its arrival, and what Sojourn said."""

    source: str
    destination: str
    before: Status
    arrival: Arrival
    after: Status
    result: Json

    @property
    def name(self) -> str:
        """The leg as a heading."""
        return f"{self.source} → {self.destination}"


def show(progress: Progress, *, size_mb: int, keep: bool) -> None:
    """Give the whole demonstration. Raises PromiseBroken with the first promise that was not kept."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that the lab is taken down then too
    with _standing_lab(progress, keep=keep) as lab:
        counter = _start(lab, size_mb)
        verdicts = []
        for source, destination in THERE_AND_BACK:
            _say_heading(f"Migrate it from {source} to {destination}")
            leg = _migrate(lab, counter, source, destination)
            verdicts.append((leg.name, _check(lab, leg)))
        _say_verdict(verdicts)


@contextmanager
def _standing_lab(progress: Progress, *, keep: bool) -> Iterator[Lab]:
    """Give a fresh lab of two hosts, and take it down at the end, however that comes."""
    _say_heading("A lab: two hosts and a hub on this machine")
    started = time.monotonic()
    lab = Lab(NAME)
    lab.down()
    try:
        with progress() as report:
            Lab(NAME, report).up(2)
        _say(f"Up in {time.monotonic() - started:.1f} s.")
        _show(lab, "hosts")
        yield lab
    finally:
        if keep:
            _say_how_to_look(lab)
        else:
            lab.down()
            _say("\nThe lab is gone.")


def _start(lab: Lab, size_mb: int) -> Workload:
    _say_heading(f"A process with {size_mb} MB of random memory, on alpha")
    counter = workload.start(lab.host("alpha"), "counter", mb=size_mb)
    status = counter.wait_for_beats(WARM_UP_BEATS)
    _exec(lab, "alpha", *_ps(counter.pid))
    _say(f"It has counted to {status.counter}. The SHA-256 of its memory is {status.details['sha256']}.")
    return counter


def _migrate(lab: Lab, counter: Workload, source: str, destination: str) -> Leg:
    """Run the command in this terminal; then let the process hash all of its memory again."""
    before = counter.status()
    exit_code = _show(lab, "migrate", str(counter.pid), "--from", source, "--to", destination)
    if exit_code != 0:
        raise PromiseBroken(f"The migration from {source} to {destination} ended with exit code {exit_code}.")
    arrival = counter.wait_until(lambda status: status.host == destination).arrivals[-1]
    slices = -(-int(str(before.details["memory_bytes"])) // SLICE_BYTES)
    _say(f"\nNow it hashes all of its {slices} slices of memory again, one at each count …")
    after = counter.wait_until(lambda status: status.counter >= arrival.counter + slices, PATIENCE_S)
    return Leg(source, destination, before, arrival, after, _last_result(lab))


def _last_result(lab: Lab) -> Json:
    listed = run.run([*_sojourn(lab), "list", "--last=1", "--json"], deadline_s=PATIENCE_S).stdout
    result: Json = json.loads(listed)[0]
    return result


def _check(lab: Lab, leg: Leg) -> list[Check]:
    """Show what is on both hosts now and check every promise. Raises PromiseBroken with the first one broken."""
    _say("What is left on the source, and what runs on the destination:")
    gone = _exec(lab, leg.source, *_ps(leg.before.pid)) != 0
    runs = _exec(lab, leg.destination, *_ps(leg.before.pid)) == 0
    mounts = _image_mounts(lab)
    checks = [
        Check("same PID", runs and leg.after.pid == leg.before.pid, f"{leg.before.pid} on both hosts"),
        _counts_on(leg),
        _memory_is_whole(leg),
        Check("the original is gone", gone, f"{leg.source} has no process {leg.before.pid}"),
        Check("no tmpfs is left", not mounts, ", ".join(mounts) or "neither on the source nor on the destination"),
        _pause_is_told(leg),
    ]
    _say_checks(checks)
    for check in checks:
        if not check.kept:
            raise PromiseBroken(f"{leg.name}: the promise {check.promise!r} was not kept: {check.seen}.")
    return checks


def _counts_on(leg: Leg) -> Check:
    on = leg.before.counter < leg.arrival.counter < leg.after.counter
    seen = f"{leg.before.counter} just before, {leg.arrival.counter} at its first count on {leg.destination}"
    return Check("it counts on", on, f"{seen}, {leg.after.counter} by now")


def _memory_is_whole(leg: Leg) -> Check:
    same = leg.after.details["sha256"] == leg.before.details["sha256"]
    damaged = leg.after.details["damaged_slices"]
    hashed = leg.after.counter - leg.arrival.counter
    seen = f"{hashed} slices hashed since it arrived, {damaged} damaged; SHA-256 {'as' if same else 'not as'} before"
    return Check("its memory is whole", same and damaged == 0, seen)


def _pause_is_told(leg: Leg) -> Check:
    told, felt = leg.result["downtime_ms"], leg.arrival.pause_ms
    honest = told - TOLERANCE_MS <= felt <= told * (1 + TOLERANCE) + TOLERANCE_MS
    return Check("the pause is told", honest, f"the process felt {felt:.0f} ms, the downtime was told as {told:.0f} ms")


def _image_mounts(lab: Lab) -> list[str]:
    """Return what is mounted below the run-time directory of either host; show the tables it is read from."""
    found = []
    for host in (host.name for host in lab.hosts()):
        _exec(lab, host, "findmnt", "--types=tmpfs", "--list", "--output=TARGET,SOURCE,SIZE,USED")
        table = lab.host(host).run(["cat", "/proc/self/mountinfo"]).stdout.splitlines()
        found += [f"{host}:{line.split()[4]}" for line in table if line.split()[4].startswith("/run/sojourn/")]
    return found


def _ps(pid: int) -> tuple[str, ...]:
    return ("ps", "-o", "pid,stat,etime,rss,args", "-p", str(pid))


def _exec(lab: Lab, host: str, *words: str) -> int:
    """Run a command in a host, show it with what it said, and return its exit code."""
    _say_command("lab", "exec", "--name", NAME, host, "--", *words)
    completed = lab.host(host).run(words, check=False)
    out.print(escape((completed.stdout + completed.stderr).rstrip()), soft_wrap=True)
    return completed.returncode


def _show(lab: Lab, *words: str) -> int:
    """Run a command of Sojourn in this terminal, with whatever it draws, and return its exit code."""
    _say_command(*words)
    sys.stdout.flush()
    return run.foreground([*_sojourn(lab), *words])


def _sojourn(lab: Lab) -> list[str]:
    width = [] if out.is_terminal else [f"COLUMNS={COLUMNS}"]
    return ["env", f"SOJOURN_CONFIG={lab.config}", *width, sys.executable, "-m", "sojourn"]


def _say(sentence: str) -> None:
    out.print(escape(sentence), soft_wrap=True)


def _say_heading(text: str) -> None:
    out.print(f"\n[bold]== {escape(text)}[/]\n", soft_wrap=True)


def _say_command(*words: str) -> None:
    out.print(f"[bold cyan]$ sojourn {escape(' '.join(words))}[/]", soft_wrap=True)


def _say_checks(checks: Sequence[Check]) -> None:
    out.print()
    for check in checks:
        mark = "[bold green]✓[/]" if check.kept else "[bold red]✗[/]"
        out.print(f"{mark} [bold]{check.promise}[/]: {escape(check.seen)}", soft_wrap=True)


def _say_verdict(verdicts: Sequence[tuple[str, list[Check]]]) -> None:
    _say_heading("The verdict")
    table = Table("promise", *(name for name, _ in verdicts), box=None, pad_edge=False, header_style="dim")
    for row in zip(*(checks for _, checks in verdicts), strict=True):
        table.add_row(row[0].promise, *("[green]✓ kept[/]" for _ in row))
    out.print(table)


def _say_how_to_look(lab: Lab) -> None:
    _say_heading("The lab stays")
    _say(f"export SOJOURN_CONFIG={lab.config}")
    _say("sojourn list                           its migrations")
    _say(f"{lab.plan.flower_url:<38} the same in a browser; {lab.flower_login}")
    _say(f"sojourn lab down --name {NAME}           takes it down")
