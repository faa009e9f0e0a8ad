"""docs/failure.md: what came of every cell, first to look at, then to read."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from sojourn.model import Role
from tests.faults.fault import FAULTS
from tests.faults.instant import INSTANTS
from tests.faults.scenario import Cell, is_undecided

HEAD = """# What happens when something goes wrong

Made by `make faults`. Each cell is a real migration of a process between two hosts, stopped at an instant: just
before or after a phase is written ([protocol.md](protocol.md)), or where a step begins or ends. Then something went
wrong, and what became of the process was looked at from outside. **{well} of {count} cells are
as promised{unplayed}.**

Promised is: in the end one host owns the process, and people are told which; its memory's hash is as before, its
counter has no gap, no two copies ever wrote at the same time, and nothing is left behind on either host.

## At a glance

`←` runs on the source, rolled back. `→` runs on the destination. `†` died with the only host that had the whole of
it. `↺` runs on the source, by an operator's word: nobody could know how far a copy had come that died with its host.
`✗` not as promised. `·` not played. A blank: that can not happen there (no CRIU is at work, or no message follows).

"""

TIMES = """
## How long until all is at rest

From the fault until the migration has ended, both hosts hold nothing of it any more, and people are told so; for a
cut, a crash or a full disk it includes the time that the fault stayed. The reconcilers look every second and wait
three for a frozen tree, ten for one that runs (`reconcile_s`, `stall_s`, `patience_s`; the defaults are slower).

| fault | stayed | cells | ← | → | † | median | worst |
|---|---|---|---|---|---|---|---|
"""

DETAILS = """
## Every cell

*hash*, *counter*: the memory's hash is as before, no beat is missing. *copies*: how many ever wrote at the same time,
by the file of beats on a disk of neither host. *left*: what was left behind. *rest*: seconds until all was at rest.
"""

NOTHING = "-"

COLUMNS = """
| instant | owner | told | why | hash | counter | copies | left | rest |
|---|---|---|---|---|---|---|---|---|
"""


def page(cells: Sequence[Cell]) -> str:
    """Return the page for the cells played so far."""
    well = sum(not cell.wrong for cell in cells)
    unplayed = len(_sensible()) - len(cells)
    told = f"; {unplayed} others were not played" if unplayed else ""
    return "".join(
        [
            HEAD.format(well=well, count=len(cells), unplayed=told),
            _grid(cells),
            TIMES,
            _times(cells),
            _wrong(cells),
            DETAILS,
            _all(cells),
        ]
    )


def _grid(cells: Sequence[Cell]) -> str:
    marks = dict.fromkeys(_sensible(), "·") | {(cell.instant.name, cell.fault): _mark(cell) for cell in cells}
    head = f"| instant | {' | '.join(FAULTS)} |\n" + "|---" * (len(FAULTS) + 1) + "|\n"
    names = [instant.name for instant in INSTANTS]
    rows = (f"| {name} | {' | '.join(marks.get((name, fault), '') for fault in FAULTS)} |\n" for name in names)
    return head + "".join(rows)


def _sensible() -> list[tuple[str, str]]:
    """Return instant and fault of every cell that makes sense, played or not."""
    return [(instant.name, fault.name) for instant in INSTANTS for fault in FAULTS.values() if fault.happens(instant)]


def _mark(cell: Cell) -> str:
    if cell.wrong:
        return "✗"
    if is_undecided(cell.instant, FAULTS[cell.fault]):
        return "↺"
    return {Role.SOURCE: "←", Role.DESTINATION: "→", None: "†"}[cell.owner]


def _times(cells: Sequence[Cell]) -> str:
    return "".join(_times_of(name, [cell for cell in cells if cell.fault == name]) for name in FAULTS)


def _times_of(name: str, cells: Sequence[Cell]) -> str:
    times = [cell.recovered_s for cell in cells if not cell.wrong]
    if not times:
        return ""
    owners = [sum(cell.owner is owner for cell in cells) for owner in (Role.SOURCE, Role.DESTINATION, None)]
    numbers = [f"{FAULTS[name].stays_s:g} s", len(cells), *owners]
    numbers += [f"{statistics.median(times):.1f} s", f"{max(times):.1f} s"]
    return f"| {name} | {' | '.join(str(number) for number in numbers)} |\n"


def _wrong(cells: Sequence[Cell]) -> str:
    lines = [f"- {cell.instant.name}, {cell.fault}: {'; '.join(cell.wrong)}" for cell in cells if cell.wrong]
    return "\n## Not as promised\n\n" + "\n".join(lines) + "\n" if lines else ""


def _all(cells: Sequence[Cell]) -> str:
    order = sorted(cells, key=lambda cell: list(FAULTS).index(cell.fault))
    parts = itertools.groupby(order, key=lambda cell: cell.fault)
    return "".join(f"\n### {name[0].upper()}{name[1:]}\n{COLUMNS}{''.join(map(_row, part))}" for name, part in parts)


def _row(cell: Cell) -> str:
    fields = [
        cell.instant.name,
        str(cell.owner or NOTHING),
        cell.state,
        cell.why or NOTHING,
        {True: "✓", False: "✗", None: NOTHING}[cell.whole],
        "✓" if cell.unbroken and not cell.again else f"{cell.again} again" if cell.again else "✗",
        str(cell.copies),
        "; ".join(cell.left).replace("|", "/") or NOTHING,
        f"{cell.recovered_s:.1f}",
    ]
    return f"| {' | '.join(fields)} |\n"
