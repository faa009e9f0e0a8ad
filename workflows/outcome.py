"""The outcome of a call, where callers and monitors look for it: its result, Flower, what follows.

The task of a call left its result open (``Ignore``), since a migration ends long after it.
"""

from __future__ import annotations

import json
import logging

from celery import states
from kombu.exceptions import OperationalError

from sojourn.migration.context import this_host
from sojourn.model import Untyped
from workflows.following import follow

log = logging.getLogger("sojourn.conclude")

#: The events by which Celery's workers report each end, and where each has what it came to.
EVENTS = {
    states.SUCCESS: ("task-succeeded", "result"),
    states.FAILURE: ("task-failed", "exception"),
    states.REVOKED: ("task-revoked", "exception"),
}


def store(app: Untyped, about: str, outcome: Untyped, state: str, runtime_s: float) -> None:
    """Store what a call came to, report it to monitors, and send what follows. Safe to repeat."""
    app.backend.store_result(about, outcome, state)
    _report(app, about, outcome, state, runtime_s)
    follow(app, about)


def _report(app: Untyped, about: str, outcome: Untyped, state: str, runtime_s: float) -> None:
    """Report the end as the worker would that did the task; nobody waits for this report."""
    kind, name = EVENTS[state]
    worker = f"main@{this_host().name}"
    try:
        with app.events.default_dispatcher(hostname=worker) as dispatcher:
            dispatcher.send(kind, uuid=about, runtime=runtime_s, **{name: _shown(outcome)})
    except (OperationalError, OSError) as error:
        log.warning("The end of %s is not reported to monitors: %s", about, error)


def _shown(outcome: Untyped) -> str:
    """Return what a call came to as monitors expect it, the text of Python's own types."""
    return repr(json.loads(json.dumps(outcome)) if isinstance(outcome, dict) else outcome)
