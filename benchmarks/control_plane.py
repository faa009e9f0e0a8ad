"""Measure the control plane: many migrations between many hosts, without CRIU.

The steps only sleep and write their phases; everything else is real: the canvas, its signed
messages, the journals with every write durable, Redis, the queue with its leases, the batch. A few
Celery workers act for all hosts: a host's messages go to the queues of the worker that acts for it,
which uses that host's own journal. So a worker consumes three queues, as on a real host.

The rate depends on what else the machine does; the processor time per migration much less.

Usage: python benchmarks/control_plane.py [--hosts 1000] [--migrations 10000] [--workers 2]
                                          [--slots 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import redis
from celery import current_task

from sojourn.cluster.batches import Batches
from sojourn.cluster.queue import Queue
from sojourn.cluster.registry import HostInfo, Registry
from sojourn.cluster.store import Store
from sojourn.migration import context
from sojourn.migration.context import Host, Migration
from sojourn.model import Phase, Role, Untyped
from sojourn.security.seal import Seal
from sojourn.settings import load
from sojourn.state.journal import Journal
from sojourn.state.message import Outcome
from sojourn.system.run import Child, spawn
from tasks.policy import HostStep
from tasks.step import step
from workers.lane import run
from workflows.canvas import DESTINATION, SOURCE, Both, Pipeline, Step

#: The header of a message with the name of its host.
STANDS_FOR = "bench_host"

KEY = "a key for benchmarks that is long enough"
SLEEP_S = 0.005
ANNOUNCED_S = 36_000

#: The command by which messages come to Redis.
SENT = "lpush"


def _sleeping(
    name: str, *phases: Phase, facts: dict[Role, dict[str, Any]] | None = None, **how: Untyped
) -> HostStep:
    """Return a step that writes these phases, as far as its host's role has them, and sleeps."""

    def work(migration: Migration) -> Outcome:
        for phase in phases:
            migration.become(phase)
        time.sleep(SLEEP_S)
        return Outcome(f"{name} is done", (facts or {}).get(migration.role, {}))

    work.__name__ = f"bench_{name}"
    return step(deadline_s=30, **how)(work)


BEFORE, FROZEN = (Phase.OPEN, Phase.RESERVED), (Phase.FROZEN, Phase.RELEASED, Phase.RESERVED)
ENDS = {Role.SOURCE: {"source_phase": "retired"}, Role.DESTINATION: {"verdict": "restored"}}

RESERVE = _sleeping("reserve")
RELEASE = _sleeping("release", facts=ENDS, begins_in=tuple(Phase))
RESTORE = _sleeping(
    *("restore", Phase.RESTORING, Phase.ACCEPTED, Phase.RESTORED), facts=ENDS, begins_in=FROZEN
)

#: The shape of ``STOP_AND_COPY``: eleven steps, and their conclusion.
SLEEPING = Pipeline(
    Step(_sleeping("examine", opens=True), SOURCE),
    Step(_sleeping("preflight", opens=True), DESTINATION),
    Both(
        [Step(RESERVE, DESTINATION), Step(_sleeping("page_server"), DESTINATION)],
        [Step(RESERVE, SOURCE)],
    ),
    Step(_sleeping("dump", Phase.FREEZING, Phase.FROZEN), SOURCE),
    Step(
        _sleeping("copy_images", Phase.RELEASED, begins_in=FROZEN),
        SOURCE,
        frozen=True,
    ),
    Step(RESTORE, DESTINATION, frozen=True),
    Both(
        [Step(RELEASE, DESTINATION)],
        [
            Step(_sleeping("retire", Phase.RETIRED, facts=ENDS, begins_in=FROZEN), SOURCE),
            Step(RELEASE, SOURCE),
        ],
    ),
)


def name_of(number: int) -> str:
    """Return the name of a host."""
    return f"host-{number:04d}"


@dataclass(frozen=True)
class Site:
    """Where the benchmark keeps its files, and its size."""

    place: Path
    url: str
    hosts: int
    workers: int
    slots: int
    under_way: int

    def environment(self) -> dict[str, str]:
        """Return the environment of a worker."""
        return {
            "PYTHONPATH": ":".join([str(Path(__file__).parents[1]), *sys.path]),
            "SOJOURN_CONFIG": "/dev/null",
            "SOJOURN_HOST": "planner",
            "SOJOURN_KEY": KEY,
            "SOJOURN_REDIS_URL": self.url,
            "SOJOURN_MAX_MIGRATIONS": str(self.under_way),
            "SOJOURN_STATE_DIR": str(self.place / "planner"),
            "SOJOURN_RUNTIME_DIR": str(self.place / "planner/run"),
        }


