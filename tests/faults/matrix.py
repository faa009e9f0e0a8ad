"""The whole fault matrix: every instant and every fault, on a lab with real CRIU; the table becomes docs/failure.md.

Usage: python -m tests.faults.matrix [--only WORD]... [--out FILE]   (as root; about half an hour)
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from lab.errors import LabFailed
from lab.lab import Lab
from sojourn.errors import SojournError
from tests.faults.conftest import IMPATIENT
from tests.faults.scenario import FAULTS, INSTANTS, Cell, Fault, play
from tests.lab.site import Site

HEAD = """# What happens when something dies

Made by `make faults`. Each row is a real migration of a process from alpha to beta, stopped at the instant named,
just before or after a phase is written (docs/protocol.md) or at the end of a step; then the fault struck. Looked at
afterwards: who owns the process, its memory's hash and counter, whether two copies ever wrote, what was left behind.
The reconciler of this lab looks every second and waits three; the time is from the fault to rest, five seconds of which
the fault stayed. "nobody" stands where the host with the only copy was itself destroyed.

"""


def cells(site: Site, only: Sequence[str], console: Console) -> Iterable[Cell]:
    """Play every cell whose instant and fault contain all the words."""
    chosen = [
        (where, instant, fault)
        for where, instant in INSTANTS
        for fault in FAULTS.values()
        if all(word in f"{where}: {instant} {fault.name}" for word in only)
    ]
    for number, (where, instant, fault) in enumerate(chosen, 1):
        cell = _played(site, where, instant, fault)
        verdict = "; ".join(cell.wrong) or "well"
        console.print(f"{number}/{len(chosen)} {cell.instant}, {cell.fault}: {cell.owner}, {cell.state}, {verdict}")
        yield cell


def _played(site: Site, where: str, instant: str, fault: Fault) -> Cell:
    try:
        return play(site, where, instant, fault)
    except (SojournError, LabFailed, AssertionError) as error:
        return Cell(f"{where}: {instant}", fault.name, "unknown", "unknown", 0, (str(error).splitlines()[0][:200],))


def table(played: Sequence[Cell]) -> str:
    """Return the page: a summary and a row per cell."""
    times = [cell.recovered_s for cell in played if not cell.wrong] or [0.0]
    well = sum(not cell.wrong for cell in played)
    lines = [
        f"{well} of {len(played)} cells as promised. To rest: median {statistics.median(times):.1f} s,",
        f"worst {max(times):.1f} s.",
        "",
        "| instant | fault | owner in the end | state | at rest after | not as promised |",
        "|---|---|---|---|---|---|",
    ]
    for cell in played:
        wrong = "; ".join(cell.wrong).replace("|", "/")
        lines.append(
            f"| {cell.instant} | {cell.fault} | {cell.owner} | {cell.state} | {cell.recovered_s:.1f} s | {wrong} |"
        )
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Play the matrix and write the page; the exit code says whether all was as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="a word that instant or fault must contain")
    parser.add_argument("--out", type=Path, default=Path("docs/failure.md"))
    options = parser.parse_args()
    console = Console(highlight=False)
    lab = Lab("faults", console.print)
    lab.down()
    played: list[Cell] = []
    try:
        lab.up(2, settings=IMPATIENT)
        for cell in cells(Site(lab), options.only, console):
            played.append(cell)
            options.out.write_text(table(played))
    finally:
        lab.down()
    sys.exit(any(cell.wrong for cell in played))


if __name__ == "__main__":
    main()
