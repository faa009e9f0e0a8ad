"""Metrics that only a host itself knows, for Prometheus, from its journal: served by its worker where a port is set.

The journal outlives every process, so nothing is lost with a lane, and what is told survives a restart of the worker.
The server is a process of its own beside the lanes, kept running like them, with the lowest priority: a scrape reads
the journal as any reader of SQLite's write-ahead log does, which no writer waits for, and takes no lock of a migration.
Scrapes that come faster than every few seconds are answered with what the last one found.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from threading import Lock

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from sojourn import tally
from sojourn.host import Host
from sojourn.journal import Journal
from sojourn.metrics import counter, gauge, histogram

log = logging.getLogger("sojourn.metrics")

#: How long an answer may be given again.
KEPT_S = 3.0

#: How long to wait before the port is asked for again that somebody else has.
AGAIN_S = 30.0

#: Behind everything else that wants the processor.
NICE = 15

PHASES = gauge(
    *("sojourn_worker_migrations", "Migrations in the journal that are not final, or hold something."),
    *("host", "role", "phase"),
)
HELD = gauge("sojourn_worker_held", "What must be given back: slot, mount or tree.", "host", "kind")
SLOTS = gauge("sojourn_worker_freeze_slots", "Trees that may be frozen at once on this host.", "host")
FROZEN = gauge("sojourn_worker_frozen_seconds", "For how long the oldest tree is held frozen; 0 if none is.", "host")
STEPS = counter("sojourn_worker_steps", "Steps that have ended on this host.", "host", "step", "outcome")
TOOK = histogram("sojourn_worker_step_seconds", "How long a step took on this host.", tally.STEPS_S, "host", "step")
RESTARTS = counter(
    *("sojourn_worker_lane_restarts", "How often a lane was started again after it had died."),
    *("host", "lane"),
)

#: Everything that a worker tells of its host.
FAMILIES = (PHASES, HELD, SLOTS, FROZEN, STEPS, TOOK, RESTARTS)

#: The kinds of things that a journal holds.
KINDS = ("slot", "mount", "tree")


class HostCollector(Collector):
    """Collects the metrics of one host. ``restarts`` are counted by the supervisor of its lanes."""

    def __init__(self, host: Host, restarts: Mapping[str, int]) -> None:
        self._host = host
        self._restarts = restarts
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
        name, journal = self._host.name, Journal(self._host.journal.path)  # a connection belongs to one thread
        phases = Counter((name, str(entry.role), str(entry.phase)) for entry in journal.unfinished())
        yield PHASES.valued(phases.items())
        held = journal.all_held()
        yield HELD.valued(((name, kind), held.get(kind, 0)) for kind in KINDS)
        yield SLOTS.valued([((name,), self._host.settings.freeze_slots)])
        since = journal.frozen_since()
        yield FROZEN.valued([((name,), max(0.0, time.time() - since) if since else 0)])
        yield from _steps(name, journal)
        yield RESTARTS.valued(((name, lane), count) for lane, count in self._restarts.items())


def _steps(host: str, journal: Journal) -> Iterator[Metric]:
    ended: Counter[tuple[str, ...]] = Counter()
    took: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for each in journal.step_times(tally.STEPS_S):
        ended[host, each.name, "failed" if each.failed else "done"] += each.count
        took[host, each.name][tally.ABOVE if each.bound is None else str(each.bound)] += each.count
        took[host, each.name][tally.SUM] += each.sum_s
    yield STEPS.valued(sorted(ended.items()))
    yield TOOK.distributed(took)


def serve(host: Host, restarts: Mapping[str, int]) -> None:
    """Serve this host's metrics until the process is ended; a port that is taken is asked for again and again."""
    os.nice(NICE)
    registry, settings = CollectorRegistry(), host.settings
    registry.register(HostCollector(host, restarts))
    while True:
        try:
            start_http_server(settings.metrics_port, settings.metrics_address, registry)
            break
        except OSError as error:
            log.error("No metrics on %s port %s: %s.", settings.metrics_address, settings.metrics_port, error)  # noqa: TRY400
            time.sleep(AGAIN_S)
    while True:
        signal.pause()
