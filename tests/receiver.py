"""A web server that receives notices: a real one, in this process, that answers as a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """What came, and what is answered: a status, or nothing at all while it ``sleeps``."""

    url: str = ""
    status: int = 204
    sleeps: threading.Event = field(default_factory=threading.Event)
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def notices(self) -> list[dict[str, Any]]:
        """What came, as JSON."""
        return [json.loads(body) for body in self.bodies]


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive on a free port of the loopback."""
    receiver = Receiver()
    receiver.sleeps.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.heads.append({name.lower(): value for name, value in self.headers.items()})
            receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.sleeps.wait(20)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(receiver.status)
                self.send_header("Location", f"{receiver.url}elsewhere")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}/hooks?of=sojourn"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield receiver
        finally:
            receiver.sleeps.set()
            server.shutdown()
