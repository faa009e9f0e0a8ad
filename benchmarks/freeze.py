"""How long a process stands still: migrated by Sojourn, plain and encrypted, and by the same CRIU commands run by hand.

The ways take turns on one machine, so that a machine whose speed drifts does no harm; what counts is the ratio. The
third has a lab of its own, whose hosts have certificates. What is measured is what the process felt: from its last
beat there to its first beat here. Each run has a process of its own, with memory full of random bytes.

Needs root. Usage: python benchmarks/freeze.py [--runs 10] [--sizes 64 512] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lab import workload
from lab.host import Host
from lab.lab import Lab
from sojourn.run import run

BY_HAND = Path(__file__).with_name("by_hand.sh")
DEADLINE_S = 120
BAR = 30

console = Console()

Way = Callable[[Lab, int], None]


def by_hand(lab: Lab, pid: int) -> None:
    """Migrate from alpha to beta with a shell script."""
    alpha, beta = lab.host("alpha"), lab.host("beta")
    run([BY_HAND, str(_init(alpha)), str(_init(beta)), beta.address, str(pid)], deadline_s=DEADLINE_S)


def by_sojourn(lab: Lab, pid: int) -> None:
    """Migrate from alpha to beta with the command line."""
    command = [sys.executable, "-m", "sojourn", "migrate", str(pid), "--from", "alpha", "--to", "beta"]
    run(command, deadline_s=DEADLINE_S, env={"SOJOURN_CONFIG": str(lab.config)})


#: The way that needs hosts with certificates.
ENCRYPTED = "encrypted"

WAYS: dict[str, Way] = {"by hand": by_hand, "sojourn": by_sojourn, ENCRYPTED: by_sojourn}


def felt_ms(lab: Lab, way: Way, mb: int) -> float:
    """Migrate a new process of so many MB and return the pause it felt, in milliseconds."""
    alpha, beta = lab.host("alpha"), lab.host("beta")
    counter = workload.start(alpha, "counter", mb=mb)
    counter.wait_for_beats()
    way(lab, counter.pid)
    status = counter.wait_for_beats()
    beta.run(["kill", "-KILL", str(counter.pid)])
    if status.host != "beta" or status.details["damaged_slices"]:
        raise SystemExit(f"The process did not arrive whole: {status}")
    return status.arrivals[-1].pause_ms


def compare(labs: dict[str, Lab], mb: int, runs: int) -> dict[str, list[float]]:
    """Let the ways take turns, each on its lab; return what was felt, in milliseconds, in the order of the runs."""
    felt: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in track(range(runs), f"{mb} MB", console=console):
        names = list(WAYS) if number % 2 else list(reversed(WAYS))
        for name in names:
            felt[name].append(felt_ms(labs[name], WAYS[name], mb))
    return felt


def table(results: dict[int, dict[str, list[float]]]) -> Table:
    """Return the medians as bars on one scale, and the ratio of each size."""
    drawn = Table("memory", "way", "", "median ms", "min", "max", "ratio to by hand")
    for mb, felt in results.items():
        medians = {name: statistics.median(values) for name, values in felt.items()}
        for name, values in felt.items():
            bar = "█" * max(1, round(BAR * medians[name] / max(medians.values())))
            numbers = [f"{number:.0f}" for number in (medians[name], min(values), max(values))]
            drawn.add_row(f"{mb} MB", name, bar, *numbers, f"{medians[name] / medians['by hand']:.2f}")
    return drawn


def main() -> None:
    """Bring the labs up, measure, and take them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="runs of each way and size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512], help="memory of the process, in MB")
    parser.add_argument("--json", type=Path, help="write every single run there")
    options = parser.parse_args()
    plain, encrypted = Lab("bench", console.print), Lab("benchtls", console.print)
    labs = {name: encrypted if name == ENCRYPTED else plain for name in WAYS}
    try:
        for lab in (plain, encrypted):
            lab.down()
            lab.up(2, encrypted=lab is encrypted)
        results = {mb: compare(labs, mb, options.runs) for mb in options.sizes}
    finally:
        plain.down()
        encrypted.down()
    console.print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results))


def _init(host: Host) -> int:
    if host.init is None:
        raise SystemExit(f"{host.name} is down.")
    return host.init.pid


if __name__ == "__main__":
    main()
