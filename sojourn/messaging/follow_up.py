"""What follows a migration in another application: its chain, callbacks, error callbacks, chord.

The other application has its own queues and its own workers. So the caller leaves with Sojourn what
its own worker would send at the end of the task, and where to: the database of its queues and of
its results, if both are in the Redis that the cluster has too. A worker of Sojourn sends it from
there (``workflows/following.py``). No address and no password travels, only the number of a
database, so a message can make a worker connect nowhere else.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kombu.exceptions import EncodeError
from kombu.utils import json
from kombu.utils.url import parse_url

from sojourn.errors import UsageError
from sojourn.messaging import names
from sojourn.model import Json, Untyped

#: What Celery's own names of these options are in the request of a task that runs.
NAMES = {
    "chain": "chain",
    "link": "callbacks",
    "link_error": "errbacks",
    "chord": "chord",
    "group_id": "group",
    "group_index": "group_index",
    "root_id": "root_id",
    "parent_id": "parent_id",
}

#: Those of them that must be sent somewhere; the others only say to what a task belongs.
SENT = ("chain", "link", "link_error", "chord")

REDIS = ("redis", "rediss")


@dataclass(frozen=True)
class Place:
    """Where an application has its queues and results, as numbers of databases of our Redis.

    None where they are elsewhere, or where it keeps no results.
    """

    broker: int | None
    results: int | None
    queue: str
    broker_prefix: str = ""
    results_prefix: str = ""


def written(app: Untyped, redis_url: str, task_id: str, options: Mapping[str, Untyped]) -> str:
    """Return as JSON what follows a task of this application, empty if nothing can and none need.

    Raises UsageError for what would follow and cannot be sent.
    """
    place = place_of(app, redis_url)
    asked = {name: options.get(option) for option, name in NAMES.items()}
    request = {name: value for name, value in asked.items() if value is not None}
    _check(app, place, options)
    if place.broker is None and place.results is None:
        return ""
    for name in ("callbacks", "errbacks"):
        if name in request and isinstance(request[name], Mapping):
            request[name] = [request[name]]
    request = {name: _routed(app, value) for name, value in request.items()}
    try:
        return str(json.dumps({"place": asdict(place), "request": {"id": task_id, **request}}))
    except (EncodeError, TypeError) as error:
        raise UsageError(
            f"What follows the migration cannot be written as JSON: {error}."
        ) from None


def read(text: str) -> tuple[Place, Json]:
    """Return what ``written`` wrote: the place, and the request as Celery names its parts."""
    found = json.loads(text)
    return Place(**found["place"]), dict(found["request"])


def place_of(app: Untyped, redis_url: str) -> Place:
    """Return where an application has its queues and results, as seen from our Redis."""
    broker = app.connection_for_write()
    return Place(
        broker=_database(broker.as_uri(include_password=True), redis_url),
        results=_results_of(app, redis_url),
        queue=app.conf.task_default_queue,
        broker_prefix=(app.conf.broker_transport_options or {}).get("global_keyprefix", ""),
        results_prefix=(app.conf.result_backend_transport_options or {}).get(
            "global_keyprefix", ""
        ),
    )


def keeps_results_here(app: Untyped, redis_url: str) -> bool:
    """Whether an application keeps its results in our Redis."""
    return _results_of(app, redis_url) is not None


def _check(app: Untyped, place: Place, options: Mapping[str, Untyped]) -> None:
    """Raise UsageError for what could never follow."""
    if place.broker is None and any(options.get(name) for name in SENT):
        raise UsageError(
            f"What follows the migration cannot be sent: the application {app.main!r} has its "
            "queues elsewhere, and Sojourn reaches only the Redis of its own cluster.",
            "Use that Redis as the broker, in a database of your own, or the setting `on_end`.",
        )
    if options.get("group_id") and place.results is None and app.conf.result_backend:
        raise UsageError(
            f"The group would never be complete: the application {app.main!r} keeps its results "
            "elsewhere, and Sojourn reaches only the Redis of its own cluster.",
            "Use that Redis as the result backend, in a database of your own.",
        )
    if "json" not in _accepted(app) and any(options.get(name) for name in SENT):
        raise UsageError(
            f"What follows the migration would be refused by the application {app.main!r}: it does "
            "not accept JSON.",
            "Add json to its accept_content.",
        )


def _accepted(app: Untyped) -> list[str]:
    return [str(kind).removeprefix("application/") for kind in app.conf.accept_content]


def _results_of(app: Untyped, redis_url: str) -> int | None:
    results = app.conf.result_backend
    return _database(results if isinstance(results, str) else "", redis_url)


def _database(url: str, ours: str) -> int | None:
    """Return the number of the database that a URL names, None if it is not in our Redis."""
    there, here = parse_url(url), parse_url(ours)
    if there["transport"] not in REDIS or _address(there) != _address(here):
        return None
    path = str(there["virtual_host"] or "0").strip("/")
    return int(path) if path.isdecimal() else None


def _address(parts: Json) -> tuple[str, int]:
    """Return where a server listens; of a name that cannot be looked up, the name."""
    host, port = parts["hostname"] or "localhost", int(parts["port"] or 6379)
    try:
        return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]), port
    except OSError:
        return host, port


def _routed(app: Untyped, value: Untyped) -> Untyped:
    """Return signatures, and those that they hold, for the queues that their application chooses.

    Whoever sends them later does not have its routes.
    """
    if isinstance(value, list | tuple):
        return [_routed(app, each) for each in value]
    if not isinstance(value, Mapping):
        return value
    held = {name: _routed(app, each) for name, each in value.items()}
    is_task = "task" in held and "options" in held and not held.get("subtask_type")
    if not is_task or held["task"] in names.CALLS:
        return held
    options = held["options"]
    chosen = app.amqp.router.route(dict(options), held["task"], held["args"], held["kwargs"])
    queue = chosen.get("queue")
    return {**held, "options": {**options, "queue": getattr(queue, "name", queue)}}
