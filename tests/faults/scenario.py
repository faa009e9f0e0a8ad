"""One cell of the fault matrix.

A real migration is stopped at a named instant, something dies there, and what becomes of the process is looked at
from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from lab import workload
from lab.host import Host, within
from lab.workload import Workload
from sojourn.model import State
from tests.lab.site import Site, left_behind

#: How long a migration may take to come to that instant, and to an end after the fault.
REACH_S, END_S = 20, 60

#: How long the fault stays before what it broke is repaired.
BROKEN_S = 5

FAILPOINTS = "/var/lib/sojourn/failpoints"


@dataclass(frozen=True)
class Fault:
    """Something that dies. ``strike`` does it; ``repair`` makes it good again after a while, if anybody has to."""

    name: str
    strike: Callable[[Site, Host], None]
    repair: Callable[[Site, Host], None] = lambda _site, _host: None
    kills_source: bool = False


def kill_worker(site: Site, host: Host) -> None:
    """Kill the whole worker; its supervisor starts it again."""
    host.run(["sh", "-c", "kill -KILL $(pgrep -f '[s]ojourn worker')"], check=False)


def kill_criu(site: Site, host: Host) -> None:
    """Kill CRIU, whatever it does there."""
    host.run(["sh", "-c", "pkill -KILL -x criu"], check=False)


def crash(name: str) -> Callable[[Site, Host], None]:
    """Take the power away from one host."""
    return lambda site, _: site.lab.crash(name)


def boot(name: str) -> Callable[[Site, Host], None]:
    """Start that host again, with the disk it had."""
    return lambda site, _: site.lab.boot(name)


def cut(site: Site, host: Host) -> None:
    """Pull the cable of the source."""
    site.lab.cut("alpha")


def heal(site: Site, host: Host) -> None:
    """Plug it in again."""
    site.lab.heal("alpha")


def kill_redis(site: Site, host: Host) -> None:
    """Kill Redis; its supervisor starts it again, from its append-only file."""
    site.lab.host("hub").run(["pkill", "-KILL", "redis-server"], check=False)


def empty_redis(site: Site, host: Host) -> None:
    """Forget everything in Redis: messages, results, the ledger."""
    site.lab.host("hub").run(["redis-cli", "--no-auth-warning", "-a", site.lab.plan.password, "flushall"])


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("worker killed", kill_worker),
        Fault("CRIU killed", kill_criu),
        Fault("source host crashed", crash("alpha"), boot("alpha"), kills_source=True),
        Fault("destination host crashed", crash("beta"), boot("beta")),
        Fault("network cut for 5 s", cut, heal),
        Fault("Redis killed", kill_redis),
        Fault("Redis emptied", empty_redis),
    )
}

#: The instants, by the host on which they come: just before and after each write of a phase, and between the steps.
INSTANTS = [
    *(("alpha", f"{name}.{moment}") for name in ("freezing", "frozen", "released") for moment in ("before", "after")),
    ("alpha", "copy_images.end"),
    ("beta", "page_server.end"),
    *(("beta", f"{name}.{moment}") for name in ("restoring", "accepted", "restored") for moment in ("before", "after")),
    ("beta", "restore.end"),
    ("alpha", "retired.before"),
    ("alpha", "retired.after"),
]


@dataclass(frozen=True)
class Cell:
    """What became of the process: who owns it, how it ended for people, and what was found wrong."""

    instant: str
    fault: str
    state: str
    owner: str
    recovered_s: float
    wrong: tuple[str, ...]


def play(site: Site, where: str, instant: str, fault: Fault) -> Cell:
    """Start a process, migrate it, let the fault strike at the instant, and look what came of it."""
    counter = workload.start(site.host("alpha"), "counter", mb=16)
    before = counter.wait_for_beats()
    _arm(site.host(where), instant)
    migration = site.sojourn("migrate", str(counter.pid), "--from", "alpha", "--to", "beta", "--detach").stdout.strip()
    assert within(REACH_S, lambda: _reached(site.host(where), instant)), f"never came to {instant}"
    fault.strike(site, site.host(where) if fault.name.endswith("killed") else site.lab.host(where))
    struck = time.monotonic()
    _disarm(site.lab.host(where))
    time.sleep(BROKEN_S)
    fault.repair(site, site.lab.host(where))
    state = _await_end(site, migration)
    recovered_s = time.monotonic() - struck
    wrong = _wrong(site, counter, state, before.counter, str(before.details["sha256"]))
    owner = next(iter(_running(site, counter)), "nobody")
    _end(site, counter)
    return Cell(f"{where}: {instant}", fault.name, state, owner, recovered_s, tuple(wrong))


def _arm(host: Host, instant: str) -> None:
    host.run(["sh", "-c", f"mkdir -p {FAILPOINTS}; rm -f {FAILPOINTS}/*; touch {FAILPOINTS}/{instant}"])


def _reached(host: Host, instant: str) -> bool:
    return host.run(["test", "-e", f"{FAILPOINTS}/{instant}.reached"], check=False).returncode == 0


def _disarm(host: Host) -> None:
    """Let whoever stands there go on, unless the whole host is down."""
    if host.is_up:
        host.run(["sh", "-c", f"rm -f {FAILPOINTS}/*"])


def _await_end(site: Site, migration: str) -> str:
    """Return the migration's last state, once no host works on it any more."""
    ended = {str(state) for state in State if state.final and state is not State.IN_DOUBT}
    within(END_S, lambda: _state(site, migration) in ended and not _left(site))
    return _state(site, migration)


def _state(site: Site, migration: str) -> str:
    said = site.sojourn("show", migration, "--json").stdout
    return said.split('"state": "')[1].split('"')[0] if '"state"' in said else "unknown"


def _left(site: Site) -> list[str]:
    return [thing for name in ("alpha", "beta") for thing in left_behind(site.lab.host(name))]


def _running(site: Site, counter: Workload) -> list[str]:
    program = str(counter.file.name)
    return [
        name
        for name in ("alpha", "beta")
        if program in site.lab.host(name).run(["ps", "-o", "args=", "-p", str(counter.pid)], check=False).stdout
    ]


def _wrong(site: Site, counter: Workload, state: str, counted: int, sha256: str) -> list[str]:
    """Return what is not as promised, in words; nothing if all is well."""
    wrong = [f"left behind: {thing}" for thing in _left(site)]
    owners = _running(site, counter)
    if len(owners) > 1:
        wrong.append(f"runs twice, on {' and '.join(owners)}")
    if not owners and state != State.LOST:
        wrong.append(f"runs nowhere, but is told to be {state}")
    beats = [number for number, _ in counter.witnessed()]
    if beats != sorted(set(beats)):
        wrong.append("two copies wrote at the same time")
    if owners:
        wrong += _unwell(counter, counted, sha256)
    return wrong


def _unwell(counter: Workload, counted: int, sha256: str) -> list[str]:
    after = counter.wait_for_beats(100)
    if after.counter <= counted or after.details["damaged_slices"] or after.details["sha256"] != sha256:
        return [f"the process is not what it was: {after}"]
    return []


def _end(site: Site, counter: Workload) -> None:
    for name in ("alpha", "beta"):
        site.lab.host(name).run(["pkill", "-KILL", "-f", counter.file.name], check=False)
