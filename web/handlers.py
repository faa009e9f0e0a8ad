"""Sojourn's pages on Flower's Tornado application: who may see and do what, and how changes reach a page that is open.

A page is a shell, which asks for nothing but who is there, and a live part, which the server renders anew when
something has changed and sends as a server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html).
So a page that is opened while Redis is away says so, and fills itself later.
"""

from __future__ import annotations

import asyncio
import json
import logging
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

from sojourn.cluster import Cluster
from sojourn.errors import SojournError, StoreUnreachable, UsageError
from sojourn.metrics import CONTENT_TYPE
from sojourn.model import Json
from web import figures, readable
from web.acts import ACTS, Asked, Done
from web.feed import Feed, Listener
from web.pages import BatchPage, HostPage, MigrationPage, Page, Surroundings, account_of
from workflows.logs import logs_of

log = logging.getLogger("sojourn.flower")

STATIC = Path(__file__).parent / "static"

#: How often a page is looked at anew when nothing was told: hosts announce their room without an event.
TICK_S = 2.0

#: How long changes are collected before a page hears of them, so that many at once are one message.
COLLECT_S = 0.1

#: A browser that has lost its connection comes back after so many milliseconds.
RETRY_MS = 1000

#: Nothing on our pages comes from elsewhere, and none of it is written into the page as code or style.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

#: Our own threads: Flower's are all busy with Celery when Redis does not answer, for as long as it does not.
APART = ThreadPoolExecutor(max_workers=16, thread_name_prefix="page")

#: Every name but those of this machine's loopback, as Tornado matches the names that requests are for.
ELSEWHERE = r"(?!(127\.0\.0\.1|\[?::1\]?|localhost)$).*"


class Ours(BaseHandler):  # type: ignore[misc, unused-ignore]  # Flower has no types
    """What all our pages have in common."""

    def initialize(self, cluster: Cluster, feed: Feed) -> None:
        """Take what Tornado hands to each request."""
        self.cluster, self.feed = cluster, feed

    def set_default_headers(self) -> None:
        """Let no other site read, frame or feed our pages."""
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """Refuse what another site has sent, and what has not read a page of ours first. Stricter than Flower."""
        site, origin = self.request.headers.get("Sec-Fetch-Site"), self.request.headers.get("Origin")
        if site not in {None, "same-origin"}:
            raise web.HTTPError(403, "Cross-site request forbidden")
        if origin and urlparse(origin).netloc != self.request.host:
            raise web.HTTPError(403, "Cross-origin request forbidden")
        web.RequestHandler.check_xsrf_cookie(self)

    @property
    def asks_who(self) -> bool:
        """Whether everybody who comes here had to say who they are."""
        options = self.application.options
        return bool(options.basic_auth or options.auth)

    @property
    def who(self) -> str:
        """The person at the browser, as journals and ledger name operators."""
        if isinstance(self.current_user, str):
            return f"{self.current_user} in Flower"
        _, _, credentials = self.request.headers.get("Authorization", "").partition(" ")
        return f"{b64decode(credentials).decode().partition(':')[0]} in Flower"

    def get_template_namespace(self) -> dict[str, Any]:
        """Return what every template may use."""
        ours = {"asset": asset, "figures": figures, "may_act": self.asks_who, "json": json}
        return super().get_template_namespace() | ours

    async def apart(self, call: Any, *args: Any) -> Any:  # noqa: ANN401
        """Run what may wait for Redis or a worker in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(APART, partial(call, *args))

    def tasks_of(self, account: Any) -> dict[tuple[str, str], str]:  # noqa: ANN401
        """Return Flower's tasks of a migration: the latest of each step and host. One task may be several steps."""
        mark, found = f"migration {account.id}", {}
        for task in list(self.application.events.state.tasks.values()):
            if task.worker and mark in (task.args or ""):
                host = task.worker.hostname.partition("@")[2]
                steps = [task.name.removeprefix("sojourn."), *readable.following(task.kwargs)]
                found.update({(step, host): task.uuid for step in steps})
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
    """A name that another site may have pointed at this machine, to read what nobody is asked a password for."""

    def prepare(self) -> None:
        """Refuse everything."""
        raise web.HTTPError(403, "Without `flower_auth` Flower answers to localhost only.")


