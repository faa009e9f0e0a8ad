"""Metrics of the whole cluster for Prometheus, computed from Redis at each scrape.

What adds up is counted in Redis when a migration ends (``sojourn.cluster.counters`` explains why
there); the current state is read from the ledger's open migrations, the queue and the registry. A
scrape is seven reads, none of which grows with the history, and takes nothing that a migration
could wait for. No process keeps anything, so any process may serve these metrics, and all serve the
same; what only a host itself knows is served by its worker (``workers/metrics.py``).

Labels grow with hosts and with the pairs of hosts between which something moved, never with
migrations.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sojourn import window
from sojourn.cluster import counters
from sojourn.cluster.client import Cluster
from sojourn.cluster.ledger import OPEN_STATES
from sojourn.cluster.registry import HostInfo
from sojourn.errors import StoreUnreachable
from sojourn.model import State
from sojourn.settings import Settings

#: The form in which ``exposition`` answers.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Family:
    """A metric: its kind, name, help and labels, and for a distribution its buckets' bounds."""

    kind: type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def empty(self) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
        """Return the metric without a value."""
        return self.kind(self.name, self.help, labels=self.labels)

    def valued(self, values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        """Return the metric with its values by labels."""
        metric = self.empty()
        for labels, value in values:
            assert not isinstance(metric, HistogramMetricFamily)
            metric.add_metric(labels, value)
        return metric

    def distributed(self, counted: Mapping[tuple[str, ...], Mapping[str, float]]) -> Metric:
        """Return the metric with its buckets by labels, from what each bucket has counted."""
        metric = self.empty()
        assert isinstance(metric, HistogramMetricFamily)
        for labels, counts in sorted(counted.items()):
            buckets = {name: count for name, count in counts.items() if name != counters.SUM}
            metric.add_metric(
                labels, counters.cumulated(buckets, self.bounds), counts.get(counters.SUM, 0.0)
            )
        return metric

    @property
    def names(self) -> set[str]:
        """The names under which its values are exposed."""
        if self.kind is HistogramMetricFamily:
            return {f"{self.name}_{part}" for part in ("bucket", "count", "sum")}
        return {f"{self.name}_total" if self.kind is CounterMetricFamily else self.name}


def gauge(name: str, help_text: str, *labels: str) -> Family:
    """Return a metric that goes up and down."""
    return Family(GaugeMetricFamily, name, help_text, labels)


def counter(name: str, help_text: str, *labels: str) -> Family:
    """Return a metric that only grows; ``_total`` is added to its name."""
    return Family(CounterMetricFamily, name, help_text, labels)


def histogram(name: str, help_text: str, bounds: tuple[float, ...], *labels: str) -> Family:
    """Return a distribution."""
    return Family(HistogramMetricFamily, name, help_text, labels, bounds)


REDIS_UP = gauge(
    "sojourn_redis_up", "Whether Redis answers; if not, no other metric of the cluster is exposed."
)

#: What ``counters`` counts, by its names there.
COUNTED = {
    "migrations": counter(
        *("sojourn_migrations", "Migrations that have ended, by how they first ended."),
        *("state", "source", "destination", "mode"),
    ),
    "failures": counter(
        "sojourn_failures",
        "Migrations that did not end as requested, by step and code.",
        *("step", "code"),
    ),
    "bytes": counter(
        *("sojourn_moved_bytes", "Bytes that crossed between hosts: pages (memory) and images."),
        *("kind", "source", "destination"),
    ),
    "freeze": histogram(
        *(
            "sojourn_freeze_seconds",
            "How long the tree was frozen, of migrations that arrived.",
            counters.PAUSES_S,
        ),
        *("destination", "mode"),
    ),
    "downtime": histogram(
        *(
            "sojourn_downtime_seconds",
            "From the start of the freeze until the tree ran again.",
            counters.PAUSES_S,
        ),
        *("destination", "mode"),
    ),
    "migration": histogram(
        *(
            "sojourn_migration_seconds",
            "From the request to the end, of migrations that arrived.",
            counters.TOTALS_S,
        ),
        *("destination", "mode"),
    ),
    "settled": histogram(
        *(
            "sojourn_settled_seconds",
            "How long after the tree ran all memory was in place, of migrations that arrived.",
            counters.TOTALS_S,
        ),
        *("destination", "mode"),
    ),
    "wait": histogram(
        *(
            "sojourn_longest_wait_seconds",
            "The longest wait for a page of the original, of each migration in post-copy.",
            counters.WAITS_S,
        ),
        *("destination", "mode"),
    ),
    "faults": counter(
        *("sojourn_faults", "Pages for which threads had to wait after the tree ran."),
        *("destination", "mode"),
    ),
    "refused": counter(
        "sojourn_refused",
        "What came out of Redis and was not acted upon, for want of a good seal.",
        "kind",
    ),
    "step": histogram(
        "sojourn_step_seconds", "How long a step took, failed or not.", counters.STEPS_S, "step"
    ),
}

OPEN = gauge(
    "sojourn_migrations_open",
    "Migrations that have not ended, or wait for their clean-up.",
    "state",
)
WINDOWS = gauge(
    *(
        "sojourn_windows_open",
        "Processes that run on the destination and need the source for memory (post-copy).",
    ),
    *("source", "destination"),
)
MISSING = gauge(
    "sojourn_windows_missing_bytes",
    "Memory that is still to come to them.",
    "source",
    "destination",
)
IN_DOUBT = gauge("sojourn_migrations_in_doubt", "Migrations whose process has no known owner.")
QUEUE = gauge(
    "sojourn_queue_length",
    "Migrations in the queue: waiting, later, taken or given-up.",
    "standing",
)
UP = gauge("sojourn_host_up", "Whether the worker of a host announces itself.", "host")

#: What a host announces about itself; of a silent one there is nothing.
ANNOUNCED = {
    "cordoned": gauge("sojourn_host_cordoned", "Whether nothing new may go to a host.", "host"),
    "free_bytes": gauge("sojourn_host_free_bytes", "Memory that is free on a host.", "host"),
    "memory_bytes": gauge("sojourn_host_memory_bytes", "Memory of a host.", "host"),
    "load": gauge("sojourn_host_load", "Load average of a host's last minute.", "host"),
    "cpus": gauge("sojourn_host_cpus", "Processors of a host.", "host"),
    "certified_until": gauge(
        *(
            "sojourn_host_certificate_end_seconds",
            "When a host's certificate ends, since 1970; not exposed without one.",
        ),
        "host",
    ),
    "running": gauge(
        "sojourn_host_migrations",
        "Migrations that are not final on a host, or hold something.",
        "host",
    ),
}
INFO = gauge(
    "sojourn_host_info",
    "Always 1; the labels are a host's versions.",
    "host",
    "sojourn",
    "criu",
    "kernel",
)

#: Everything that is exposed about the cluster.
FAMILIES = (
    *(REDIS_UP, *COUNTED.values(), OPEN, IN_DOUBT, WINDOWS, MISSING, QUEUE),
    *(UP, *ANNOUNCED.values(), INFO),
)


@dataclass(frozen=True)
class ClusterCollector(Collector):
    """Collects the metrics of the cluster; register it in any registry of prometheus_client."""

    cluster: Cluster
    families: tuple[Family, ...] = field(default=FAMILIES)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; if Redis does not answer, only that it does not."""
        try:
            # All is read before anything is yielded: half an answer would look like metrics that
            # have vanished.
            found = [*self._counted(), *self._standing(), *self._hosts()]
        except StoreUnreachable:
            yield REDIS_UP.valued([((), 0)])
            return
        yield REDIS_UP.valued([((), 1)])
        yield from found

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values, so that registering them reads nothing."""
        return (family.empty() for family in self.families)

    def _counted(self) -> Iterator[Metric]:
        by_name: defaultdict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        for (name, *rest), number in self.cluster.ledger.counted().items():
            by_name[name][tuple(rest)] = number
        for name, family in COUNTED.items():
            counts = by_name[name]
            yield (
                family.distributed(_by_labels(counts))
                if family.bounds
                else family.valued(sorted(counts.items()))
            )

    def _standing(self) -> Iterator[Metric]:
        open_ones = self.cluster.ledger.open_ones()
        states = Counter(open_ones.values())
        yield OPEN.valued(((state,), states[state]) for state in OPEN_STATES)
        yield IN_DOUBT.valued([((), states[State.IN_DOUBT])])
        yield from self._windows(open_ones)
        counts = self.cluster.queue.counts()
        named = {
            "waiting": counts.waiting,
            "later": counts.later,
            "taken": counts.taken,
            "given-up": counts.given_up,
        }
        yield QUEUE.valued(((standing,), count) for standing, count in named.items())

    def _windows(self, open_ones: Mapping[str, State]) -> Iterator[Metric]:
        """Yield how many windows are open, and what is missing in them, by the pair of hosts."""
        running = [migration for migration, state in open_ones.items() if state is State.RUNNING]
        count: Counter[tuple[str, ...]] = Counter()
        missing: Counter[tuple[str, ...]] = Counter()
        for account in self.cluster.ledger.accounts(running):
            plan, progress = account.plan, account.progress or {}
            if plan.post_copy and window.is_open(plan, account.steps, progress):
                way = plan.source, plan.destination
                count[way] += 1
                missing[way] += int(progress.get("missing", 0))
        yield WINDOWS.valued(count.items())
        yield MISSING.valued(missing.items())

    def _hosts(self) -> Iterator[Metric]:
        hosts = self.cluster.registry.hosts()
        yield UP.valued(((name,), info is not None) for name, info in hosts.items())
        alive = [info for info in hosts.values() if info]
        for name, family in ANNOUNCED.items():
            values = ((info.name, getattr(info, name)) for info in alive)
            yield family.valued(
                ((host,), float(value)) for host, value in values if value is not None
            )
        yield INFO.valued((_versions(info), 1) for info in alive)


def cluster_collector(settings: Settings) -> ClusterCollector:
    """Return the collector of these settings' cluster; it connects at its first scrape."""
    return ClusterCollector(Cluster(settings))


def exposition(collector: Collector) -> bytes:
    """Return what a collector finds now, in Prometheus's text format (``CONTENT_TYPE``)."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


def _by_labels(counts: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], dict[str, float]]:
    found: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for (*labels, part), number in counts.items():
        found[tuple(labels)][part] = number
    return found


def _versions(info: HostInfo) -> tuple[str, ...]:
    return info.name, info.sojourn, info.criu, info.kernel
