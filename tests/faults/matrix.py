"""The whole fault matrix: every instant and fault, on labs with real CRIU; writes docs/failure.md.

Usage, as root:
    python -m tests.faults.matrix [--mode MODE]... [--only TEXT]... [--labs N] [--encrypted]
                                  [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from lab.errors import LabFailed
from sojourn.errors import SojournError
from sojourn.model import Json, Role
from tests.faults.fault import FAULTS, Fault
from tests.faults.instant import INSTANTS, MODES, Instant
from tests.faults.labs import DEFAULT_LABS, Labs
from tests.faults.page import page
from tests.faults.scenario import Cell, play
from tests.faults.site import FaultSite


@dataclass(frozen=True)
class Planned:
    """A cell that is to be played."""

    number: int
    instant: Instant
    fault: Fault

    def __str__(self) -> str:
        return f"{self.instant}, {self.fault.name}"


class Results:
    """The outcomes of cells, in the order of the tables; a file adds those of earlier runs."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: dict[str, Json] = json.loads(path.read_text()) if path and path.exists() else {}

    def add(self, cell: Cell) -> None:
        """Add a cell; it replaces an earlier one of the same instant and fault."""
        self._rows[f"{cell.instant}, {cell.fault}"] = {**asdict(cell), "instant": None}
        if self._path:
            self._path.write_text(json.dumps(self._rows, indent=1))

    def has(self, cell: Planned) -> bool:
        """Whether that cell was played, and was as promised."""
        return str(cell) in self._rows and not self._rows[str(cell)]["wrong"]

    def cells(self) -> list[Cell]:
        """Return all cells."""
        return [
            _cell(work.instant, self._rows[str(work)])
            for work in planned()
            if str(work) in self._rows
        ]


def _cell(instant: Instant, row: Json) -> Cell:
    owner = Role(row["owner"]) if row["owner"] else None
    return Cell(
        **{
            **row,
            "instant": instant,
            "owner": owner,
            "left": tuple(row["left"]),
            "wrong": tuple(row["wrong"]),
        }
    )


def planned(modes: Sequence[str] = MODES, only: Sequence[str] = ()) -> list[Planned]:
    """Return the cells of the modes that contain all the texts, in the order of the tables."""
    chosen = [
        (instant, fault)
        for instant in INSTANTS
        for fault in FAULTS.values()
        if fault.happens(instant)
        and instant.mode in modes
        and all(text in f"{instant}, {fault.name}" for text in only)
    ]
    return [Planned(number, *names) for number, names in enumerate(chosen, 1)]


def played(site: FaultSite, cell: Planned) -> Cell:
    """Play a cell, and return it even if it could not be played to its end."""
    try:
        return play(site, cell.instant, cell.fault)
    except (SojournError, LabFailed, AssertionError, OSError) as error:
        why = str(error) or type(error).__name__
        return Cell.unplayed(cell.instant, cell.fault.name, why.splitlines()[0][:200])


def player(site: FaultSite) -> Callable[[Planned], Cell]:
    """Return a function that plays cells on a site."""
    return lambda cell: played(site, cell)


def main() -> None:
    """Play the matrix and write the page; exit with 1 unless all is as promised."""
    options = _options()
    console = Console(highlight=False, soft_wrap=True)
    results = Results(options.results)
    chosen = planned(options.mode or MODES, options.only)
    cells = [cell for cell in chosen if not (options.resume and results.has(cell))]
    labs = Labs(
        options.name,
        min(options.labs, len(cells)),
        player,
        options.keep,
        encrypted=options.encrypted,
    )
    began = time.monotonic()
    for number, (work, cell) in enumerate(labs.play(cells), 1):
        results.add(cell)
        console.print(
            f"{number}/{len(cells)} {work}: {_summary(cell)}{_left(began, number, len(cells))}"
        )
        options.out.write_text(page(results.cells()))
    sys.exit(any(cell.wrong for cell in results.cells()))


def _summary(cell: Cell) -> str:
    verdict = "; ".join(cell.wrong) or "as promised"
    return f"{cell.owner or 'no owner'}, {cell.state}, {cell.recovered_s:.1f} s, {verdict}"


def _left(began: float, done: int, count: int) -> str:
    seconds = (time.monotonic() - began) / done * (count - done)
    return f" (about {seconds / 60:.0f} min left)" if done % 10 == 0 else ""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", default=[], help="a text that instant or fault must contain"
    )
    parser.add_argument("--mode", action="append", choices=MODES, help="only cells of this mode")
    parser.add_argument("--labs", type=int, default=DEFAULT_LABS, help="how many labs play at once")
    parser.add_argument(
        "--encrypted", action="store_true", help="on labs whose hosts have certificates"
    )
    parser.add_argument("--name", default="faults", help="the beginning of the labs' names")
    parser.add_argument(
        "--keep", type=Path, help="where to keep the logs of cells that were not as promised"
    )
    parser.add_argument(
        "--results", type=Path, help="where to keep results; later runs with --only add to them"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="play only cells that are not in --results or were not as promised",
    )
    parser.add_argument("--out", type=Path, default=Path("docs/failure.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