def work(number: int, site: Site) -> None:
    """Run one of the workers, until killed."""
    _stand_for_many(site)
    from sojourn.messaging.application import shared_queue  # noqa: PLC0415
    from workflows.pipelines import PIPELINES  # noqa: PLC0415

    PIPELINES["stop-and-copy"] = SLEEPING
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    queues = [shared_queue(load()), f"worker{number}", f"worker{number}.frozen"]
    run(
        [
            *(
                "--quiet",
                "worker",
                f"--hostname=main@worker{number}",
                f"--queues={','.join(queues)}",
                "--pool=prefork",
            ),
            *(
                f"--concurrency={site.slots}",
                "--without-gossip",
                "--without-mingle",
                "--loglevel=WARNING",
            ),
            "--task-events",
        ]
    )


def _stand_for_many(site: Site) -> None:
    """Let every task find the host that it was sent to.

    Hosts have separate journals; the connection to Redis is that of the process, as on a real host.
    """
    import tasks.step  # noqa: PLC0415
    from workflows import canvas  # noqa: PLC0415

    planner = context.this_host

    @cache
    def standing_for(name: str) -> Host:
        here, host = site.place / name, copy.copy(planner())
        host.settings = host.settings.model_copy(
            update={"host": name, "state_dir": here, "runtime_dir": here / "run"}
        )
        host.name, host.journal = name, Journal(here / "journal.db")
        return host

    def this_host() -> Host:
        name = current_task.request.get(STANDS_FOR)
        return standing_for(name) if name else planner()

    tasks.step.this_host = this_host  # type: ignore[assignment, attr-defined]
    canvas.link = _link(site, canvas.link)  # type: ignore[attr-defined]


