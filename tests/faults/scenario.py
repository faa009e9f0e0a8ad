"""One cell of the fault matrix.

A real migration is stopped at a named instant, something goes wrong there, and what becomes of the
process is observed from outside: in the ledger, as people do; by the processes of both hosts; and
by the file of beats, to which every copy of the process would write.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

from lab import workload
from lab.host import Host, within
from lab.workload import Status, Workload
from lab.workloads.counter import SLICE_BYTES
from sojourn.model import Role, State
from tests.faults.fault import BOTH, DATABASE, KILLED, Fault, Struck
from tests.faults.instant import FILL_BEGINS, POST_COPY, Instant
from tests.faults.site import HOSTS, FaultSite, Stage

#: How long a migration may take to reach the instant, to end after the fault, and to be accepted.
REACH_S, END_S, ACCEPT_S = 30, 60, 30

FAILPOINTS = "/var/lib/sojourn/failpoints"

#: Lists the migrations in the host's journal. The file gets its name when it is complete.
ARM = f"""
mkdir -p {FAILPOINTS}
python3 -c "
import sqlite3
rows = sqlite3.connect('{DATABASE}').execute('SELECT DISTINCT id FROM migration')
print(*(row[0] for row in rows))" >{FAILPOINTS}.new
mv {FAILPOINTS}.new {{point}}
"""

#: Prints the phase of the migration that was begun last.
PHASE = f"""
import sqlite3
rows = sqlite3.connect('{DATABASE}').execute('SELECT phase FROM migration ORDER BY created DESC')
print(*rows.fetchone())
"""

#: Enough for the dump to be caught in the middle, and for a part to be missing when a pager has put
#: into place what it asks for ahead.
MEMORY_MB, LARGE_MB, REMOTE_MB = 16, 96, 32

#: The maximum number of beats between two reports of a process (lab/workloads/beating.py), with one
#: to spare.
BEATS_PER_REPORT = 12

#: Stops the page server, so that the dump blocks in the middle of the memory. It is not the only
#: CRIU there: one waits to restore.
CATCH = "until pkill -STOP -f '[c]riu page-server'; do :; done"
LET_GO = "pkill -CONT -x criu"

#: Lets a migration go on from a fail point, and stops the dump itself, where no page server is.
CATCH_DUMP = """
import pathlib, subprocess, sys
logs = lambda: set(pathlib.Path("/run/sojourn").glob("*/work/dump.log"))
earlier = logs()
pathlib.Path(sys.argv[1]).unlink()
while not any("Dumping pages" in log.read_text() for log in logs() - earlier):
    pass
subprocess.run(["pkill", "-STOP", "-x", "criu"], check=True)
"""

#: At least how many beats the process must take before it counts as running well.
AFTERWARDS = 100

#: A migration without a fault, reported like the others.
UNDISTURBED = Instant(Role.SOURCE, "undisturbed", (Role.DESTINATION,))
NO_FAULT = Fault("nothing", lambda _: None)

#: The destination has committed, and it cannot be known how far it had let the process run: if it
#: crashes then, an operator must decide, and the original may repeat what the copy did.
UNDECIDED = {"accepted.after", "restored.before"}

#: Memory that is not in place yet is lost if both die that could put it there.
UNFILLED = {"fill.begin", "fill.middle"}

#: Where a migration is made to fail late: one of the small images vanishes before the restore.
SPOILT = "restore.begin"
SPOIL = "rm /run/sojourn/*/images/inventory.img"

#: The states that may be reported of each owner. A process that died with the destination may have
#: completed its migration before.
REPORTED = {
    Role.SOURCE: {State.ROLLED_BACK, State.REFUSED},
    Role.DESTINATION: {State.COMPLETED},
    None: {State.LOST, State.COMPLETED},
}

#: States that are reported with a reason.
UNHAPPY = {State.ROLLED_BACK, State.REFUSED, State.LOST}


@dataclass(frozen=True)
class Cell:
    """What became of the process in one cell.

    ``owner``       the role of the host on which it runs, None if on neither
    ``state``       the state that was reported
    ``why``         the code of the failure that was reported
    ``whole``       whether its memory's hash is as before, None if it died with its host
    ``unbroken``    whether no beat of its counter is missing
    ``again``       how many beats the original repeated after a copy had died with its host
    ``copies``      how many ever wrote at the same time
    ``left``        what was left behind
    ``recovered_s`` the time from the fault until all was at rest
    ``wrong``       what is not as promised
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
    """Start a process, migrate it with the fault at the instant, and return the outcome."""
    site.make_ready()
    stage = Stage(site, *HOSTS, instant.where)
    counter = workload.start(stage.host(Role.SOURCE), "counter", mb=_memory_mb(instant))
    try:
        return strike(stage, counter, instant, fault)
    finally:
        end(site, counter)


