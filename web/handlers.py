"""Sojourn's pages on Flower's Tornado application: who may see and do what, and live updates.

A page is a shell, which needs no Redis, and a live part, which the server renders again when
something has changed and sends as a server-sent event
(https://html.spec.whatwg.org/multipage/server-sent-events.html). So a page that is opened while
Redis is away shows that, and fills itself later.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from base64 import b64decode
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from flower.views import BaseHandler
from flower.views.monitor import Metrics as FlowersMetrics
from prometheus_client import generate_latest
from tornado import web
from tornado.iostream import StreamClosedError
from tornado.web import StaticFileHandler, url

from sojourn import units
from sojourn.cluster.client import Cluster
from sojourn.cluster.metrics import CONTENT_TYPE
from sojourn.errors import SojournError, StoreUnreachable, UsageError
from sojourn.model import Json, Plan, Untyped
from sojourn.text import cleaned, printable
from web import guide, processes
from web.actions import ACTIONS, Effect, Request, act
from web.feed import Changes, Feed, Listener
from web.options import FLAGS, OF_A_DRAIN, OPTIONS, plan_of
from web.pages import BatchPage, HostPage, MigrationPage, Page, Surroundings, account_of
from web.rows import CARDS
from web.table import Query, view, zone
from workflows.logs import logs_of

log = logging.getLogger("sojourn.flower")

STATIC = Path(__file__).parent / "static"

#: How often a page is rendered again without an event: hosts announce their free memory without
#: one.
TICK_S = 2.0

#: After how many milliseconds a browser that has lost its connection comes back.
RETRY_MS = 1000

#: Nothing on our pages comes from another server, and no code or style stands inside a page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

#: Threads of our own: as long as Redis does not answer, Flower's are all busy waiting for it.
APART = ThreadPoolExecutor(max_workers=16, thread_name_prefix="page")

#: What the dialogue of a button may hold.
FIELDS = ("typed", "gone", "force", "pid", "to", *OPTIONS, *OF_A_DRAIN)

#: Every host name but those of loopback, as a pattern that Tornado matches with a request's Host.
ELSEWHERE = r"(?!(127\.0\.0\.1|\[?::1\]?|localhost)$).*"


class Ours(BaseHandler):  # type: ignore[misc, unused-ignore]  # Flower has no types
    """The base of all our pages."""

    def initialize(self, cluster: Cluster, feed: Feed) -> None:
        """Keep what Tornado passes to the handler of every request."""
        self.cluster, self.feed = cluster, feed

    def set_default_headers(self) -> None:
        """Let no other site read, frame or feed our pages."""
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def render_string(self, template_name: str, **values: Untyped) -> bytes:
        """Return a page without what a browser would not show, or would turn the direction by."""
        return printable(super().render_string(template_name, **values).decode()).encode()

    def check_xsrf_cookie(self) -> None:
        """Refuse requests that another site has caused, more strictly than Flower does.

        Browsers send ``Sec-Fetch-Site`` (https://www.w3.org/TR/fetch-metadata) and ``Origin``; all
        need the token from a page of ours.
        """
        self.check_site("same-origin")
        origin = self.request.headers.get("Origin")
        if origin and urlparse(origin).netloc != self.request.host:
            raise web.HTTPError(403, "Cross-origin request forbidden")
        # Not ``super()``: Flower asks for no token where there is no login, nor where the login is
        # HTTP's basic authentication, which browsers repeat by themselves.
        web.RequestHandler.check_xsrf_cookie(self)

    def check_site(self, *allowed: str) -> None:
        """Refuse a request that a browser reports to come from elsewhere."""
        site = self.request.headers.get("Sec-Fetch-Site")
        if site is not None and site not in allowed:
            raise web.HTTPError(403, "Cross-site request forbidden")

    @property
    def has_login(self) -> bool:
        """Whether everybody who comes here had to log in."""
        options = self.application.options
        return bool(options.basic_auth or options.auth)

    @property
    def operator(self) -> str:
        """The person at the browser, as journals and ledger name operators."""
        if isinstance(self.current_user, str):
            return f"{self.current_user} in Flower"
        _, _, credentials = self.request.headers.get("Authorization", "").partition(" ")
        return f"{b64decode(credentials).decode().partition(':')[0]} in Flower"

    def get_template_namespace(self) -> dict[str, Any]:
        """Return what every template may use."""
        ours = {"units": units, "may_act": self.has_login}
        return super().get_template_namespace() | ours

    def asked(self) -> Query:
        """Return what the address asks for."""
        names = self.request.arguments
        try:
            return Query.of({name: self.get_query_argument(name, "") for name in names})
        except UsageError as error:
            raise web.HTTPError(400, error.message) from None

    async def apart(self, call: Untyped, *args: Untyped) -> Untyped:
        """Run a call that may wait for Redis or a worker in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(APART, partial(call, *args))

    def tasks_of(self, account: Untyped) -> dict[tuple[str, str], str]:
        """Return Flower's tasks of a migration: the latest of each step and host."""
        mention, found = f"migration {account.id}", {}
        # A copy: events may add tasks meanwhile.
        for task in list(self.application.events.state.tasks.values()):
            if task.worker and mention in (task.args or ""):
                host = task.worker.hostname.partition("@")[2]
                found[task.name.removeprefix("sojourn."), host] = task.uuid
        return found

    def page(self, kind: str, name: str) -> Page:
        """Return the page of that kind and name."""
        if kind == "host":
            return HostPage(name, self.feed.all)
        return BatchPage(name) if kind == "batch" else MigrationPage(name)

    def fragment(self, page: Page, found: Json) -> str:
        """Return the live part of a page as HTML."""
        more = {"tasks": self.tasks_of(found["account"])} if "account" in found else {}
        return self.render_string(page.template, **found, **more).decode()


class Elsewhere(BaseHandler):  # type: ignore[misc, unused-ignore]
    """Requests for another name than localhost, where there is no login.

    Another site could point its own name at this machine, so that a browser here reads our pages
    for it (DNS rebinding).
    """

    def prepare(self) -> None:
        """Refuse the request."""
        raise web.HTTPError(403, "Without `flower_auth` Flower answers to localhost only.")


class Files(StaticFileHandler):  # type: ignore[misc, unused-ignore]
    """Our scripts and the style sheet.

    They refer to each other, so a browser must not mix versions: it asks for every use of a file
    whether that is still the current one.
    """

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002
        """Let the browser keep a file, but ask before it uses it. The signature is Tornado's."""
        self.set_header("Cache-Control", "no-cache")


class Table(Ours):
    """The page of all migrations, whose rows the browser fills in."""

    @web.authenticated
    def get(self) -> None:
        """Answer with the shell."""
        self.asked()  # a malformed address is refused here, where people see why
        self.render("migrations.html", cards=CARDS, zone=zone())


class Single(Ours):
    """The page of one migration, host or batch."""

    @web.authenticated
    async def get(self, kind: str, name: str) -> None:
        """Answer with the page; without its live part if Redis does not answer."""
        page, inner, away = self.page(kind, name), "", ""
        try:
            inner = self.fragment(page, await self.apart(page.load, self.cluster))
        except UsageError as error:
            raise web.HTTPError(404, f"{error.message} {error.hint}".strip()) from None
        except StoreUnreachable as error:
            away = error.message
        shown = {"kind": kind, "name": name, "inner": inner, "away": away}
        self.render("single.html", **shown, modes=Plan.MODES, flags=FLAGS)


class Stream(Ours):
    """A stream of events to a page, until that is closed."""

    def on_connection_close(self) -> None:
        """Note that the page was closed."""
        self.gone = True

    #: How long changes are collected before a page is sent them, so that many become one message.
    collect_s = 0.1

    async def stream(self, page: Page, listener: Listener) -> None:
        """Send the events of a page until it is closed."""
        self.gone = False
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")  # nginx would collect events otherwise
        # Sent at once, so that the browser sees an open stream before anything has changed.
        self.write(f"retry: {RETRY_MS}\n\n")
        self.feed.join(listener)
        try:
            await self.flush()
            async for name, data in self.events(page, listener):
                self.write(
                    f"event: {name}\ndata: {json.dumps(cleaned(data))}\n\n"
                    if name
                    else ": still here\n\n"
                )
                await self.flush()
        except StreamClosedError:
            pass  # the page was closed
        finally:
            self.feed.leave(listener)

    async def events(self, page: Page, listener: Listener) -> AsyncIterator[tuple[str, Any]]:
        """Yield the events of a page by name; one without a name only keeps the connection open."""
        before = None
        while not self.gone:
            for event in await self.rows(listener.changes()):
                yield event
            now = await self._now(page)
            yield now if now != before else ("", None)
            before = now
            if await listener.changed(TICK_S):
                await asyncio.sleep(self.collect_s)

    async def rows(self, changes: Changes) -> list[tuple[str, Any]]:  # noqa: ARG002  (see LiveTable)
        """Return the events about rows; only the table of all migrations has some."""
        return []

    async def _now(self, page: Page) -> tuple[str, Any]:
        """Return the live part of the page as it is now, or why it is not available."""
        try:
            return "part", self.fragment(page, await self.apart(page.load, self.cluster))
        except StoreUnreachable as error:
            return "away", f"{error.message} What is shown may be old."
        except UsageError as error:
            return "away", error.message


class LiveTable(Stream):
    """The stream of events to the page of all migrations."""

    #: Longer than of other pages: each message may need a look at all rows.
    collect_s = 0.4

    @web.authenticated
    async def get(self) -> None:
        """Send what the page's address asks for, and again what has changed of that."""
        self.query, self.shown = self.asked(), set[str]()
        self.before: Json = {}
        await self.stream(Surroundings(), Listener())

    async def rows(self, changes: Changes) -> list[tuple[str, Any]]:
        """Return the page of the table, or rows of it that have changed, or why it is not known."""
        away = [("away", changes.away)] if changes.away else []
        if changes.moved or self.query.slides:
            return await self._page(anyway=changes.moved) + away
        here = [row for row in changes.rows if row["id"] in self.shown]
        return ([("some", here)] if here else []) + away

    async def _page(self, *, anyway: bool) -> list[tuple[str, Any]]:
        now = await self.apart(view, self.feed.all(), self.query, time.time())
        if now == self.before and not anyway:
            return []
        self.before, self.shown = now, {row["id"] for row in now["rows"]}
        return [("page", now)]


class LiveSingle(Stream):
    """The stream of events to the page of one migration, host or batch."""

    @web.authenticated
    async def get(self, kind: str, name: str) -> None:
        """Send the live part, and again whenever it has changed."""
        page = self.page(kind, name)
        await self.stream(page, Listener(page.concerns))


class Processes(Ours):
    """The processes of a host, which its page asks for when they are opened."""

    @web.authenticated
    async def get(self, name: str) -> None:
        """Answer with a fragment of HTML, which shows why a host does not list any."""
        self.check_site("same-origin", "none")  # it is work for the host
        try:
            found = await self.apart(processes.load, self.cluster, name)
            hosts = await self.apart(self.cluster.registry.hosts)
        except SojournError as error:
            raise web.HTTPError(502, f"{error.message} {error.hint}".strip()) from None
        there = [host for host, info in hosts.items() if info and host != name]
        open_ones = [host for host in there if not hosts[host].cordoned]
        self.render("processes.html", name=name, hosts=open_ones, **found)


class Check(Ours):
    """Preflight's findings on one process of a host, for a destination and options."""

    @web.authenticated
    async def get(self, name: str) -> None:
        """Answer with JSON: ``look``, ``verdict``, ``findings``; or ``sentence`` why not."""
        self.check_site("same-origin", "none")  # it is work for both hosts
        fields = {field: self.get_query_argument(field, "") for field in FIELDS}
        try:
            found = await self.apart(processes.check, self.cluster, plan_of(name, fields))
        except SojournError as error:
            self.set_status(409)
            found = {"sentence": f"{error.message} {error.hint}".strip()}
        self.write(cleaned(found))


class Guide(Ours):
    """A page of the documentation, which comes with Sojourn."""

    @web.authenticated
    def get(self, path: str) -> None:
        """Answer with the page."""
        text = guide.page(path)
        if text is None:
            raise web.HTTPError(404, f"The documentation has no page {path}.")
        self.render("guide.html", path=path, text=text)


class Logs(Ours):
    """The logs of a migration from both hosts, which a page asks for when they are opened."""

    @web.authenticated
    async def get(self, migration: str) -> None:
        """Answer with a fragment of HTML, which names a host that does not answer."""
        try:
            account = await self.apart(account_of, self.cluster, migration)
            plan, errors = account.plan, self.get_argument("errors", "") == "1"
            hosts = [plan.source, plan.destination]
            found = await self.apart(partial(logs_of, account.id, hosts, only_errors=errors))
        except UsageError as error:
            raise web.HTTPError(404, error.message) from None
        except SojournError as error:
            raise web.HTTPError(502, error.message) from None
        self.render("logs.html", found=found, errors=errors)


class Button(Ours):
    """What the buttons post to."""

    @web.authenticated
    async def post(self, kind: str, name: str, action_name: str) -> None:
        """Act, and answer with JSON: ``sentence``, ``hint``, and ``see``, the path of a page."""
        # What is done here is recorded with the operator's name, and without a login there is none.
        if not self.has_login:
            raise web.HTTPError(403, "Without `flower_auth` no action is allowed here.")
        action = ACTIONS.get((kind, action_name))
        if action is None:
            raise web.HTTPError(404)
        fields = {field: self.get_body_argument(field, "") for field in FIELDS}
        request = Request(name, self.operator, fields)
        log.info("%s asks to %s %s %s", request.operator, action_name, kind, name)
        try:
            effect: Effect = await self.apart(act, action, self.cluster, request)
        except SojournError as error:
            self.set_status(503 if isinstance(error, StoreUnreachable) else 409)
            self.write(cleaned({"sentence": error.message, "hint": error.hint}))
            return
        see = self.reverse_url("sojourn-single", effect.kind, effect.id) if effect.id else ""
        self.write(cleaned({"sentence": effect.sentence, "hint": "", "see": see}))


class Metrics(FlowersMetrics):  # type: ignore[misc, unused-ignore]  # Flower has no types
    """Flower's metrics and the cluster's; as on Flower's own page of them, without a login."""

    async def get(self) -> None:
        """Answer in Prometheus's text format.

        They are made in a thread, since a Redis that hangs would hold up all other pages.
        """
        self.application.purge_offline_worker_metrics()
        text = await asyncio.get_running_loop().run_in_executor(APART, generate_latest)
        self.set_header("Content-Type", CONTENT_TYPE)
        self.write(text)


def handlers(cluster: Cluster, feed: Feed) -> list[Any]:
    """Return our handlers, for Tornado's ``add_handlers``."""
    shared = {"cluster": cluster, "feed": feed}
    single = r"/migrations/(migration|host|batch)/([a-z0-9-]{1,63})"
    return [
        url(r"/migrations", Table, shared, name="migrations"),
        (r"/migrations/live", LiveTable, shared),
        (r"/migrations/static/(.*)", Files, {"path": str(STATIC)}),
        url(single, Single, shared, name="sojourn-single"),
        (f"{single}/live", LiveSingle, shared),
        (r"/migrations/migration/([0-9a-f-]{8,40})/logs", Logs, shared),
        (r"/migrations/host/([a-z0-9-]{1,63})/processes", Processes, shared),
        (r"/migrations/host/([a-z0-9-]{1,63})/check", Check, shared),
        (r"/migrations/docs/(images/[a-z-]+\.png)", Files, {"path": str(guide.place())}),
        url(r"/migrations/docs/([a-z0-9/-]+\.md)", Guide, shared, name="sojourn-guide"),
        (f"{single}/([a-z]+)", Button, shared),
        (r"/metrics", Metrics),
    ]
