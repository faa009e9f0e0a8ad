"""Measure the downtime: Sojourn's modes, plain and encrypted, against CRIU's commands by hand.

The ways take turns on one machine, so that a drift of its speed affects all of them; what counts is
the ratio. The encrypted way has its own lab, whose hosts have certificates. The downtime is what
the process felt: from its last beat on the source to its first on the destination. Every run
starts a new process, with memory full of random bytes.

Needs root. Usage: python benchmarks/freeze.py [--runs 10] [--sizes 64 512] [--ways "by hand" ...]
                                               [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lab import workload
from lab.host import Host
from lab.lab import Lab
from sojourn.system.run import run

SCRIPT = Path(__file__).with_name("by_hand.sh")
DEADLINE_S = 300
BAR = 20

#: The ways that the others are compared with.
BY_HAND, POST_COPY_BY_HAND = "by hand", "post-copy by hand"

#: The way that needs hosts with certificates.
ENCRYPTED = "encrypted"

#: In post-copy CRIU puts all memory into pipes, of this size if it has CAP_SYS_RESOURCE, as on a
#: real host, or where the machine has this limit: so the lab's has it for as long as this takes.
PIPES, PIPE_BYTES = Path("/proc/sys/fs/pipe-max-size"), 2**26

#: The table does not fit into the 80 columns that are assumed where there is no terminal.
console = Console(width=None if sys.stdout.isatty() else 120)

Way = Callable[[Lab, int], None]


def by_hand(way: str, lab: Lab, pid: int) -> None:
    """Migrate from alpha to beta with a shell script."""
    alpha, beta = lab.host("alpha"), lab.host("beta")
    ends = [str(_init(alpha)), alpha.address, str(_init(beta)), beta.address]
    run([SCRIPT, way, *ends, str(pid)], deadline_s=DEADLINE_S)


def by_sojourn(mode: str, lab: Lab, pid: int) -> None:
    """Migrate from alpha to beta with the command line; return when all memory is in place."""
    ends = ("--from", "alpha", "--to", "beta", "--mode", mode)
    command = [sys.executable, "-m", "sojourn", "migrate", str(pid), *ends]
    run(command, deadline_s=DEADLINE_S, env={"SOJOURN_CONFIG": str(lab.config)})


WAYS: dict[str, Way] = {
    BY_HAND: partial(by_hand, "page-server"),
    "tmpfs + copy": partial(by_hand, "tmpfs"),
    POST_COPY_BY_HAND: partial(by_hand, "post-copy"),
    "sojourn": partial(by_sojourn, "stop-and-copy"),
    ENCRYPTED: partial(by_sojourn, "stop-and-copy"),
    "post-copy": partial(by_sojourn, "post-copy"),
}


@contextlib.contextmanager
def large_pipes() -> Iterator[None]:
    """Have the machine permit the pipes of a post-copy, for as long as this takes."""
    before = PIPES.read_text()
    PIPES.write_text(str(max(int(before), PIPE_BYTES)))
    try:
        yield
    finally:
        PIPES.write_text(before)


def felt_ms(lab: Lab, way: Way, mb: int) -> float:
    """Migrate a new process of ``mb`` MB and return the pause that it felt, in milliseconds."""
    alpha, beta = lab.host("alpha"), lab.host("beta")
    counter = workload.start(alpha, "counter", deadline_s=DEADLINE_S, mb=mb)
    counter.wait_for_beats()
    way(lab, counter.pid)
    status = counter.wait_for_beats()
    beta.run(["kill", "-KILL", str(counter.pid)])
    if status.host != "beta" or status.details["damaged_slices"]:
        raise SystemExit(f"The process did not arrive whole: {status}")
    return status.arrivals[-1].pause_ms


def compare(
    labs: dict[str, Lab], mb: int, runs: int, ways: Sequence[str]
) -> dict[str, list[float]]:
    """Let the ways take turns; return their pauses in milliseconds, in the order of the runs."""
    felt: dict[str, list[float]] = {name: [] for name in ways}
    for number in track(range(runs), f"{mb} MB", console=console):
        for name in ways if number % 2 else reversed(ways):
            felt[name].append(felt_ms(labs[name], WAYS[name], mb))
    return felt


def table(results: dict[int, dict[str, list[float]]]) -> Table:
    """Return the medians as bars on one scale, with their ratios to what is done by hand."""
    numbers = ("median ms", "min", "max", f"to {BY_HAND}", f"to {POST_COPY_BY_HAND}")
    drawn = Table("memory", "way", "", *numbers)
    for mb, felt in results.items():
        medians = {name: statistics.median(values) for name, values in felt.items()}
        for name, values in felt.items():
            bar = "█" * max(1, round(BAR * medians[name] / max(medians.values())))
            cells = [f"{number:.0f}" for number in (medians[name], min(values), max(values))]
            ratios = [_ratio(medians, name, other) for other in (BY_HAND, POST_COPY_BY_HAND)]
            drawn.add_row(f"{mb} MB", name, bar, *cells, *ratios)
    return drawn


def _ratio(medians: dict[str, float], name: str, other: str) -> str:
    return f"{medians[name] / medians[other]:.2f}" if other in medians else ""


def main() -> None:
    """Start the labs, measure, and remove them."""
    options = arguments()
    encrypted = Lab("benchtls", console.print)
    labs = dict.fromkeys(options.ways, Lab("bench", console.print))
    if ENCRYPTED in labs:
        labs[ENCRYPTED] = encrypted
    try:
        for lab in set(labs.values()):
            lab.down()
            lab.up(2, encrypted=lab is encrypted)
        with large_pipes():
            results = {mb: compare(labs, mb, options.runs, options.ways) for mb in options.sizes}
    finally:
        for lab in set(labs.values()):
            lab.down()
    console.print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10, help="runs per way and size")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 512], help="memory of the process, in MB"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], help="what is compared")
    parser.add_argument("--json", type=Path, help="write the result of every run there")
    return parser.parse_args()


def _init(host: Host) -> int:
    if host.init is None:
        raise SystemExit(f"{host.name} is down.")
    return host.init.pid


if __name__ == "__main__":
    main()
