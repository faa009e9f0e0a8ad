"""Looking around on a host: which of its processes could be migrated."""

from __future__ import annotations

from dataclasses import asdict

from celery import shared_task

from sojourn.host import this_host
from sojourn.model import Json
from sojourn.preflight import candidate


@shared_task(name="sojourn.candidates")
def candidates() -> list[Json]:
    """Return this host's candidates, the largest first."""
    return [asdict(each) for each in candidate.survey(this_host().worker_pid())]
