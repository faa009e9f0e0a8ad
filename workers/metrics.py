"""Serves the metrics of a host that only its journal holds, for Prometheus, where a port is set.

The journal outlives every process, so nothing is lost with a lane, and the figures survive a
restart of the worker. The server is a process of its own beside the lanes, kept running like them,
at a low priority: a scrape reads the journal as any reader of SQLite's write-ahead log does, which
no writer waits for, and takes no lock of a migration. Scrapes that come faster than every few
seconds get the last answer again.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from sojourn.cluster import counters
from sojourn.cluster.metrics import counter, gauge, histogram
from sojourn.migration.context import Host
from sojourn.notices.outbox import Outbox
from sojourn.notices.target import Target
from sojourn.state.journal import Journal

log = logging.getLogger("sojourn.metrics")

#: How long an answer is repeated before the journal is read again.
KEPT_S = 3.0

#: How long to wait before the next attempt at a port that another process has.
AGAIN_S = 30.0

#: A low priority: after everything else that wants the processor.
NICE = 15

PHASES = gauge(
    *(
        "sojourn_worker_migrations",
        "Migrations in the journal that are not final, or hold something.",
    ),
    *("host", "role", "phase"),
)
HELD = gauge(
    "sojourn_worker_held", "What must be given back, such as a slot or a tree.", "host", "kind"
)
SLOTS = gauge(
    "sojourn_worker_freeze_slots", "Trees that may be frozen at once on this host.", "host"
)
FROZEN = gauge(
    "sojourn_worker_frozen_seconds",
    "For how long the oldest tree is held frozen; 0 if none is.",
    "host",
)
WINDOW = gauge(
    *(
        "sojourn_worker_window_seconds",
        "For how long post-copy keeps the oldest original frozen here; 0 if there is none.",
    ),
    "host",
)
STEPS = counter(
    "sojourn_worker_steps", "Steps that have ended on this host.", "host", "step", "outcome"
)
TOOK = histogram(
    "sojourn_worker_step_seconds",
    "How long a step took on this host.",
    counters.STEPS_S,
    "host",
    "step",
)
RESTARTS = counter(
    *(
        "sojourn_worker_lane_restarts",
        "How often a lane was started again after it had died, by what it died of.",
    ),
    *("host", "lane", "cause"),
)
REFUSED = counter(
    *("sojourn_worker_refused_messages", "Messages that a lane has dropped unread, by the reason."),
    *("host", "lane", "reason"),
)
SILENT = gauge(
    *("sojourn_worker_lane_silent_seconds", "For how long a lane has not listened to Redis."),
    *("host", "lane"),
)

CALLS = counter(
    *("sojourn_worker_notices", "Attempts to call somebody after an end, by what came of them."),
    *("host", "target", "outcome"),
)
OWED = gauge(
    "sojourn_worker_notices_owed",
    "Notices of ends that are still to be delivered.",
    "host",
    "target",
)

#: Every family that a worker serves.
FAMILIES = (
    *(PHASES, HELD, SLOTS, FROZEN, WINDOW, STEPS, TOOK, RESTARTS, REFUSED, SILENT),
    *(CALLS, OWED),
)

#: The kinds of things that a journal holds.
KINDS = ("slot", "mount", "tree", "unit", "name", "file")


@dataclass(frozen=True)
class Counted:
    """What the processes of a worker have counted.

    ``restarts`` by lane and cause, ``refused`` messages by lane and reason, ``silent_s`` by lane.
    """

    restarts: Mapping[tuple[str, ...], int]
    refused: Mapping[tuple[str, ...], int]
    silent_s: Mapping[str, float]


class HostCollector(Collector):
    """Collects the metrics of one host: from its journal, and what its processes have counted."""

    def __init__(self, host: Host, counted: Counted) -> None:
        self._host = host
        self._counted = counted
        self._lock = Lock()
        self._kept: list[Metric] = []
        self._read = float("-inf")

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, at most a few seconds old. Raises JournalFailed."""
        with self._lock:
            if time.monotonic() > self._read + KEPT_S:
                self._kept = list(self._found())
                self._read = time.monotonic()
            yield from self._kept

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values."""
        return (family.empty() for family in FAMILIES)

    def _found(self) -> Iterator[Metric]:
        name = self._host.name
        # A connection of its own: each scrape is a thread, and SQLite's belong to one thread.
        journal = Journal(self._host.journal.path)
        phases = Counter(
            (name, str(entry.role), str(entry.phase)) for entry in journal.unfinished()
        )
        yield PHASES.valued(phases.items())
        held = journal.all_held()
        yield HELD.valued(((name, kind), held.get(kind, 0)) for kind in KINDS)
        yield SLOTS.valued([((name,), self._host.settings.freeze_slots)])
        yield FROZEN.valued([((name,), _age(journal.frozen_since()))])
        yield WINDOW.valued([((name,), _age(journal.kept_since()))])
        yield from _steps(name, journal)
        counted = self._counted
        yield RESTARTS.valued(((name, *what), count) for what, count in counted.restarts.items())
        yield REFUSED.valued(((name, *what), count) for what, count in counted.refused.items())
        yield SILENT.valued(((name, lane), age) for lane, age in counted.silent_s.items())
        yield from _notices(self._host)


def _notices(host: Host) -> Iterator[Metric]:
    """Yield what came of calls after an end, and what is owed, as the host's outbox has it."""
    if not host.settings.end_targets:
        return
    outbox = Outbox(host.settings.outbox)
    # Two addresses may differ in what their names leave out.
    calls: Counter[tuple[str, ...]] = Counter()
    owed: Counter[tuple[str, ...]] = Counter()
    for (where, outcome), number in outbox.counted().items():
        calls[host.name, Target(where).name, outcome] += number
    for where, number in outbox.waiting().items():
        owed[host.name, Target(where).name] += number
    yield CALLS.valued(sorted(calls.items()))
    yield OWED.valued(sorted(owed.items()))


def _age(since: float | None) -> float:
    """Return how many seconds ago that was, 0 if it never was."""
    return max(0.0, time.time() - since) if since else 0


def _steps(host: str, journal: Journal) -> Iterator[Metric]:
    ended: Counter[tuple[str, ...]] = Counter()
    took: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for times in journal.step_times(counters.STEPS_S):
        ended[host, times.name, "failed" if times.failed else "done"] += times.count
        bound = counters.ABOVE if times.bound is None else str(times.bound)
        took[host, times.name][bound] += times.count
        took[host, times.name][counters.SUM] += times.sum_s
    yield STEPS.valued(sorted(ended.items()))
    yield TOOK.distributed(took)


def serve(host: Host, counted: Counted) -> None:
    """Serve this host's metrics until the process is ended; wait for a port that is taken."""
    os.nice(NICE)
    registry, settings = CollectorRegistry(), host.settings
    registry.register(HostCollector(host, counted))
    while True:
        try:
            start_http_server(settings.metrics_port, settings.metrics_address, registry)
            break
        except OSError as error:
            log.error(
                "No metrics on %s port %s: %s.",
                settings.metrics_address,
                settings.metrics_port,
                error,
            )
            time.sleep(AGAIN_S)
    while True:
        # The server is a daemon thread, which would end with this one.
        signal.pause()
