"""The soak: many migrations back and forth of long-lived processes, a third of them under faults.

Usage, as root:
    python -m tests.faults.soak [--count N] [--seed S] [--from K] [--labs N] [--encrypted]
                                [--out FILE]

What happens to migration K depends on the seed and K alone, so ``--seed S --from K --count 1``
plays it again; only the direction depends on where its process is by then.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from lab import workload
from lab.errors import LabFailed
from lab.workload import Workload
from sojourn.errors import SojournError
from sojourn.model import Role
from tests.faults.fault import FAULTS, Fault
from tests.faults.instant import INSTANTS, POST_COPY, STOP_AND_COPY, Instant
from tests.faults.labs import DEFAULT_LABS, Labs
from tests.faults.scenario import (
    NO_FAULT,
    UNDISTURBED,
    UNFILLED,
    Cell,
    clear,
    end,
    move,
    running,
    strike,
)
from tests.faults.site import HOSTS, FaultSite, Stage

DEFAULT_COUNT = 500

#: The share of the migrations that a fault disturbs.
DISTURBED = 1 / 3

#: Weights of faults that are drawn less often, since they kill bystanders or take long.
RARE = {
    "source crashed": 0.4,
    "destination crashed": 0.4,
    "network cut until healed": 0.4,
    "Redis gone for a minute": 0.2,
}


@dataclass(frozen=True)
class Way:
    """How the memory of a process crosses: a mode, and the destination's ``lazy_restore``."""

    name: str
    mode: str
    lazy_restore: bool | str = True


BEFORE_COMMIT = Way(
    "stop-and-copy, all memory in place before the commit", STOP_AND_COPY, "before-commit"
)
WAYS = (
    Way("stop-and-copy, memory in place after the commit", STOP_AND_COPY),
    BEFORE_COMMIT,
    Way("post-copy", POST_COPY),
)

#: The processes of each lab, by the workload's options.
KINDS: dict[str, dict[str, str | float]] = {
    "counter": {"mb": 16},
    "large counter": {"mb": 96},
    "tree": {},
}

HEAD = """# Soak

Made by `make soak`: {count} migrations of processes that go back and forth between the two hosts of
each of {labs} labs{which}, a third of them under a fault at an instant ([where they are
listed](../CONTRIBUTING.md#rings-of-tests)), drawn by the seed {seed}. It took {minutes:.0f} \
minutes. Where a
host crashed, the processes that ran there died with it, as they do without Sojourn, and others
took their places.

**{lost} lost, {doubled} doubled, {left} left behind; {wrong} not as promised.** {born} processes \
were started; {died} died with
their hosts, or with memory that could not come any more; the longest life had {longest} migrations.

{ways}

| fault | migrations | destination | source | died | to rest: median | worst |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Planned:
    """One migration of the soak: which process moves, and the fault that disturbs it."""

    number: int
    kind: str
    way: Way
    instant: Instant
    fault: Fault

    def __str__(self) -> str:
        return (
            f"{self.number}: {self.kind}, {self.way.name}, {self.instant.name}, {self.fault.name}"
        )


@dataclass(frozen=True)
class Moved:
    """The outcome of one migration.

    ``born`` is how many processes were started for it, ``died`` how many died with a host that
    crashed or for their memory, and ``life`` how many migrations its process has made.
    """

    cell: Cell
    way: Way
    direction: str
    born: int
    died: int
    life: int
    bystanders: tuple[str, ...] = ()

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is not as promised, of the processes that did not move too."""
        return (*self.cell.wrong, *self.bystanders)


