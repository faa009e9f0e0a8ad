"""The logs of one migration, as the worker of each host reads them; nothing is touched."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from celery import shared_task
from celery.exceptions import TimeoutError as NoAnswer

from sojourn import logbook
from sojourn.host import this_host
from sojourn.logbook import Log
from sojourn.model import Json, Role
from workflows.app import the_app
from workflows.call import Call
from workflows.canvas import lane
from workflows.survey import ANSWER_S, SURVEY_S


@shared_task(name="sojourn.logs", base=Call)
def read_logs(migration: str, *, only_errors: bool) -> list[Json]:
    """Return this host's logs of a migration; none of one that it has never heard of, whose id may be any path."""
    host = this_host()
    if not any(host.journal.entry(migration, role) for role in Role):
        return []
    return [asdict(log) for log in logbook.read(host.directory(migration).work, only_errors=only_errors)]


def logs_of(migration: str, hosts: Collection[str], *, only_errors: bool) -> dict[str, list[Log] | None]:
    """Ask hosts, all at once, for their logs of a migration; None for a host that does not answer."""
    asked = {host: _ask(host, migration, only_errors=only_errors) for host in _answering(hosts)}
    until = time.monotonic() + SURVEY_S
    return {host: _answer(asked[host], until) if host in asked else None for host in hosts}


def _answering(hosts: Collection[str]) -> list[str]:
    """Return the hosts whose workers answer now, so that nobody waits for one that is down."""
    answers = the_app().control.ping(destination=[f"main@{host}" for host in hosts], timeout=ANSWER_S)
    answered = {name for answer in answers for name in answer}
    return [host for host in hosts if f"main@{host}" in answered]


def _ask(host: str, migration: str, *, only_errors: bool) -> Any:  # noqa: ANN401  (Celery has no types)
    queue = lane(host, frozen=False)
    return read_logs.apply_async((migration,), {"only_errors": only_errors}, queue=queue, expires=SURVEY_S)


def _answer(answer: Any, until: float) -> list[Log] | None:  # noqa: ANN401
    with contextlib.suppress(NoAnswer):
        found = answer.get(timeout=max(0.1, until - time.monotonic()))
        # The result is large and would stay in Redis for days.
        answer.forget()
        return [Log(**log) for log in found]
    return None
