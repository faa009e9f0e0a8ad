"""Flower as Sojourn starts it: one server and one Tornado application, with our pages on it.

Files it writes: ``state_dir/flower/`` (0700), where Flower keeps the history of tasks from start to
start.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import signal

from flower.app import Flower
from flower.command import apply_env_options, extract_settings
from flower.events import Events
from flower.inspector import Inspector
from flower.options import options
from flower.urls import settings as tornado_settings
from prometheus_client import REGISTRY
from tornado.ioloop import IOLoop, PeriodicCallback

from sojourn.cluster.client import Cluster
from sojourn.cluster.metrics import cluster_collector
from sojourn.errors import SojournError, UsageError
from sojourn.model import Json, Untyped
from sojourn.settings import Settings
from web import readable
from web.feed import Feed
from web.handlers import ELSEWHERE, Elsewhere, handlers
from web.templates import Templates
from workflows.app import the_app

log = logging.getLogger("sojourn.flower")

#: How often the history of tasks is written, besides at the end.
SAVE_MS = 60_000

#: How often all workers are asked for their queues, and how long they have to answer.
INSPECT_MS = 30_000
ANSWER_MS = 2_000.0

#: What Flower's own table of tasks shows.
COLUMNS = "name,state,args,result,received,runtime,worker,uuid"

#: What a worker lists of tasks with their arguments.
LISTS = {"active", "reserved", "scheduled"}


class ReadableEvents(Events):
    """Flower's view of the tasks, with arguments and results that people can read and may see."""

    def on_event(self, event: Json) -> None:
        """Apply one event of Celery's."""
        super().on_event(readable.event(event))


class ReadableInspector(Inspector):
    """Flower's view of the workers, with the arguments of their tasks treated alike."""

    def _on_update(self, workername: str, method: str, response: Untyped) -> None:
        super()._on_update(
            workername, method, readable.tasks(response) if method in LISTS else response
        )


def serve(settings: Settings) -> None:
    """Run Flower until it is asked to end. Raises UsageError if others could use it unasked."""
    flower = application(settings)
    REGISTRY.register(cluster_collector(settings))  # Flower serves this registry on /metrics
    try:
        port = flower.start_http_server()
    except OSError as error:
        raise SojournError(
            f"Flower cannot listen on {settings.flower_address} port {settings.flower_port}: "
            f"{error.strerror}.",
            "Does another Flower run? `flower_port` and `flower_address` choose another place.",
        ) from None
    log.info(
        "Flower is at http%s://%s:%s",
        "s" if flower.ssl_options else "",
        settings.flower_address,
        port,
    )
    # A handler may interrupt the loop anywhere, so it only asks the loop to stop Flower.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: flower.io_loop.add_callback_from_signal(flower.stop))
    # Flower itself asks the workers for their queues at its start only, when workers that start at
    # the same time are not there yet.
    PeriodicCallback(flower.update_workers, INSPECT_MS).start()
    flower.start()


def application(settings: Settings) -> Untyped:
    """Return Flower with our pages on it, not yet listening. Raises UsageError."""
    _configure(settings)
    check_access(settings)
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    extract_settings()
    capp, loop = the_app(), IOLoop.current()
    # Canvases are sent from other threads, for which Celery has no current application.
    capp.set_default()
    cookies = {"samesite": "Strict", "secure": "ssl_options" in tornado_settings}
    flower = Flower(
        capp=capp,
        options=options,
        events=_events(capp, loop),
        io_loop=loop,
        **tornado_settings | {"template_loader": Templates(), "xsrf_cookie_kwargs": cookies},
    )
    flower.inspector = ReadableInspector(loop, capp, options.inspect_timeout / 1000)
    cluster = Cluster()
    feed = Feed(cluster, loop)
    # Before our pages: Tornado takes the first handlers whose pattern matches the request's host.
    if not has_login():
        flower.add_handlers(ELSEWHERE, [(r".*", Elsewhere)])
    flower.add_handlers(r".*", handlers(cluster, feed))
    feed.start()
    return flower


def check_access(settings: Settings) -> None:
    """Raise UsageError if Flower would listen beyond loopback without a login."""
    if has_login() or is_loopback(settings.flower_address):
        return
    raise UsageError(
        f"Flower would be open to everybody who can reach {settings.flower_address}.",
        "Set `flower_auth` to user:password, or `flower_address` to 127.0.0.1.",
    )


def has_login() -> bool:
    """Whether Flower's pages ask for a login."""
    return bool(options.auth or options.basic_auth)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address; of names only ``localhost`` counts as such."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _configure(settings: Settings) -> None:
    """Set Flower's options: first from its own variables ``FLOWER_…``, then from our settings."""
    apply_env_options()
    place = settings.state_dir / "flower"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    options.address, options.port = settings.flower_address, settings.flower_port
    options.db, options.persistent, options.state_save_interval = (
        str(place / "tasks"),
        True,
        SAVE_MS,
    )
    options.tasks_columns, options.inspect_timeout = COLUMNS, ANSWER_MS
    # Flower's own buttons and API know no plan: they could end a step in its middle, or start one
    # without those before it.
    options.read_only = True
    # Derived from the cluster's key: sessions survive a restart, and only who has the key can forge
    # one.
    options.cookie_secret = hmac.new(
        _key(settings), b"sojourn flower cookies", hashlib.sha256
    ).hexdigest()
    auth = settings.flower_auth.get_secret_value()
    if auth:
        options.basic_auth = [_credentials(auth)]


def _key(settings: Settings) -> bytes:
    return settings.key.get_secret_value().encode()


def _credentials(auth: str) -> str:
    user, _, password = auth.partition(":")
    if not user or not password:
        raise UsageError("The setting 'flower_auth' is malformed.", "Write it as user:password.")
    return auth


def _events(capp: Untyped, loop: IOLoop) -> ReadableEvents:
    return ReadableEvents(
        capp,
        loop,
        db=options.db,
        persistent=options.persistent,
        enable_events=options.enable_events,
        state_save_interval=options.state_save_interval,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
    )
