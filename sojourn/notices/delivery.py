"""One attempt to deliver a notice: an HTTP request, or a run of an executable."""

from __future__ import annotations

import http.client
import ssl
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from sojourn import __version__
from sojourn.errors import SojournError
from sojourn.notices.notice import Notice
from sojourn.notices.signature import signed
from sojourn.notices.target import Target, unsafe
from sojourn.system.run import run
from sojourn.text import one_line

#: How much of an answer is kept for people.
SHOWN = 300


class NotDelivered(Exception):
    """An attempt failed, with a sentence; ``for_good`` if the receiver wants no more of it."""

    def __init__(self, why: str, *, for_good: bool = False) -> None:
        super().__init__(one_line(why)[:SHOWN])
        self.why, self.for_good = one_line(why)[:SHOWN], for_good


@dataclass(frozen=True)
class Sender:
    """Delivers notices, with a secret for web addresses; an attempt takes ``timeout_s`` at most."""

    secret: bytes
    timeout_s: float

    def deliver(self, notice: Notice, target: Target) -> str:
        """Deliver a notice; return what the receiver answered. Raises NotDelivered."""
        if target.is_webhook:
            return self._post(notice, target)
        return self._run(notice, Path(target.where))

    def _post(self, notice: Notice, target: Target) -> str:
        body = notice.body.encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"sojourn/{__version__}",
            **signed(self.secret, notice.id, int(time.time()), body),
        }
        try:
            status = self._answer(target, body, headers)
        # HTTPException: what answered does not speak HTTP.
        except (OSError, http.client.HTTPException) as error:
            raise NotDelivered(f"{target.name}: {error or type(error).__name__}") from None
        answer = f"{target.name} answered {status}"
        if status == HTTPStatus.GONE:
            raise NotDelivered(f"{answer}: it wants no more of it", for_good=True)
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise NotDelivered(answer)
        return answer

    def _answer(self, target: Target, body: bytes, headers: dict[str, str]) -> int:
        """Return the status of the answer, of which nothing more is read."""
        until = time.monotonic() + self.timeout_s
        connection = _connection(target, self.timeout_s)
        try:
            connection.connect()
            # Both the connection and the answer must fit into the same time.
            connection.sock.settimeout(max(0.001, until - time.monotonic()))
            connection.request("POST", _path(target), body, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def _run(self, notice: Notice, executable: Path) -> str:
        # Not SOJOURN_MIGRATION: processes with that variable are ended with their migration.
        about = {
            "NOTICE_ID": notice.id,
            "NOTICE_TYPE": notice.type,
            "MIGRATION_ID": notice.migration,
            "MIGRATION_STATE": notice.state,
        }
        try:
            if why := unsafe(executable):
                raise NotDelivered(f"It was not run: {why}")
            run([executable], deadline_s=self.timeout_s, stdin=notice.body, env=about)
        except (SojournError, OSError) as error:
            raise NotDelivered(str(error)) from None
        return "it ended with exit code 0"


def _connection(target: Target, timeout_s: float) -> http.client.HTTPConnection:
    host, port = target.url.hostname or "", target.url.port
    if target.url.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)


def _path(target: Target) -> str:
    url = target.url
    return f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