def _memory_mb(instant: Instant) -> int:
    if instant.middle:
        return LARGE_MB
    return REMOTE_MB if instant.mode == POST_COPY else MEMORY_MB


def strike(stage: Stage, counter: Workload, instant: Instant, fault: Fault) -> Cell:
    """Migrate a running process with the fault at the instant, and return the outcome."""
    before = counter.wait_for_beats()
    clear(stage.site)
    _arm(stage.host(instant.pauses), instant.point)
    if instant.unfilled:
        _arm(stage.host(Role.DESTINATION), FILL_BEGINS)
    if instant.fails:
        _arm(stage.host(Role.DESTINATION), SPOILT)
    migration = start_migration(stage, counter.pid, instant.mode)
    if instant.fails:
        _spoil(stage)
    _reach(stage, instant)
    struck = Struck(stage, instant, counter.pid)
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


def move(stage: Stage, process: Workload, undisturbed: Instant) -> Cell:
    """Migrate a running process undisturbed, and return the outcome."""
    before, began = process.wait_for_beats(), time.monotonic()
    migration = start_migration(stage, process.pid, undisturbed.mode)
    ended = stage.site.ends(migration, END_S)
    recovered_s = time.monotonic() - began if ended else 0
    return _look(stage, process, before, undisturbed, NO_FAULT, migration, recovered_s)


def start_migration(stage: Stage, pid: int, mode: str) -> str:
    """Request the migration as people do, and return its id.

    Retried for a while, since the worker of a host that was just booted may not answer yet.
    """
    hosts = ["--from", stage.source, "--to", stage.destination]
    command = ["migrate", str(pid), *hosts, "--mode", mode, "--detach"]
    outputs: list[str] = []

    def accepted() -> bool:
        done = stage.site.sojourn(*command)
        outputs[:] = [done.stdout.strip(), done.stderr.strip()]
        return done.returncode == 0

    assert within(ACCEPT_S, accepted), f"not accepted: {outputs[1]}"
    return outputs[0]


def clear(site: FaultSite) -> None:
    """Leave no fail point armed."""
    for host in (site.lab.host(name) for name in HOSTS):
        if host.is_up:
            host.run(["sh", "-c", f"rm -f {FAILPOINTS}/*"])


def running(site: FaultSite, process: Workload) -> list[str]:
    """Return the names of the hosts on which the process exists."""
    program = str(process.file.name)
    return [
        name
        for name in HOSTS
        if program
        in site.lab.host(name)
        .run(["ps", "-o", "args=", "-p", str(process.pid)], check=False)
        .stdout
    ]


def end(site: FaultSite, process: Workload) -> None:
    """End a process wherever it is, and leave no fail point armed."""
    for host in (site.lab.host(name) for name in HOSTS):
        if host.is_up:
            host.run(["pkill", "-KILL", "-f", process.file.name], check=False)
    clear(site)


def _arm(host: Host, point: str) -> None:
    """Arm a fail point for the next migration: late steps of earlier ones pass it."""
    host.run(["sh", "-ec", ARM.format(point=f"{FAILPOINTS}/{point}")])


def _spoil(stage: Stage) -> None:
    """Make the restore fail, and let it begin."""
    destination = stage.host(Role.DESTINATION)
    _await(destination, SPOILT)
    destination.run(["sh", "-c", f"{SPOIL}; rm {FAILPOINTS}/{SPOILT}.reached"])


def is_undecided(instant: Instant, fault: Fault) -> bool:
    """Whether it cannot be known what the fault has left of the process."""
    return fault.crashes is Role.DESTINATION and instant.point in UNDECIDED


def _decide(stage: Stage, migration: str) -> None:
    """Wait until the migration is reported as in doubt, then resolve it as an operator."""
    assert within(END_S, lambda: stage.site.state(migration) is State.IN_DOUBT), stage.site.state(
        migration
    )
    # The host may be back, and have no proof.
    stage.site.sojourn("resolve", migration, "--destination-is-dead", "--force", "--yes")


def _reach(stage: Stage, instant: Instant) -> None:
    """Wait until the migration pauses at the instant."""
    destination = stage.host(Role.DESTINATION)
    _await(stage.host(instant.pauses), instant.point)
    if instant.unfilled:
        _await(destination, FILL_BEGINS)
    if instant.pager:
        # The fill begins when the tree is about to run, some milliseconds before that is written.
        assert within(REACH_S, lambda: _runs(destination)), f"never ran at {instant.name}"
    if instant.middle:
        _catch(stage, instant)


def _await(host: Host, point: str) -> None:
    """Wait until the migration pauses at a fail point."""
    path = host.plan.state_disk(host.name) / "failpoints" / f"{point}.reached"
    assert within(REACH_S, path.exists), f"never came to {host.name}: {point}"


