"""Measure post-copy under a storm of faults: how fast memory comes, and how long threads wait.

A process moves by post-copy, and its threads touch all of its memory at random as soon as it runs
on the destination (``lab/workloads/storm.py``); in a calm it touches none of it. The link is that
of the lab as it is, and then one that both hosts' interfaces shape to 1 Gbit/s; the hosts have
certificates or not. All of that takes turns, so that a drift of the machine's speed affects all of
it.

Needs root. Usage: python benchmarks/fault_storm.py [--runs 3] [--mb 512] [--threads 4]
                                                    [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from lab import workload
from lab.lab import Lab
from lab.network import namespace
from sojourn.model import Json
from sojourn.system.run import run

DEADLINE_S = 300
TC_S = 10

#: The link that is shaped: what tc(8) calls it, and what it carries, in bytes per second.
WIRE, WIRE_BYTES_PER_S = "1gbit", 125_000_000

#: The queue in front of it: a burst of a few packets as large as offloading makes them, and how
#: long a packet may wait.
QUEUE = ("burst", "256kb", "latency", "20ms")

#: The table does not fit into the 80 columns that are assumed where there is no terminal.
console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Case:
    """The conditions of a run."""

    shaped: bool
    encrypted: bool
    storm: bool

    @property
    def calm(self) -> Case:
        """The same without a storm: what its rate is compared with."""
        return replace(self, storm=False)

    @property
    def name(self) -> str:
        """The case in a few words."""
        link = "1 Gbit/s" if self.shaped else "as it is"
        encrypted, process = ", TLS" if self.encrypted else "", "storm" if self.storm else "calm"
        return f"{link}{encrypted}, {process}"


CASES = [Case(*flags) for flags in itertools.product((False, True), repeat=3)]


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    More bytes have crossed than the memory has where pages crossed twice. ``storm_ms`` is how long
    the slowest thread took for its share of the memory, ``felt_ms`` the pause before its first
    instruction on the destination.
    """

    memory_bytes: int
    crossed_bytes: int
    settled_ms: float
    felt_ms: float
    storm_ms: float
    faults: int
    wait_median_ms: float = 0.0
    wait_p99_ms: float = 0.0
    wait_longest_ms: float = 0.0

    @property
    def rate(self) -> float:
        """How fast the memory came into place, in bytes per second."""
        return self.memory_bytes / self.settled_ms * 1000


#: The fields of a migration's result that are taken over as they are.
TAKEN = ("settled_ms", "faults", "wait_median_ms", "wait_p99_ms", "wait_longest_ms")


def measure(lab: Lab, case: Case, mb: int, threads: int) -> Outcome:
    """Migrate a new process from alpha to beta in these conditions."""
    alpha, beta = lab.host("alpha"), lab.host("beta")
    process = workload.start(
        alpha, "storm", deadline_s=DEADLINE_S, mb=mb, threads=threads if case.storm else 0
    )
    shape(lab, shaped=case.shaped)
    result = migrate(lab, process.pid)
    status = process.wait_for_beats()
    if case.storm:
        status = process.wait_until(lambda status: status.details["pages"] == pages_of(mb))
    beta.run(["kill", "-KILL", str(process.pid)])
    if status.host != "beta" or status.details["damaged"]:
        raise SystemExit(f"The process did not arrive whole: {status}")
    return Outcome(
        memory_bytes=mb * 2**20,
        crossed_bytes=result["pages_bytes"],
        felt_ms=status.arrivals[-1].pause_ms,
        storm_ms=float(str(status.details["storm_ms"])),
        **{name: result[name] for name in TAKEN if result[name] is not None},
    )


def migrate(lab: Lab, pid: int) -> Json:
    """Migrate with the command line; return the result once all memory is in place."""
    ends = ("--from", "alpha", "--to", "beta", "--mode", "post-copy", "--json")
    command = [sys.executable, "-m", "sojourn", "migrate", str(pid), *ends]
    done = run(command, deadline_s=DEADLINE_S, env={"SOJOURN_CONFIG": str(lab.config)})
    result: Json = json.loads(done.stdout)
    return result


def shape(lab: Lab, *, shaped: bool) -> None:
    """Give both hosts' interfaces the pace of the wire, or take it away."""
    for host in ("alpha", "beta"):
        queue = ["tc", "-netns", namespace(lab.name, host), "qdisc"]
        run([*queue, "delete", "dev", "eth0", "root"], deadline_s=TC_S, check=False)
        if shaped:
            pace = ("root", "tbf", "rate", WIRE, *QUEUE)
            run([*queue, "add", "dev", "eth0", *pace], deadline_s=TC_S)


def pages_of(mb: int) -> int:
    """Return how many pages there are to be read."""
    return mb * 2**20 // mmap.PAGESIZE


def play(labs: dict[bool, Lab], options: argparse.Namespace) -> dict[Case, list[Outcome]]:
    """Let the cases take turns; return what came of them, in the order of the runs."""
    outcomes: dict[Case, list[Outcome]] = {case: [] for case in CASES}
    for number in track(range(options.runs), f"{options.mb} MB", console=console):
        for case in CASES if number % 2 else reversed(CASES):
            lab = labs[case.encrypted]
            outcomes[case].append(measure(lab, case, options.mb, options.threads))
    return outcomes


def table(outcomes: dict[Case, list[Outcome]]) -> Table:
    """Return the medians of all runs."""
    rates = ("MB/s", "of the wire", "of its calm", "crossed")
    waits = ("settled ms", "faults", "wait ms", "p99", "longest")
    drawn = Table(Column("link, process", no_wrap=True), *rates, *waits)
    for case, runs in outcomes.items():
        rate, calm = _median(runs, "rate"), _median(outcomes[case.calm], "rate")
        drawn.add_row(
            case.name,
            f"{rate / 1e6:.0f}",
            f"{rate / WIRE_BYTES_PER_S:.0%}" if case.shaped else "",
            f"{rate / calm:.0%}" if case.storm else "",
            f"{_median(runs, 'crossed_bytes') / runs[0].memory_bytes:.2f}",
            *(f"{_median(runs, name):.0f}" for name in TAKEN[:2]),
            *(f"{_median(runs, name):.2f}" for name in TAKEN[2:]),
        )
    return drawn


def _median(runs: list[Outcome], name: str) -> float:
    return statistics.median(getattr(run, name) for run in runs)


def main() -> None:
    """Start the labs, measure, and remove them."""
    options = arguments()
    labs = {False: Lab("storm", console.print), True: Lab("stormtls", console.print)}
    try:
        for encrypted, lab in labs.items():
            lab.down()
            lab.up(2, encrypted=encrypted)
        outcomes = play(labs, options)
    finally:
        for lab in labs.values():
            lab.down()
    console.print(table(outcomes))
    if options.json:
        found = {case.name: [asdict(run) for run in runs] for case, runs in outcomes.items()}
        options.json.write_text(json.dumps(found))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="runs of each case")
    parser.add_argument("--mb", type=int, default=512, help="memory of the process, in MB")
    parser.add_argument("--threads", type=int, default=4, help="how many threads touch it")
    parser.add_argument("--json", type=Path, help="write what came of every run there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
