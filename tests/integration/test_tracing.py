"""Traces, by real workers and a real HTTP server as collector: one migration is one trace."""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from sojourn.client import migrate
from sojourn.errors import MigrationError
from tests.conftest import eventually
from tests.integration.conftest import Cluster, Redis

pytest.importorskip(
    "opentelemetry.instrumentation.celery", reason="the extra `otel` is not installed"
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

#: How many steps a migration of ``tests.integration.steps`` has, on both hosts together.
STEPS = 9


class Collector:
    """Receives spans as a collector does, and keeps their names and attributes by their traces."""

    def __init__(self) -> None:
        self.traces: defaultdict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        """Keep the spans of one request of a worker."""
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            host = _attributes(resource.resource)["host.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                attributes = {**_attributes(span), "host": host}
                self.traces[span.trace_id.hex()].append((span.name, attributes))

    def names(self, migration: str) -> set[str]:
        """Return the names of the spans of a migration's trace."""
        return {name for name, _ in self.traces[migration.replace("-", "")]}


def _attributes(holder: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in holder.attributes}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Run a collector."""
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def traced(
    redis: Redis, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Start a cluster whose workers trace."""
    made = Cluster(redis, tmp_path_factory.mktemp("traced"), otel_endpoint=collector.url)
    with made.called_by_programs():
        made.start()
        made.announce()
        yield made


def _migrated(cluster: Cluster, fails: str = "") -> str:
    message = cluster.migration(**{fails: "fail"} if fails else {})  # type: ignore[arg-type]
    answer = migrate.apply_async(kwargs=message.plan.to_json(), task_id=message.id)
    try:
        answer.get(timeout=30)
    except MigrationError:
        assert fails
    return message.id


def test_a_migration_is_one_trace(traced: Cluster, collector: Collector) -> None:
    """Its messages, its steps on both hosts, and its end are there, under the migration's id.

    Signatures are right although the trace was added to the headers.
    """
    migration = _migrated(traced)
    eventually(partial(_all_there, collector, migration), within_s=20)
    eventually(
        lambda: {"run/sojourn.migrate", "run/sojourn.test_zeroth"} <= collector.names(migration),
        within_s=20,
    )
    spans = collector.traces[migration.replace("-", "")]
    hosts = {attributes["host"] for name, attributes in spans if name == "step/test_zeroth"}
    assert hosts == {"alpha", "beta"}
    assert set(_steps(collector, migration)) == {migration}
    assert not [host for host in traced.hosts if "Refused an unsigned" in traced.log(host)]


def test_a_rollback_is_in_the_same_trace(traced: Cluster, collector: Collector) -> None:
    """The errback and every undo have spans there."""
    migration = _migrated(traced, "third")
    expected = {"run/sojourn.roll_back", "step/test_undo_first", "step/test_undo_third"}
    eventually(lambda: expected <= collector.names(migration), within_s=20)


def test_migrations_do_not_share_a_trace(traced: Cluster, collector: Collector) -> None:
    """One that waits in the queue has its own trace, although the end of another begins it."""
    traced.announce(max_outgoing=1)
    messages = [traced.migration(pid) for pid in (70, 71, 72)]
    answers = [
        migrate.apply_async(kwargs=message.plan.to_json(), task_id=message.id)
        for message in messages
    ]
    for answer in answers:
        answer.get(timeout=30)
    for message in messages:
        eventually(partial(_all_there, collector, message.id), within_s=20)
        assert set(_steps(collector, message.id)) == {message.id}


def _all_there(collector: Collector, migration: str) -> bool:
    return len(_steps(collector, migration)) == STEPS


def _steps(collector: Collector, migration: str) -> list[str]:
    """Return the ids of the migrations whose steps have spans in the trace of this one."""
    spans = collector.traces[migration.replace("-", "")]
    return [
        attributes["sojourn.migration"] for name, attributes in spans if name.startswith("step/")
    ]


def test_a_migration_needs_no_collector(
    redis: Redis, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It completes while the collector is unreachable."""
    made = Cluster(redis, tmp_path_factory.mktemp("away"), otel_endpoint="http://127.0.0.1:1")
    with made.called_by_programs():
        made.start()
        made.announce()
        _migrated(made)