def planned(seed: int, number: int) -> Planned:
    """Return the migration of that number, drawn from the seed and the number alone."""
    draw = random.Random(f"{seed} {number}")
    kind, way = draw.choice(list(KINDS)), draw.choice(WAYS)
    if draw.random() >= DISTURBED:
        return Planned(number, kind, way, replace(UNDISTURBED, mode=way.mode), NO_FAULT)
    instants = [instant for instant in INSTANTS if _is_reachable(instant, kind, way)]
    faults = [one for one in FAULTS.values() if any(map(one.happens, instants))]
    fault = draw.choices(faults, [RARE.get(one.name, 1) for one in faults])[0]
    return Planned(number, kind, way, draw.choice([*filter(fault.happens, instants)]), fault)


def _is_reachable(instant: Instant, kind: str, way: Way) -> bool:
    """Whether a migration can be stopped there: only a large dump can be caught in its middle."""
    if instant.mode != way.mode or (way is BEFORE_COMMIT and instant.point in UNFILLED):
        return False
    return kind == "large counter" or not instant.middle


@dataclass
class Herd:
    """The processes of one site; each lives until the host that it runs on crashes."""

    site: FaultSite
    living: dict[str, Workload] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    lives: dict[str, int] = field(default_factory=dict)

    def play(self, work: Planned) -> Moved:
        """Move one process, and check all of them."""
        self.site.make_ready()
        born = self._make(work)
        home = self.homes[work.kind]
        stage = Stage(
            self.site, home, next(name for name in HOSTS if name != home), work.instant.where
        )
        process = self.living[work.kind]
        self.site.restore_lazily(stage.destination, work.way.lazy_restore)
        try:
            disturbed = work.fault is not NO_FAULT
            cell = (
                strike(stage, process, work.instant, work.fault)
                if disturbed
                else move(stage, process, work.instant)
            )
        except (SojournError, LabFailed, AssertionError, OSError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0][:200]
            cell = Cell.unplayed(work.instant, work.fault.name, why)
        clear(self.site)
        return self._settled(stage, work, cell, born)

    def _settled(self, stage: Stage, work: Planned, cell: Cell, born: int) -> Moved:
        life = self.lives[work.kind] = self.lives[work.kind] + 1
        if cell.owner:
            self.homes[work.kind] = stage.name(cell.owner)
        crashed = stage.name(work.fault.crashes) if work.fault.crashes else None
        died, wrong = int(cell.owner is None), []
        if cell.owner is None:
            self._bury(work.kind)
        for kind in [kind for kind in self.living if kind != work.kind]:
            if running(self.site, self.living[kind]) == [self.homes[kind]]:
                continue
            if self.homes[kind] != crashed:
                wrong.append(
                    f"the {kind}, which did not move, is on {running(self.site, self.living[kind])}"
                )
            died += 1
            self._bury(kind)
        direction = f"{stage.source} to {stage.destination}"
        return Moved(cell, work.way, direction, born, died, life, tuple(wrong))

    def _make(self, work: Planned) -> int:
        """Start the missing processes, where the migration's number selects; return how many."""
        missing = [kind for kind in KINDS if kind not in self.living]
        for kind in missing:
            home = HOSTS[work.number % len(HOSTS)]
            self.living[kind] = workload.start(
                self.site.host(home), kind.split()[-1], **KINDS[kind]
            )
            self.homes[kind], self.lives[kind] = home, 0
        return len(missing)

    def _bury(self, kind: str) -> None:
        end(self.site, self.living.pop(kind))


def player(site: FaultSite) -> Callable[[Planned], Moved]:
    """Return a function that plays migrations on a site, with processes of its own."""
    return Herd(site).play


def page(moved: Sequence[Moved], *, seed: int, labs: Labs[Planned, Moved], seconds: float) -> str:
    """Return the summary."""
    cells = [move.cell for move in moved]
    wrong = [line for move in moved for line in move.wrong]
    head = HEAD.format(
        count=len(moved),
        labs=labs.count,
        which=", with certificates" if labs.encrypted else "",
        seed=seed,
        minutes=seconds / 60,
        lost=sum("nowhere" in line for line in wrong),
        doubled=sum(cell.copies > 1 for cell in cells),
        left=sum(len(cell.left) for cell in cells),
        wrong=sum(bool(move.wrong) for move in moved),
        born=sum(move.born for move in moved),
        died=sum(move.died for move in moved),
        longest=max(move.life for move in moved),
        ways=_ways(moved),
    )
    names = [NO_FAULT.name, *FAULTS]
    rows = (_row(name, [cell for cell in cells if cell.fault == name]) for name in names)
    return head + "".join(rows) + _wrong(moved)