def _catch(stage: Stage, instant: Instant) -> None:
    """Let the dump begin, and catch it in the middle."""
    standing, reached = stage.host(instant.pauses), f"{FAILPOINTS}/{instant.point}.reached"
    if instant.mode == POST_COPY:
        standing.run(["python3", "-c", CATCH_DUMP, reached], deadline_s=REACH_S)
    else:
        standing.run(["sh", "-c", f"rm -f {reached}"])
        stage.host(Role.DESTINATION).run(["sh", "-c", CATCH], deadline_s=REACH_S)


def _runs(host: Host) -> bool:
    """Whether the migration that was begun last has restored its tree on a host."""
    return host.run(["python3", "-c", PHASE]).stdout.strip() == "restored"


def _go_on(stage: Stage, instant: Instant) -> None:
    """Let the paused process continue, unless its host is down; a full disk permits a removal."""
    for host in (stage.host(role) for role in Role):
        if host.is_up:
            host.run(
                ["sh", "-c", f"rm -f {FAILPOINTS}/*; {LET_GO if instant.middle else 'true'}"],
                check=False,
            )


def _look(
    stage: Stage,
    counter: Workload,
    before: Status,
    instant: Instant,
    fault: Fault,
    migration: str,
    recovered_s: float,
) -> Cell:
    state = str(stage.site.state(migration) or "unknown")
    hosts = running(stage.site, counter)
    owner = next((role for role in Role if stage.name(role) in hosts), None)
    # With each beat it compares one slice of its memory, so all of it by then.
    after = counter.wait_for_beats(AFTERWARDS + _slices(before)) if hosts else None
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
    """Return sentences on what is not as promised; none if everything is."""
    wrong = [f"left behind on {thing}" for thing in cell.left]
    wrong += _wrongly_reported(cell, fault)
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


def _wrongly_reported(cell: Cell, fault: Fault) -> list[str]:
    """Return sentences on where the report does not match what happened."""
    if (
        cell.owner is Role.SOURCE
        and Role.SOURCE not in cell.instant.kept
        and cell.state != State.REFUSED
    ):
        return [f"never arrived, for another reason: {cell.why}"]
    if lost := _wrongly_lost(cell, fault):
        return lost
    if cell.state not in REPORTED[cell.owner]:
        lives = f"runs on the {cell.owner}" if cell.owner else "died with its host"
        return [f"{lives}, but is reported as {cell.state}"]
    if cell.state in UNHAPPY and not cell.why:
        return [f"is reported as {cell.state}, without a reason"]
    return []


def _wrongly_lost(cell: Cell, fault: Fault) -> list[str]:
    """Return sentences on a process that runs nowhere and should, or is not reported as lost."""
    if cell.owner is None and not _may_die(cell.instant, fault):
        return [f"runs nowhere, and is reported as {cell.state}"]
    if loses_memory(cell.instant, fault) and (cell.state, cell.why) != (State.LOST, "MEMORY_LOST"):
        return [f"was to be ended for its memory, but is reported as {cell.state}: {cell.why}"]
    if cell.instant.in_window and cell.owner is None and cell.state != State.LOST:
        return [f"died before it was complete, but is reported as {cell.state}"]
    return []


def _may_die(instant: Instant, fault: Fault) -> bool:
    """Whether the fault crashes the only host that has the whole process, or takes its memory."""
    alone = fault.crashes is not None and {*instant.kept} <= {fault.crashes}
    return alone or loses_memory(instant, fault)


def loses_memory(instant: Instant, fault: Fault) -> bool:
    """Whether the rest of the memory is lost, or nobody is left that could put it into place."""
    gone = fault.crashes is Role.SOURCE or fault.name == KILLED
    return (gone and instant.in_window) or (fault.name == BOTH and instant.point in UNFILLED)


def _slices(status: Status) -> int:
    """Return how many slices a counter's memory has; 0 for another process."""
    size = status.details.get("memory_bytes", 0)
    assert isinstance(size, int)
    return size // SLICE_BYTES


def _is_whole(before: Status, after: Status) -> bool:
    """Whether the counter's memory is as before, or the tree found no error in what it uses."""
    errors = after.details.get("damaged_slices") or after.details.get("errors")
    return not errors and after.details.get("sha256") == before.details.get("sha256")


def _steps_of(beats: list[tuple[int, str]]) -> list[int]:
    """Return the counter's increments from report to report."""
    return [later - earlier for (earlier, _), (later, _) in itertools.pairwise(beats)]


def _done_again(beats: list[tuple[int, str]]) -> int:
    """Return the least number of beats that the original repeated after a copy had died."""
    return max([0, *(1 - step for step in _steps_of(beats))])


def _copies(beats: list[tuple[int, str]]) -> int:
    """Return how many copies ever wrote at the same time; two would alternate again and again."""
    turns = [host for host, _ in itertools.groupby(beats, key=lambda beat: beat[1])]
    return 2 if any(turns.count(host) > 2 for host in turns) or len(turns) > len(HOSTS) + 1 else 1
