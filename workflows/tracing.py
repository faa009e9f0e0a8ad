"""Traces of migrations by OpenTelemetry, if a site asks for them; without the extra ``otel`` nothing here is imported.

Celery's instrumentation makes a span of each message that is sent and of each task, and sends the trace along in the
messages' headers. Three things are ours:

* A migration's id is its trace's id, without the hyphens: so all its spans are in one trace, whoever sent a message,
  and a dispatch that begins another migration does not draw that one into the trace of the first.
* Each step has a span, ``step/NAME``, since a task may be several of them.
* Messages are signed after the trace has been added to their headers, since the signature is over all of them.

Spans are sent by a thread of each process, in the background; a collector that is away costs spans, and no migration.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from celery.signals import task_prerun, worker_process_init, worker_process_shutdown

from sojourn import __version__
from sojourn.errors import UsageError
from sojourn.model import Message
from sojourn.settings import Settings, variable
from tasks.step import AROUND

log = logging.getLogger("sojourn.tracing")

#: The trace of the migration whose first span is being made.
_BEGINNING: ContextVar[int | None] = ContextVar("beginning", default=None)

#: How long a collector may take to answer; a process that ends waits for it once more.
TIMEOUT_S = 2.0

#: The task whose id is a migration's.
FIRST_TASK = "sojourn.migrate"

TRACE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass
class Tracing:
    """Whether this process traces."""

    on: bool = False


TRACING = Tracing()


def is_wanted(settings: Settings) -> bool:
    """Whether a site has named a collector, as a setting or as every program with OpenTelemetry understands it."""
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return bool(settings.otel_endpoint or any(variable(name) for name in named))


def prepare(settings: Settings, sign_last: Callable[[], None]) -> None:
    """Trace in each process of a pool; ``sign_last`` lets signing come after all that adds headers."""
    if is_wanted(settings):
        # The threads that send spans do not survive a fork, so each process begins for itself.
        worker_process_init.connect(
            lambda **_: start(settings, sign_last), weak=False, dispatch_uid="sojourn-tracing-begin"
        )


def start(settings: Settings, sign_last: Callable[[], None]) -> None:
    """Trace what this process does from now on; where the libraries are missing, say so and go on without."""
    try:
        from opentelemetry import trace  # noqa: PLC0415  (an extra)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.instrumentation.celery import CeleryInstrumentor  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
    except ImportError as error:
        log.error("No traces are sent: %s. Install Sojourn with the extra `otel`.", error)  # noqa: TRY400
        return

    class Ids(RandomIdGenerator):  # type: ignore[misc, unused-ignore]
        def generate_trace_id(self) -> int:
            return _BEGINNING.get() or int(super().generate_trace_id())

    told = {"service.name": "sojourn", "service.version": __version__, "host.name": settings.host}
    provider = TracerProvider(resource=Resource.create(told), id_generator=Ids())
    endpoint = f"{settings.otel_endpoint.rstrip('/')}/v1/traces" if settings.otel_endpoint else None
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S)))
    trace.set_tracer_provider(provider)
    task_prerun.connect(_begin_migration, weak=False, dispatch_uid="sojourn-tracing-first")
    CeleryInstrumentor().instrument(tracer_provider=provider)
    task_prerun.connect(_name_migration, weak=False, dispatch_uid="sojourn-tracing-name")
    AROUND.append(_step)
    worker_process_shutdown.connect(lambda **_: provider.shutdown(), weak=False, dispatch_uid="sojourn-tracing-end")
    sign_last()
    TRACING.on = True


def trace_id(migration: str) -> int | None:
    """Return the id of a migration's trace; None for an id that can be none."""
    digits = migration.replace("-", "")
    return int(digits, 16) or None if TRACE_ID.fullmatch(digits) else None


@contextlib.contextmanager
def traced(migration: str, what: str) -> Iterator[None]:
    """Let what is sent meanwhile be in the migration's own trace; nothing happens where nothing is traced."""
    number = trace_id(migration)
    if not TRACING.on or number is None:
        yield
        return
    from opentelemetry import context, trace  # noqa: PLC0415

    if trace.get_current_span().get_span_context().trace_id == number:
        yield
        return
    token = _BEGINNING.set(number)
    try:
        # An empty context: else it would be a part of whatever this process is doing.
        span = trace.get_tracer("sojourn").start_span(what, context.Context())
    finally:
        _BEGINNING.reset(token)
    span.set_attribute("sojourn.migration", migration)
    with trace.use_span(span, end_on_exit=True):
        yield


@contextlib.contextmanager
def _step(name: str, migration: str) -> Iterator[None]:
    """Make a span of a step; what it sends and asks is part of it."""
    from opentelemetry import trace  # noqa: PLC0415

    with trace.get_tracer("sojourn").start_as_current_span(f"step/{name}", attributes={"sojourn.migration": migration}):
        yield


def _begin_migration(task: Any = None, task_id: str = "", **_: object) -> None:  # noqa: ANN401  (Celery has no types)
    """Let the first task of a migration begin its trace; called before the task's span is made."""
    if task is not None and task.name == FIRST_TASK:
        _BEGINNING.set(trace_id(task_id))


def _name_migration(args: Any = (), **_: object) -> None:  # noqa: ANN401  (whatever a task is called with)
    """Put the migration's id on the span of a step, so that it can be found by it; called when the span is made."""
    _BEGINNING.set(None)
    from opentelemetry import trace  # noqa: PLC0415

    with contextlib.suppress(UsageError):
        trace.get_current_span().set_attribute("sojourn.migration", Message.from_text(args[0] if args else "").id)