def _ways(moved: Sequence[Moved]) -> str:
    """Return how many migrations went each way, and how many of those under a fault, as a table."""
    lines = ["| way | migrations | under a fault |", "|---|---|---|"]
    for way in WAYS:
        cells = [move.cell for move in moved if move.way == way]
        disturbed = sum(cell.fault != NO_FAULT.name for cell in cells)
        lines.append(f"| {way.name} | {len(cells)} | {disturbed} |")
    return "\n".join(lines)


def _wrong(moved: Sequence[Moved]) -> str:
    """Return the list of what was not as promised; empty if everything was."""
    lines = [
        f"- {move.cell.instant}, {move.cell.fault}: {'; '.join(move.wrong)}"
        for move in moved
        if move.wrong
    ]
    return "\n## Not as promised\n\n" + "\n".join(lines) + "\n" if lines else ""


def _row(name: str, cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    owners = [
        sum(cell.owner is owner for cell in cells)
        for owner in (Role.DESTINATION, Role.SOURCE, None)
    ]
    times = [cell.recovered_s for cell in cells]
    numbers = [len(cells), *owners, f"{statistics.median(times):.1f} s", f"{max(times):.1f} s"]
    return f"| {name} | {' | '.join(str(number) for number in numbers)} |\n"


def main() -> None:
    """Play the soak and write its summary; exit with 1 unless all is as promised."""
    options = _options()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"seed {options.seed}")
    last = options.first + options.count
    labs = Labs(
        options.name,
        min(options.labs, options.count),
        player,
        options.keep,
        encrypted=options.encrypted,
    )
    works = (planned(options.seed, number) for number in range(options.first, last))
    more = " --encrypted" if options.encrypted else ""
    moved: list[Moved] = []
    began = time.monotonic()
    for work, result in _reported(console, labs.play(works), options.count):
        moved.append(result)
        seconds = time.monotonic() - began
        options.out.write_text(page(moved, seed=options.seed, labs=labs, seconds=seconds))
        if result.wrong:
            this = f"--seed {options.seed} --from {work.number} --count 1{more}"
            console.print(f"again: make soak ARGS='{this}'")
    sys.exit(any(move.wrong for move in moved))


def _reported(
    console: Console, played: Iterable[tuple[Planned, Moved]], count: int
) -> Iterable[tuple[Planned, Moved]]:
    """Yield what was played, and print its outcome and the time that is left."""
    began = time.monotonic()
    for done, (work, result) in enumerate(played, 1):
        left_s = (time.monotonic() - began) / done * (count - done)
        cell, verdict = result.cell, "; ".join(result.wrong) or "as promised"
        outcome = f"{cell.owner or 'no owner'}, {cell.state}, {cell.recovered_s:.1f} s, {verdict}"
        console.print(
            f"{done}/{count} {work}, {result.direction}: {outcome} ({left_s / 60:.0f} min left)"
        )
        yield work, result


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT, help="how many migrations")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(10**6),
        help="what faults and instants are drawn from",
    )
    parser.add_argument(
        "--from", dest="first", type=int, default=1, help="the number of the first one"
    )
    parser.add_argument("--labs", type=int, default=DEFAULT_LABS, help="how many labs play at once")
    parser.add_argument(
        "--encrypted", action="store_true", help="on labs whose hosts have certificates"
    )
    parser.add_argument("--name", default="soak", help="the beginning of the labs' names")
    parser.add_argument(
        "--keep", type=Path, help="where to keep the logs of migrations that were not as promised"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/soak.md"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
