"""docs/failure.md: the outcome of every cell, first as a grid, then in tables."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence

from sojourn.model import Role
from tests.faults.fault import FAULTS
from tests.faults.instant import INSTANTS, MODES, POST_COPY, STOP_AND_COPY, Instant
from tests.faults.scenario import Cell, is_undecided, loses_memory

HEAD = """# What happens when something goes wrong

Made by `make faults`. Each cell is a real migration of a process between two hosts, stopped at an
instant: just before or after a phase is written ([Phases](protocol.md)), or where a step begins
or ends. Then something went wrong, and what became of the process was observed from outside.
**{well} of {count} cells are as promised{unplayed}.**

The promise: in the end one host owns the process, and it is reported which; its memory's hash is
as before, its counter has no gap, no two copies ever wrote at the same time, and nothing is left
behind on either host. In the end the process has compared all of that memory, page by page.

## At a glance

| mark | the process |
|---|---|
| `←` | runs on the source, rolled back |
| `→` | runs on the destination |
| `†` | died with the only host that had the whole of it; in post-copy, until its memory is there, \
with the host that it ran on |
| `⊘` | was ended on the destination and is reported as lost: pager and guard were both killed, so \
nobody could know any more which of its memory was [in place](memory.md); or, in post-copy, the \
original was gone before all of its memory had come |
| `↺` | runs on the source, by an operator's resolution: a copy had died with its host, and it \
could not be known how far it had come |
| `✗` | is not as promised |
| `·` | was not played |
| blank | cannot happen there: no CRIU is at work, or no message follows |
"""

#: What stands above the grid of a mode.
GRIDS = {
    STOP_AND_COPY: """
### Stop-and-copy

All memory crosses before the commit, and nothing depends on the source after it.

""",
    POST_COPY: """
### Post-copy

Only the instants that differ: from the start of the page server to the end of the original. From
the commit to the last page the process needs both hosts. At `restored.after` and `restore.end` the
pager was kept from its work meanwhile, so that memory was missing. Two rows are about what happens
on the source alone while the pager pauses on the destination.

""",
}

TIMES = """
## How long until all is at rest

From the fault until the migration has ended, both hosts no longer hold anything of it, and the
end is reported; for a cut, a crash or a full disk it includes the time that the fault stayed. The
reconcilers look every second and wait three for a frozen tree, ten for one that runs
(`reconcile_s`, `stall_s`, `patience_s`; the defaults are slower).
"""

TIMES_OF = """
In {mode}:

| fault | stayed | cells | ← | → | † ⊘ | median | worst |
|---|---|---|---|---|---|---|---|
"""

DETAILS = """
## Every cell

*hash*, *counter*: the memory's hash is as before, no beat is missing. *copies*: how many ever
wrote at the same time, by the file of beats on a disk of neither host. *left*: what was left
behind. *rest*: seconds until all was at rest.
"""

NOTHING = "-"

COLUMNS = """
| instant | owner | reported | why | hash | counter | copies | left | rest |
|---|---|---|---|---|---|---|---|---|
"""


def page(cells: Sequence[Cell]) -> str:
    """Return the page for the cells played so far."""
    well = sum(not cell.wrong for cell in cells)
    unplayed = sum(len(_sensible(mode)) for mode in MODES) - len(cells)
    others = f"; {unplayed} others were not played" if unplayed else ""
    return "".join(
        [
            HEAD.format(well=well, count=len(cells), unplayed=others),
            *(f"{GRIDS[mode]}{_grid(_of(mode, cells), mode)}" for mode in MODES),
            TIMES,
            *(_times(_of(mode, cells), mode) for mode in MODES),
            _wrong(cells),
            DETAILS,
            _all(cells),
        ]
    )


def _of(mode: str, cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.instant.mode == mode]


def _grid(cells: Sequence[Cell], mode: str) -> str:
    sensible = _sensible(mode)
    marks = dict.fromkeys(sensible, "·") | {
        (cell.instant.name, cell.fault): _mark(cell) for cell in cells
    }
    faults = [name for name in FAULTS if name in {fault for _, fault in sensible}]
    head = f"| instant | {' | '.join(faults)} |\n" + "|---" * (len(faults) + 1) + "|\n"
    names = [instant.name for instant in _instants(mode)]
    rows = (
        f"| {name} | {' | '.join(marks.get((name, fault), '') for fault in faults)} |\n"
        for name in names
    )
    return head + "".join(rows)


def _sensible(mode: str) -> list[tuple[str, str]]:
    """Return the names of instant and fault of every cell that makes sense, played or not."""
    return [
        (instant.name, fault.name)
        for instant in _instants(mode)
        for fault in FAULTS.values()
        if fault.happens(instant)
    ]


def _instants(mode: str) -> Iterator[Instant]:
    return (instant for instant in INSTANTS if instant.mode == mode)


def _mark(cell: Cell) -> str:
    if cell.wrong:
        return "✗"
    if is_undecided(cell.instant, FAULTS[cell.fault]):
        return "↺"
    if cell.owner is None and loses_memory(cell.instant, FAULTS[cell.fault]):
        return "⊘"
    return {Role.SOURCE: "←", Role.DESTINATION: "→", None: "†"}[cell.owner]


def _times(cells: Sequence[Cell], mode: str) -> str:
    rows = (_times_of(name, [cell for cell in cells if cell.fault == name]) for name in FAULTS)
    return TIMES_OF.format(mode=mode) + "".join(rows)


def _times_of(name: str, cells: Sequence[Cell]) -> str:
    times = [cell.recovered_s for cell in cells if not cell.wrong]
    if not times:
        return ""
    owners = [
        sum(cell.owner is owner for cell in cells)
        for owner in (Role.SOURCE, Role.DESTINATION, None)
    ]
    numbers = [f"{FAULTS[name].stays_s:g} s", len(cells), *owners]
    numbers += [f"{statistics.median(times):.1f} s", f"{max(times):.1f} s"]
    return f"| {name} | {' | '.join(str(number) for number in numbers)} |\n"


def _wrong(cells: Sequence[Cell]) -> str:
    lines = [
        f"- {cell.instant}, {cell.fault}: {'; '.join(cell.wrong)}" for cell in cells if cell.wrong
    ]
    return "\n## Not as promised\n\n" + "\n".join(lines) + "\n" if lines else ""


def _all(cells: Sequence[Cell]) -> str:
    order = sorted(cells, key=lambda cell: list(FAULTS).index(cell.fault))
    parts = itertools.groupby(order, key=lambda cell: cell.fault)
    return "".join(
        f"\n### {name[0].upper()}{name[1:]}\n{COLUMNS}{''.join(map(_row, part))}"
        for name, part in parts
    )


def _row(cell: Cell) -> str:
    fields = [
        str(cell.instant),
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
