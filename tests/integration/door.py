"""Flower as ``sojourn flower`` starts it, and as a program talks to it."""

from __future__ import annotations

import base64
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from sojourn.cluster.ledger import Ledger
from sojourn.cluster.store import Store
from sojourn.model import Plan
from sojourn.security.seal import Seal
from sojourn.system.run import Child, spawn
from tests.conftest import eventually
from tests.integration.conftest import KEY, ROOT, Redis

LOGIN = "ann:apassword"

#: An answer may take so long.
PATIENCE_S = 60


@dataclass(frozen=True)
class Answer:
    """What Flower answered to a program: its code, its headers and its text."""

    code: int
    headers: dict[str, str]
    text: str


class Door:
    """Flower as a program talks to it, which sends what a browser never would."""

    def __init__(self, base: str, login: str = "") -> None:
        self.base, self.login = base, login

    def ask(
        self,
        path: str,
        fields: dict[str, str] | None = None,
        *,
        login: bool = True,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Get a page, or post fields to it."""
        data = None if fields is None else urllib.parse.urlencode(fields).encode()
        request = urllib.request.Request(self.base + path, data)
        if login and self.login:
            request.add_header(
                "Authorization", "Basic " + base64.b64encode(self.login.encode()).decode()
            )
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers), error.read().decode())

    def answers(self) -> bool:
        """Whether Flower is there."""
        try:
            return self.ask("/migrations/static/live.js").code == 200
        except OSError:
            return False

    def token(self) -> dict[str, str]:
        """Return the headers that a page of ours would send with a button."""
        cookie = self.ask("/migrations").headers["Set-Cookie"].partition(";")[0]
        return {"Cookie": cookie, "X-XSRFToken": cookie.partition("=")[2]}


class Flower:
    """One ``sojourn flower`` on loopback, the Redis that it shows, and the ledger between them."""

    def __init__(self, redis: Redis, directory: Path, login: str = LOGIN) -> None:
        self.redis, self.directory, self.login = redis, directory, login
        self.door = Door(f"http://127.0.0.1:{_free_port()}", login)
        self.child: Child | None = None

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return Ledger(Store(self.redis.url, seal=Seal(KEY, "alpha")), 3600)

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {"redis_url": self.redis.url, "key": KEY, "config": "/dev/null"}
        settings |= {"flower_auth": self.login, "flower_port": self.door.base.rpartition(":")[2]}
        settings |= {"state_dir": str(self.directory / "state")}
        env = {f"SOJOURN_{name.upper()}": value for name, value in settings.items()}
        argv = [sys.executable, "-P", "-m", "sojourn", "flower"]
        self.child = spawn(
            argv, output=self.directory / "flower.log", env=env | {"PYTHONPATH": str(ROOT)}
        )
        eventually(self.door.answers, within_s=PATIENCE_S)

    def stop(self) -> None:
        """Kill it as a crash would."""
        if self.child:
            self.child.kill()

    def fill(self, count: int) -> list[str]:
        """Enter migrations that were asked for; return their ids."""
        ids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(count)]
        hosts = ["alpha", "beta", "gamma"]
        asked = [
            (each, Plan(1000 + number, hosts[number % 3], hosts[(number + 1) % 3]), None)
            for number, each in enumerate(ids)
        ]
        self.ledger.open_all(asked)
        return ids


def _free_port() -> int:
    """Return a port of the loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
