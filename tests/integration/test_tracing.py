"""Traces: real workers, and a collector that is a real HTTP server; one migration is one trace."""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from sojourn.errors import MigrationError
from tests.conftest import eventually
from tests.integration.conftest import Cluster, Redis
from workflows.migrate import migrate

pytest.importorskip("opentelemetry.instrumentation.celery", reason="the extra `otel` is not installed")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

#: As in test_canvas.py.


class Collector:
    """Takes spans as a collector does, and keeps their names and attributes by their traces."""

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
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        """Keep what a worker has sent."""
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (host,) = [each.value.string_value for each in resource.resource.attributes if each.key == "host.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                told = {each.key: each.value.string_value for each in span.attributes}
                self.traces[span.trace_id.hex()].append((span.name, {**told, "host": host}))

    def names(self, migration: str) -> set[str]:
        """Return the names of the spans of a migration's trace."""
        return {name for name, _ in self.traces[migration.replace("-", "")]}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Run a collector."""
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def traced(redis: Redis, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
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
    """Its messages, its steps on both hosts, and its end; the trace has the migration's id. Signatures hold."""
    migration = _migrated(traced)
    eventually(partial(_all_there, collector, migration), within_s=20)
    eventually(lambda: {"run/sojourn.migrate", "run/sojourn.test_zeroth"} <= collector.names(migration), within_s=20)
    spans = collector.traces[migration.replace("-", "")]
    assert {told["host"] for name, told in spans if name == "step/test_zeroth"} == {"alpha", "beta"}
    assert set(_steps(collector, migration)) == {migration}
    assert not [host for host in traced.hosts if "Refused an unsigned" in traced.log(host)]


def test_the_way_back_is_in_the_same_trace(traced: Cluster, collector: Collector) -> None:
    """The errback, and every undo."""
    migration = _migrated(traced, "third")
    expected = {"run/sojourn.roll_back", "step/test_undo_first", "step/test_undo_third"}
    eventually(lambda: expected <= collector.names(migration), within_s=20)


def test_one_migration_is_not_drawn_into_the_trace_of_another(traced: Cluster, collector: Collector) -> None:
    """What waits in the queue is begun by whoever ends another one, and has a trace of its own all the same."""
    traced.announce(max_outgoing=1)
    messages = [traced.migration(pid) for pid in (70, 71, 72)]
    asked = [migrate.apply_async(kwargs=each.plan.to_json(), task_id=each.id) for each in messages]
    for answer in asked:
        answer.get(timeout=30)
    for each in messages:
        eventually(partial(_all_there, collector, each.id), within_s=20)
        assert set(_steps(collector, each.id)) == {each.id}


def _all_there(collector: Collector, migration: str) -> bool:
    return len(_steps(collector, migration)) == 8


def _steps(collector: Collector, migration: str) -> list[str]:
    """Return of which migrations the steps are whose spans are in the trace of this one."""
    spans = collector.traces[migration.replace("-", "")]
    return [told["sojourn.migration"] for name, told in spans if name.startswith("step/")]


def test_a_collector_that_is_away(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It costs spans and no migration."""
    made = Cluster(redis, tmp_path_factory.mktemp("away"), otel_endpoint="http://127.0.0.1:1")
    with made.called_by_programs():
        made.start()
        made.announce()
        _migrated(made)
