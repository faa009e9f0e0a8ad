"""Traces of migrations by OpenTelemetry, where a site configures a collector.

OpenTelemetry is the extra ``otel``; nothing of it is imported where no collector is configured.

Celery's instrumentation makes a span of each message that is sent and of each task, and sends the
trace along in the messages' headers. Two things are ours:

* A migration's id is its trace's id, without the hyphens: so all its spans are in one trace,
  whoever sent a message, and a dispatch that begins another migration does not draw that one into
  the trace of the first.
* Each step has a span, ``step/NAME``, with the migration's id.

A thread of each process sends spans in the background. While the collector is unreachable spans are
lost, but no migration is delayed.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from celery.signals import task_prerun, worker_process_init, worker_process_shutdown

from sojourn import __version__
from sojourn.errors import UsageError
from sojourn.model import Untyped
from sojourn.settings import Settings, variable
from sojourn.state.message import Message
from tasks.step import AROUND

log = logging.getLogger("sojourn.tracing")

#: The trace of the migration whose first span is being made.
_BEGINNING: ContextVar[int | None] = ContextVar("beginning", default=None)

#: How long a collector may take to answer; a process waits so long again when it ends.
TIMEOUT_S = 2.0

#: The task whose id is that of its migration.
FIRST_TASK = "sojourn.migrate"

TRACE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass
class Tracing:
    """Whether this process traces."""

    on: bool = False


TRACING = Tracing()


def is_wanted(settings: Settings) -> bool:
    """Whether a collector is configured, by a setting or by OpenTelemetry's own variables."""
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return bool(settings.otel_endpoint or any(variable(name) for name in named))


def prepare(settings: Settings) -> None:
    """Trace in each process of a pool."""
    if is_wanted(settings):
        # The threads that send spans do not survive a fork, so each process starts its own.
        worker_process_init.connect(
            lambda **_: start(settings), weak=False, dispatch_uid="sojourn-tracing-begin"
        )


def start(settings: Settings) -> None:
    """Trace this process from now on; without the libraries only log that they are missing."""
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        log.error("No traces are sent: %s. Install Sojourn with the extra `otel`.", error)
        return

    class Ids(RandomIdGenerator):  # type: ignore[misc, unused-ignore]
        def generate_trace_id(self) -> int:
            return _BEGINNING.get() or int(super().generate_trace_id())

    service = {
        "service.name": "sojourn",
        "service.version": __version__,
        "host.name": settings.host,
    }
    provider = TracerProvider(resource=Resource.create(service), id_generator=Ids())
    endpoint = f"{settings.otel_endpoint.rstrip('/')}/v1/traces" if settings.otel_endpoint else None
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S))
    )
    trace.set_tracer_provider(provider)
    # Receivers run in the order in which they were connected: the first is called before the
    # instrumentation makes a task's span, the second when there is one.
    task_prerun.connect(_begin_migration, weak=False, dispatch_uid="sojourn-tracing-first")
    CeleryInstrumentor().instrument(tracer_provider=provider)
    task_prerun.connect(_name_migration, weak=False, dispatch_uid="sojourn-tracing-name")
    AROUND.append(_step)
    worker_process_shutdown.connect(
        lambda **_: provider.shutdown(), weak=False, dispatch_uid="sojourn-tracing-end"
    )
    TRACING.on = True


def trace_id(migration: str) -> int | None:
    """Return the id of a migration's trace, None for one that is not 32 hexadecimal digits."""
    digits = migration.replace("-", "")
    return int(digits, 16) or None if TRACE_ID.fullmatch(digits) else None


@contextlib.contextmanager
def traced(migration: str, what: str) -> Iterator[None]:
    """Put what is sent meanwhile into the migration's own trace, if this process traces."""
    number = trace_id(migration)
    if not TRACING.on or number is None:
        yield
        return
    from opentelemetry import context, trace

    if trace.get_current_span().get_span_context().trace_id == number:
        yield
        return
    token = _BEGINNING.set(number)
    try:
        # In an empty context, else the span would belong to whatever this process is doing.
        span = trace.get_tracer("sojourn").start_span(what, context.Context())
    finally:
        _BEGINNING.reset(token)
    span.set_attribute("sojourn.migration", migration)
    with trace.use_span(span, end_on_exit=True):
        yield


@contextlib.contextmanager
def _step(name: str, migration: str) -> Iterator[None]:
    """Make a span of a step, to which all that it sends belongs."""
    from opentelemetry import trace

    with trace.get_tracer("sojourn").start_as_current_span(
        f"step/{name}", attributes={"sojourn.migration": migration}
    ):
        yield


def _begin_migration(task: Untyped = None, task_id: str = "", **_: object) -> None:
    """Let a migration's first task begin its trace; called before the span of the task is made."""
    if task is not None and task.name == FIRST_TASK:
        _BEGINNING.set(trace_id(task_id))


def _name_migration(args: Untyped = (), **_: object) -> None:
    """Put the migration's id on a task's span, to find it by; called when the span is made."""
    _BEGINNING.set(None)
    from opentelemetry import trace

    with contextlib.suppress(UsageError):
        trace.get_current_span().set_attribute(
            "sojourn.migration", Message.from_text(args[0] if args else "").id
        )