def _link(site: Site, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``link`` that sends every step to the worker that acts for its host."""

    def link(made: HostStep, queue: str, *rest: Untyped, **options: Untyped) -> Untyped:
        name, _, lane = queue.partition(".")
        worker = f"worker{int(name.removeprefix('host-')) % site.workers}"
        queue = ".".join(filter(None, (worker, lane)))
        return real(made, queue, *rest, **options).set(headers={STANDS_FOR: name})

    return link


class Run:
    """One run: its Redis, its workers, and its measurements."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.children: list[Child] = []
        self.redis = redis.Redis.from_url(site.url)
        self.store = Store(site.url, seal=Seal(KEY, "benchmark"))
        self.batches = Batches(self.store, 86_400)
        self.queue = Queue(self.store, 30)

    def start(self) -> None:
        """Start Redis and the workers, announce the hosts, and wait until all are ready."""
        port = self.site.url.rsplit(":", 1)[1].split("/", maxsplit=1)[0]
        options = [
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            self.site.place,
            "--bind",
            "127.0.0.1",
        ]
        self.children.append(spawn(["redis-server", "--port", port, *options]))
        _until(self._answers)
        for number in range(self.site.hosts):
            Registry(self.store).announce(_info(name_of(number)), ANNOUNCED_S)
        for number in range(self.site.workers):
            argv = [
                sys.executable,
                __file__,
                "--be",
                str(number),
                "--site",
                json.dumps(vars(self.site), default=str),
            ]
            log = self.site.place / f"worker{number}.log"
            self.children.append(spawn(argv, output=log, env=self.site.environment()))
        os.environ.update(self.site.environment())
        from workflows.app import the_app  # noqa: PLC0415  (after its settings)

        _until(lambda: len(the_app().control.ping(timeout=0.5)) == self.site.workers)

    def stop(self) -> None:
        """End everything."""
        for child in reversed(self.children):
            child.kill()

    def measure(self, migrations: int) -> dict[str, Any]:
        """Request all migrations in one go, and return what they cost, by tenths of the whole."""
        from sojourn.client import migrate_many  # noqa: PLC0415

        before, spent = self._memory(), self._cpu_s()
        self.redis.config_resetstat()
        began = time.monotonic()
        batch = migrate_many.delay(plan_of(migrations, self.site.hosts)).id
        _until(lambda: (record := self.batches.record(batch)) and record.total)
        entered_s, queued = time.monotonic() - began, self._memory()
        marks = [{"ended": 0, "s": entered_s, "bytes": queued, "cpu_s": self._cpu_s()}]
        for tenth in range(1, 11):
            _until(
                lambda tenth=tenth: self.batches.record(batch).ended >= migrations * tenth // 10,
                within_s=3600,
            )
            mark = {"ended": migrations * tenth // 10, "s": time.monotonic() - began}
            marks.append({**mark, "bytes": self._memory(), "cpu_s": self._cpu_s()})
        stats = self.redis.info("commandstats")
        return {
            "cores": len(os.sched_getaffinity(0)),
            "entered_s": entered_s,
            "cpu_ms_each": {
                name: (now - spent[name]) * 1000 / migrations
                for name, now in marks[-1]["cpu_s"].items()
            },
            "queued_bytes_each": (queued - before) / migrations,
            "finished_bytes_each": (marks[-1]["bytes"] - before) / migrations,
            "messages_each": stats[f"cmdstat_{SENT}"]["calls"] / migrations,
            "commands_each": sum(stat["calls"] for stat in stats.values()) / migrations,
            "redis_ms_each": sum(stat["usec"] for stat in stats.values()) / 1000 / migrations,
            "slowest": sorted(((stat["usec"], name) for name, stat in stats.items()), reverse=True)[
                :8
            ],
            "counts": _counts(self.batches, batch),
            "marks": marks,
            "keys": self.redis.dbsize(),
        }

    def _answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.ConnectionError:
            return False

    def _cpu_s(self) -> dict[str, float]:
        """Return the processor seconds of Redis and of the workers, with their children's."""
        # spawn() makes every child the leader of a session, which its own children stay in.
        sessions = {child.pid: "workers" for child in self.children} | {
            self.children[0].pid: "Redis"
        }
        spent = dict.fromkeys(sessions.values(), 0.0)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # Field 3 of proc_pid_stat(5) follows the name, which may contain anything.
                fields = stat.read_text().rsplit(")", 1)[1].split()
                if name := sessions.get(int(fields[3])):
                    spent[name] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return spent

    def _memory(self) -> int:
        return int(self.redis.info("memory")["used_memory"])


def _counts(batches: Batches, batch: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for end in batches.ends(batch).values():
        counts[end["state"]] = counts.get(end["state"], 0) + 1
    return counts


def plan_of(migrations: int, hosts: int) -> list[dict[str, Any]]:
    """Return a plan whose routes are spread over all hosts; it is the same in every run."""
    chance = random.Random(7)  # noqa: S311  (routes, not secrets)
    plan = []
    for number in range(migrations):
        source, destination = chance.sample(range(hosts), 2)
        plan.append(
            {"pid": 2 + number, "source": name_of(source), "destination": name_of(destination)}
        )
    return plan


def _info(name: str) -> HostInfo:
    return HostInfo(
        name, "127.0.0.1", "0", "4.2", "6.1", "x86_64", 2, 2**34, 2**33, 0, 0.0, 0.0, (), 4, 4
    )


def _until(condition: Callable[[], object], within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"the condition is still false after {within_s:g} s")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def show(found: dict[str, Any], migrations: int) -> None:
    """Print the measurements."""
    entered = f"{found['entered_s']:.1f} s until all {migrations} were checked and queued"
    print(f"{entered}; {found['counts']}")
    for before, mark in itertools.pairwise(found["marks"]):
        ended = mark["ended"] - before["ended"]
        pace = ended / max(0.001, mark["s"] - before["s"])
        cpu_ms = (sum(mark["cpu_s"].values()) - sum(before["cpu_s"].values())) * 1000 / ended
        print(
            f"{mark['ended']:7d} ended after {mark['s']:6.1f} s: {pace:5.1f} per second", end=", "
        )
        print(f"{cpu_ms:5.1f} ms of a processor each, {mark['bytes'] / 1e6:6.1f} MB")
    whole = migrations / found["marks"][-1]["s"]
    print(f"in all {whole:.1f} migrations per second on {found['cores']} cores", end="; each: ")
    print(
        ", ".join(
            f"{spent:.1f} ms of a processor for {name}"
            for name, spent in found["cpu_ms_each"].items()
        )
    )
    print(f"each: {found['messages_each']:.1f} messages", end=", ")
    print(f"{found['commands_each']:.0f} commands of Redis", end=", ")
    print(f"{found['redis_ms_each']:.2f} ms of its time", end="; ")
    print(f"{found['queued_bytes_each']:.0f} bytes queued", end=", ")
    print(f"{found['finished_bytes_each']:.0f} bytes finished")
    print(
        "most of Redis's time:",
        ", ".join(f"{name[8:]} {usec / 1e3:.0f} ms" for usec, name in found["slowest"]),
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure the control plane without CRIU.")
    for name, default in (
        ("hosts", 1000),
        ("migrations", 10_000),
        ("workers", 2),
        ("slots", 4),  # as many as a host has by default: the setting `concurrency`
        ("under-way", 64),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--be", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--site", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if options.be is not None:
        work(options.be, Site(**{**options.site, "place": Path(options.site["place"])}))
        return
    place = Path(tempfile.mkdtemp(prefix="sojourn-control-"))
    site = Site(
        place,
        f"redis://127.0.0.1:{_free_port()}/0",
        options.hosts,
        options.workers,
        options.slots,
        options.under_way,
    )
    run = Run(site)
    # Without this SIGTERM would end the benchmark without its `finally`, and leave the workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        run.start()
        found = run.measure(options.migrations)
    finally:
        run.stop()
        [print(f.read_text()[-3000:]) for f in place.glob("*.log")]
        shutil.rmtree(place, ignore_errors=True)
    show(found, options.migrations)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
