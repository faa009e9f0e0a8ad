"""Sends what follows a migration or a batch to the application of its caller.

That is what the caller's own worker would do at the end of a task: the next of a chain, callbacks
or error callbacks, the result where that application looks for it, and the count of a chord's
parts. Who ends a migration does it; if that process dies before it is done, or Redis refuses, the
reconcilers do it again. So each of them is sent at least once, with the id that it had from the
beginning.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from urllib.parse import urlsplit, urlunsplit

from celery import Celery, states
from celery.app.task import Context
from kombu.exceptions import OperationalError

from sojourn.cluster.kept import REFUSALS
from sojourn.errors import SojournError, StoreUnreachable
from sojourn.messaging import follow_up
from sojourn.messaging.follow_up import Place
from sojourn.messaging.task import CALLS
from sojourn.migration.context import Host, this_host
from sojourn.model import Json, Untyped
from sojourn.settings import Settings, load

log = logging.getLogger("sojourn.following")

#: How many other applications a process keeps its connections for.
APPLICATIONS = 8


def follow(app: Untyped, about: str) -> None:
    """Send what follows a migration or a batch whose result is stored; safe to repeat."""
    host = this_host()
    try:
        if host.requests.of(about).follow_up is None:
            return
        host.requests.owe(about)
        _send_once(app, host, about)
    except StoreUnreachable as error:
        log.warning("What follows %s is sent later: %s", about, error)


def send_owed(app: Untyped) -> None:
    """Send what is still owed since a process died, or Redis refused. Raises StoreUnreachable."""
    host = this_host()
    for about in host.requests.owed():
        _send_once(app, host, about)


def _send_once(app: Untyped, host: Host, about: str) -> None:
    if not host.requests.is_mine_to_send(about):
        return
    outcome, text = app.backend.get_task_meta(about), host.requests.of(about).follow_up
    if text is not None and outcome["status"] in states.READY_STATES:
        try:
            _send(*follow_up.read(text), outcome)
        except (OperationalError, OSError, *REFUSALS) as error:
            log.error("What follows %s cannot be sent, and is tried again: %s", about, error)
            return
    host.requests.sent(about)


def _send(place: Place, request: Json, outcome: Json) -> None:
    app = _application(place)
    context = Context(request, delivery_info={})
    if outcome["status"] == states.SUCCESS:
        _succeed(app, context, outcome["result"])
    else:
        app.backend.mark_as_failure(
            context.id, outcome["result"], request=context, state=outcome["status"]
        )


def _succeed(app: Untyped, context: Untyped, result: Json) -> None:
    """Do what Celery's workers do after a task, in their order."""
    family = {"parent_id": context.id, "root_id": context.root_id or context.id}
    for callback in context.callbacks or ():
        app.signature(callback).apply_async((result,), **family)
    if context.chain:
        _go_on(app, context, result, family)
    app.backend.mark_as_done(context.id, result, request=context)


def _go_on(app: Untyped, context: Untyped, result: Json, family: Json) -> None:
    """Send the next task of a chain, which takes the others along; else the chain has failed."""
    *others, following = context.chain
    try:
        app.signature(following).apply_async((result,), chain=others, **family)
    except SojournError as error:
        options = following["options"]
        names = {name: options.get(option) for option, name in follow_up.NAMES.items()}
        failed = Context(names, id=options["task_id"], chain=others, delivery_info={})
        app.backend.mark_as_failure(failed.id, error, request=failed)


@lru_cache(APPLICATIONS)
def _application(place: Place) -> Untyped:
    """Return an application with the queues and results of another one, in our Redis."""
    settings = load()
    app = Celery(
        "caller",
        set_as_current=False,
        broker=_url(settings, place.broker),
        backend=_url(settings, place.results),
    )
    tls = settings.redis_tls
    app.conf.update(
        task_default_queue=place.queue,
        broker_transport_options={"global_keyprefix": place.broker_prefix},
        result_backend_transport_options={"global_keyprefix": place.results_prefix},
        **({"broker_use_ssl": tls, "redis_backend_use_ssl": tls} if tls else {}),
    )
    # A chain may go on with another migration: that is for us again, and not for its queues.
    for call in CALLS:
        app.register_task(call())
    return app


def _url(settings: Settings, database: int | None) -> str | None:
    if database is None:
        return None
    return urlunsplit(urlsplit(settings.redis_url)._replace(path=f"/{database}"))