class Files(StaticFileHandler):  # type: ignore[misc, unused-ignore]
    """Our scripts and the style sheet; a browser asks each time whether they are new, since they name each other."""

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002  (the signature is Tornado's)
        """Let the browser keep a file, but not use it unasked."""
        self.set_header("Cache-Control", "no-cache")


class Table(Ours):
    """All migrations: the shell, which the browser fills."""

    @web.authenticated
    def get(self) -> None:
        """Answer with the shell."""
        self.render("migrations.html")


class Single(Ours):
    """One migration, host or batch."""

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
        self.render("single.html", kind=kind, name=name, inner=inner, away=away)


class Stream(Ours):
    """An endless answer of events, until the page is closed."""

    def on_connection_close(self) -> None:
        """Note that nobody listens any more."""
        self.gone = True

    async def stream(self, page: Page, listener: Listener) -> None:
        """Send what ``told`` says whenever something has changed, or a while has passed."""
        self.gone = False
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        self.write(f"retry: {RETRY_MS}\n\n")
        self.feed.join(listener)
        try:
            await self.flush()
            async for name, data in self.told(page, listener):
                self.write(f"event: {name}\ndata: {json.dumps(data)}\n\n" if name else ": still here\n\n")
                await self.flush()
        except StreamClosedError:
            pass  # the page was closed
        finally:
            self.feed.leave(listener)

    async def told(self, page: Page, listener: Listener) -> AsyncIterator[tuple[str, Any]]:
        """Yield the events for a page, each with its name; one without a name keeps the connection."""
        before = None
        while not self.gone:
            for event in self.rows(listener):
                yield event
            now = await self._now(page)
            yield now if now != before else ("", None)
            before = now
            if await listener.changed(TICK_S):
                await asyncio.sleep(COLLECT_S)

    def rows(self, listener: Listener) -> list[tuple[str, Any]]:  # noqa: ARG002  (see LiveTable)
        """Return what is to be told of rows."""
        return []

    async def _now(self, page: Page) -> tuple[str, Any]:
        """Return the live part of the page as it is now, or why it can not be had."""
        try:
            return "part", self.fragment(page, await self.apart(page.load, self.cluster))
        except StoreUnreachable as error:
            return "away", f"{error.message} What is shown may be old."
        except UsageError as error:
            return "away", error.message


class LiveTable(Stream):
    """What changes in the table."""

    @web.authenticated
    async def get(self) -> None:
        """Tell all rows, then each that changes."""
        await self.stream(Surroundings(), Listener())

    def rows(self, listener: Listener) -> list[tuple[str, Any]]:
        """Return all rows, or those that have changed, or why they are not known."""
        rows, anew, away = list(listener.rows.values()), listener.anew, listener.away
        listener.rows, listener.anew, listener.away = {}, False, ""
        told: list[tuple[str, Any]] = [("all", rows)] if anew else [("some", rows)] if rows else []
        return [*told, ("away", away)] if away else told


class LiveSingle(Stream):
    """What changes on the page of one migration, host or batch."""

    @web.authenticated
    async def get(self, kind: str, name: str) -> None:
        """Tell the live part, and again whenever it is another one."""
        page = self.page(kind, name)
        await self.stream(page, Listener(page.concerns))


class Logs(Ours):
    """The logs of a migration, from both hosts, when somebody asks."""

    @web.authenticated
    async def get(self, migration: str) -> None:
        """Answer with a piece of HTML; a host that does not answer is named."""
        try:
            account = await self.apart(account_of, self.cluster, migration)
            plan, errors = account.plan, self.get_argument("errors", "") == "1"
            hosts = [plan.source, plan.destination]
            found = await self.apart(partial(logs_of, account.id, hosts, only_errors=errors))
        except SojournError as error:
            raise web.HTTPError(502, error.message) from None
        self.render("logs.html", found=found, errors=errors)


class Press(Ours):
    """A button."""

    @web.authenticated
    async def post(self, kind: str, name: str, word: str) -> None:
        """Do it, and answer with what came of it as JSON: ``said``, ``hint``, and ``see``, where to look."""
        if not self.asks_who:
            raise web.HTTPError(403, "Without `flower_auth` nobody may act here.")
        act = ACTS.get((kind, word))
        if act is None:
            raise web.HTTPError(404)
        fields = {field: self.get_body_argument(field, "") for field in ("typed", "gone")}
        asked = Asked(name, self.who, fields)
        log.info("%s asks to %s %s %s", asked.who, word, kind, name)
        try:
            done: Done = await self.apart(act, self.cluster, asked)
        except SojournError as error:
            self.set_status(503 if isinstance(error, StoreUnreachable) else 409)
            self.write({"said": error.message, "hint": error.hint})
            return
        see = self.reverse_url("sojourn-single", done.kind, done.id) if done.id else ""
        self.write({"said": done.sentence, "hint": "", "see": see})


class Metrics(FlowersMetrics):  # type: ignore[misc, unused-ignore]  # Flower has no types
    """Flower's metrics and the cluster's; like Flower's own page of them, it asks nobody who they are."""

    async def get(self) -> None:
        """Answer in Prometheus's text format. Other pages go on meanwhile: Redis may take seconds not to answer."""
        self.application.purge_offline_worker_metrics()
        told = await asyncio.get_running_loop().run_in_executor(APART, generate_latest)
        self.set_header("Content-Type", CONTENT_TYPE)
        self.write(told)


def handlers(cluster: Cluster, feed: Feed) -> list[Any]:
    """Return our handlers, for Tornado's ``add_handlers``."""
    with_ = {"cluster": cluster, "feed": feed}
    single = r"/migrations/(migration|host|batch)/([a-z0-9-]{1,63})"
    return [
        url(r"/migrations", Table, with_, name="migrations"),
        (r"/migrations/live", LiveTable, with_),
        (r"/migrations/static/(.*)", Files, {"path": str(STATIC)}),
        url(single, Single, with_, name="sojourn-single"),
        (f"{single}/live", LiveSingle, with_),
        (r"/migrations/migration/([0-9a-f-]{8,40})/logs", Logs, with_),
        (f"{single}/([a-z]+)", Press, with_),
        (r"/metrics", Metrics),
    ]


def asset(name: str) -> str:
    """Return the address of a file of ours."""
    return f"/migrations/static/{name}"
