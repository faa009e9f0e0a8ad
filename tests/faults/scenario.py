"""One cell of the fault matrix.

A real migration is stopped at a named instant, something goes wrong there, and what becomes of the process is looked at
from outside: by the ledger, as people do; by the processes of both hosts; and by the file of beats, in which every copy
of the process would write.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

from lab import workload
from lab.host import Host, within
from lab.workload import Status, Workload
from sojourn.model import Role, State
from tests.faults.fault import Fault, Struck
from tests.faults.instant import Instant
from tests.faults.site import HOSTS, FaultSite, Stage

#: How long a migration may take to come to that instant, to an end after the fault, and to be taken on at all.
REACH_S, END_S, TAKEN_S = 30, 60, 30

FAILPOINTS = "/var/lib/sojourn/failpoints"

#: Enough for the dump to be caught in the middle.
MEMORY_MB, LARGE_MB = 16, 96

#: How many beats a process takes between two of its reports at most (lab/workloads/beating.py), with one to spare.
BEATS_PER_REPORT = 12

#: Stops the page server, so that the dump stands still in the middle of the memory.
CATCH = "until pkill -STOP -x criu; do :; done"
LET_GO = "pkill -CONT -x criu"

#: How many beats the process must take before it is believed to run well.
AFTERWARDS = 100

#: A migration to which nothing happens, told like the others.
UNDISTURBED = Instant(Role.SOURCE, "undisturbed", (Role.DESTINATION,))
NO_FAULT = Fault("nothing", lambda _: None)

#: The destination has committed, and nobody can know how far it had let the process go: if it crashes then, an operator
#: must decide, and what its copy did may be done again.
UNDECIDED = {"accepted.after", "restored.before"}

#: Where a migration is made to fail, late: one of the small images vanishes before the restore.
SPOILT = Instant(Role.DESTINATION, "restore.begin", (Role.SOURCE,))
SPOIL = "rm /run/sojourn/*/images/inventory.img"

#: What people may be told of each end; a process that died with its own host had come to rest there before.
TOLD = {
    Role.SOURCE: {State.ROLLED_BACK, State.REFUSED},
    Role.DESTINATION: {State.COMPLETED},
    None: {State.LOST, State.COMPLETED},
}

#: What people are told together with a reason.
UNHAPPY = {State.ROLLED_BACK, State.REFUSED, State.LOST}


@dataclass(frozen=True)
class Cell:
    """What became of the process in one cell.

    ``owner`` is the role of the host on which it runs, None if on neither. ``state`` and ``why``, a failure's code,
    are what people are told. ``whole`` is whether its memory's hash is as before, None if it died with its host;
    ``unbroken``, whether no beat of its counter is missing; ``again``, how many beats were done a second time, by the
    original, after a copy that had done them died with its host; ``copies``, how many ever wrote at the same time;
    ``left``, what was left behind. ``recovered_s`` is the time from the fault until all was at rest, ``wrong`` what is
    not as promised.
    """

    instant: Instant
    fault: str
    owner: Role | None
    state: str
    why: str
    whole: bool | None
    unbroken: bool
    again: int
    copies: int
    left: tuple[str, ...]
    recovered_s: float
    wrong: tuple[str, ...]

    @classmethod
    def unplayed(cls, instant: Instant, fault: str, why: str) -> Cell:
        """Return a cell that could not be played to its end."""
        return cls(instant, fault, None, "unknown", "", None, False, 0, 0, (), 0, (why,))


def play(site: FaultSite, instant: Instant, fault: Fault) -> Cell:
    """Start a process, migrate it, let the fault strike at the instant, and look what came of it."""
    site.make_ready()
    stage = Stage(site, *HOSTS, instant.where)
    counter = workload.start(stage.host(Role.SOURCE), "counter", mb=LARGE_MB if instant.middle else MEMORY_MB)
    try:
        return strike(stage, counter, instant, fault)
    finally:
        end(site, counter)


def strike(stage: Stage, counter: Workload, instant: Instant, fault: Fault) -> Cell:
    """Migrate a process that runs, with the fault at the instant, and look what came of it."""
    before = counter.wait_for_beats()
    clear(stage.site)
    _arm(_standing(stage, instant), instant)
    if instant.fails:
        _arm(stage.host(Role.DESTINATION), SPOILT)
    migration = start_migration(stage, counter.pid)
    if instant.fails:
        _spoil(stage)
    _reach(stage, instant, _standing(stage, instant))
    struck = Struck(stage, instant)
    fault.strike(struck)
    began = time.monotonic()
    _go_on(stage, instant)
    time.sleep(fault.stays_s)
    fault.repair(struck)
    if is_undecided(instant, fault):
        _decide(stage, migration)
    ended = stage.site.ends(migration, END_S)
    recovered_s = time.monotonic() - began
    return _look(stage, counter, before, instant, fault, migration, recovered_s if ended else 0)


def move(stage: Stage, process: Workload) -> Cell:
    """Migrate a process that runs, undisturbed, and look what came of it."""
    before, began = process.wait_for_beats(), time.monotonic()
    migration = start_migration(stage, process.pid)
    ended = stage.site.ends(migration, END_S)
    recovered_s = time.monotonic() - began if ended else 0
    return _look(stage, process, before, UNDISTURBED, NO_FAULT, migration, recovered_s)


def start_migration(stage: Stage, pid: int) -> str:
    """Ask for the migration as people do, again while a worker does not answer yet; return its id."""
    words = ["migrate", str(pid), "--from", stage.source, "--to", stage.destination, "--detach"]
    said: list[str] = []

    def taken() -> bool:
        done = stage.site.sojourn(*words)
        said[:] = [done.stdout.strip(), done.stderr.strip()]
        return done.returncode == 0

    assert within(TAKEN_S, taken), f"not taken on: {said[1]}"
    return said[0]


def clear(site: FaultSite) -> None:
    """Leave no fail point armed."""
    for host in (site.lab.host(name) for name in HOSTS):
        if host.is_up:
            host.run(["sh", "-c", f"rm -f {FAILPOINTS}/*"])


def running(site: FaultSite, process: Workload) -> list[str]:
    """Return the hosts on which the process is."""
    program = str(process.file.name)
    return [
        name
        for name in HOSTS
        if program in site.lab.host(name).run(["ps", "-o", "args=", "-p", str(process.pid)], check=False).stdout
    ]


def end(site: FaultSite, process: Workload) -> None:
    """End a process wherever it is, and leave no fail point armed."""
    for host in (site.lab.host(name) for name in HOSTS):
        if host.is_up:
            host.run(["pkill", "-KILL", "-f", process.file.name], check=False)
    clear(site)


def _arm(host: Host, instant: Instant) -> None:
    host.run(["sh", "-c", f"mkdir -p {FAILPOINTS}; touch {FAILPOINTS}/{instant.point}"])


def _spoil(stage: Stage) -> None:
    """Make the restore fail, and let it begin."""
    destination = stage.host(Role.DESTINATION)
    _reach(stage, SPOILT, destination)
    destination.run(["sh", "-c", f"{SPOIL}; rm {FAILPOINTS}/{SPOILT.point}.reached"])


def is_undecided(instant: Instant, fault: Fault) -> bool:
    """Whether nobody can know then what the fault has left of the process."""
    return fault.crashes is Role.DESTINATION and instant.point in UNDECIDED


def _decide(stage: Stage, migration: str) -> None:
    """Wait until people are told that nobody knows; then speak as an operator."""
    assert within(END_S, lambda: stage.site.state(migration) is State.IN_DOUBT), stage.site.state(migration)
    stage.site.sojourn("resolve", migration, "--destination-is-dead", "--yes")


def _standing(stage: Stage, instant: Instant) -> Host:
    """Return the host that stands still: for the middle of the dump always the source."""
    return stage.host(Role.SOURCE) if instant.middle else stage.here


def _reach(stage: Stage, instant: Instant, standing: Host) -> None:
    """Wait until the migration stands still at the instant."""
    reached = f"{FAILPOINTS}/{instant.point}.reached"
    path = stage.site.lab.plan.state_disk(standing.name) / "failpoints" / f"{instant.point}.reached"
    assert within(REACH_S, path.exists), f"never came to {instant.name}"
    if instant.middle:
        catcher = stage.host(Role.DESTINATION)
        standing.run(["sh", "-c", f"rm -f {reached}"])
        catcher.run(["sh", "-c", CATCH], deadline_s=REACH_S)


def _go_on(stage: Stage, instant: Instant) -> None:
    """Let whoever stands there go on, unless the whole host is down. A full disk still takes a removal."""
    for host in (stage.host(role) for role in Role):
        if host.is_up:
            host.run(["sh", "-c", f"rm -f {FAILPOINTS}/*; {LET_GO if instant.middle else 'true'}"], check=False)


def _look(
    stage: Stage, counter: Workload, before: Status, instant: Instant, fault: Fault, migration: str, recovered_s: float
) -> Cell:
    state = str(stage.site.state(migration) or "unknown")
    hosts = running(stage.site, counter)
    owner = next((role for role in Role if stage.name(role) in hosts), None)
    after = counter.wait_for_beats(AFTERWARDS) if hosts else None
    beats = [beat for beat in counter.witnessed() if beat[0] >= before.counter]
    cell = Cell(
        instant,
        fault.name,
        owner,
        state,
        stage.site.why(migration),
        _is_whole(before, after) if after else None,
        max(_steps_of(beats), default=0) <= BEATS_PER_REPORT,
        _done_again(beats),
        max(len(hosts), _copies(beats)),
        tuple(stage.site.left()),
        recovered_s,
        (),
    )
    return replace(cell, wrong=tuple(_wrong(cell, fault)))


def _wrong(cell: Cell, fault: Fault) -> list[str]:
    """Return what is not as promised, in words; nothing if all is well."""
    wrong = [f"left behind on {thing}" for thing in cell.left]
    wrong += _wrongly_told(cell, fault)
    if cell.copies > 1:
        wrong.append("two copies ran at the same time")
    if cell.whole is False:
        wrong.append("its memory is not what it was")
    if not cell.unbroken:
        wrong.append("its counter has a gap")
    if cell.again and not is_undecided(cell.instant, fault):
        wrong.append(f"it did {cell.again} beats twice")
    if not cell.recovered_s:
        wrong.append(f"not at rest after {END_S} s")
    return wrong


def _wrongly_told(cell: Cell, fault: Fault) -> list[str]:
    """Return where what people are told is not so."""
    if cell.owner is Role.SOURCE and Role.SOURCE not in cell.instant.kept and cell.state != State.REFUSED:
        return [f"never arrived, for another reason: {cell.why}"]
    if cell.owner is None and not _may_die(cell.instant, fault):
        return [f"runs nowhere, and is told to be {cell.state}"]
    if cell.state not in TOLD[cell.owner]:
        lives = f"runs on the {cell.owner}" if cell.owner else "died with its host"
        return [f"{lives}, but is told to be {cell.state}"]
    return [f"is told to be {cell.state}, but not why"] if cell.state in UNHAPPY and not cell.why else []


def _may_die(instant: Instant, fault: Fault) -> bool:
    """Whether the fault takes the host that alone has the whole process."""
    return instant.kept == (fault.crashes,)


def _is_whole(before: Status, after: Status) -> bool:
    """Whether the counter's memory is as before, or the tree has found no error in what it uses."""
    errors = after.details.get("damaged_slices") or after.details.get("errors")
    return not errors and after.details.get("sha256") == before.details.get("sha256")


def _steps_of(beats: list[tuple[int, str]]) -> list[int]:
    """Return by how much the counter grew from report to report."""
    return [later - earlier for (earlier, _), (later, _) in itertools.pairwise(beats)]


def _done_again(beats: list[tuple[int, str]]) -> int:
    """Return how many beats came a second time at least: so much had a copy done that is no more."""
    return max([0, *(1 - step for step in _steps_of(beats))])


def _copies(beats: list[tuple[int, str]]) -> int:
    """Return how many copies ever wrote at the same time; they would come to word in turns, again and again."""
    turns = [host for host, _ in itertools.groupby(beats, key=lambda beat: beat[1])]
    return 2 if any(turns.count(host) > 2 for host in turns) or len(turns) > len(HOSTS) + 1 else 1
