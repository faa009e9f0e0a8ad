"""A real Redis, and a cluster of real Celery workers without CRIU."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sojourn.cluster.ledger import Ledger
from sojourn.cluster.queue import Queue
from sojourn.cluster.registry import HostInfo, Registry
from sojourn.cluster.store import Store
from sojourn.migration.context import this_host
from sojourn.model import Plan, Role, State
from sojourn.settings import Settings, load, variable
from sojourn.state.journal import Journal
from sojourn.state.message import Message
from sojourn.system.run import Child, spawn
from tasks.step import link
from tests.conftest import eventually
from tests.integration.steps import act, acts
from workflows.app import create_app, the_app

ROOT = Path(__file__).parents[2]
KEY = "a key for tests that is long enough"
HOSTS = ("alpha", "beta")
PLAN = Plan(4242, *HOSTS)


class Redis:
    """A Redis of our own on a free port of the loopback; nothing of it is kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.child: Child | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options: list[str | Path] = [
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            self.directory,
            "--bind",
            "127.0.0.1",
        ]
        self.child = spawn(["redis-server", "--port", str(self.port), *options])
        eventually(self._answers)

    def stop(self) -> None:
        """Kill it as a crash would."""
        if self.child:
            self.child.kill()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="session")
def redis_there() -> None:
    """Skip where there is no Redis; fail where there must be one."""
    if shutil.which("redis-server"):
        return
    if variable("CI") == "true":
        pytest.fail("redis-server is not installed, and CI must have it")
    pytest.skip("redis-server is not installed")


@pytest.fixture(scope="module")
def redis(redis_there: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """Give each module a Redis of its own."""
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


def _forget_settings() -> None:
    """Let this process read its settings once more."""
    load.cache_clear()
    the_app.cache_clear()
    this_host.cache_clear()


def _forget_answers(app: Any) -> None:
    """Forget the answers that no test waits for."""
    # When they are collected they would unsubscribe from a Redis that is gone by then.
    app.backend.result_consumer.subscribed_to.clear()


class Cluster:
    """Two hosts, each a Celery worker in a process of its own, and the program that calls them."""

    def __init__(
        self,
        redis: Redis,
        place: Path,
        *,
        reconcile: bool = False,
        hosts: tuple[str, ...] = HOSTS,
        **settings: Any,
    ) -> None:
        self.redis, self.place, self.hosts = redis, place, hosts
        self.reconcile, self.more = reconcile, settings
        self.workers: dict[str, Child] = {}
        self.app = create_app(self.settings("tester"))
        store = Store.of(self.settings("tester"))
        self.store = store
        self.ledger, self.registry = Ledger(store, 3600), Registry(store)
        self.queue = Queue(store, self.settings("tester").lease_s)

    def settings(self, host: str) -> Settings:
        """Return a host's settings: everything of its own but Redis and the key."""
        here = self.place / host
        return Settings.model_validate(
            {
                "host": host,
                "redis_url": self.redis.url,
                "key": KEY,
                "state_dir": here,
                "runtime_dir": here / "run",
            }
            | self.more
        )

    def start(self) -> None:
        """Start both workers and wait until they answer."""
        for host in self.hosts:
            self.workers[host] = self.worker(host)
        eventually(lambda: len(self.app.control.ping(timeout=0.3)) == len(self.hosts), within_s=30)

    def stop(self) -> None:
        """End both workers with their pools."""
        for child in self.workers.values():
            child.kill()
        _forget_answers(self.app)

    @contextlib.contextmanager
    def called_by_programs(self) -> Iterator[None]:
        """Let this process's own calls go to this cluster, as from a machine that is not a host."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment("tester").items():
                patch.setenv(name, value)
            _forget_settings()
            try:
                yield
            finally:
                self.stop()
                _forget_answers(the_app())
                _forget_settings()

    def announce(self, *hosts: str, **more: Any) -> None:
        """Let hosts announce themselves, once and for long."""
        for name in hosts or self.hosts:
            info: dict[str, Any] = {
                "name": name,
                "address": "127.0.0.1",
                "sojourn": "0",
                "criu": "4.2",
                "kernel": "6.1",
                "machine": "x86_64",
                "cpus": 2,
                "memory_bytes": 2**34,
                "free_bytes": 2**33,
                "running": 0,
                "announced": 0.0,
                "max_outgoing": 4,
                "max_incoming": 4,
            }
            self.registry.announce(HostInfo(**info | more), 1000)

    def migration(
        self, pid: int = 4242, source: str = "alpha", destination: str = "beta", **acting: str
    ) -> Message:
        """Return a migration that can be requested, whose steps act so."""
        message = Message(str(uuid.uuid4()), Plan(pid, source, destination))
        act(self.place, message.id, acting)
        return message

    def state(self, message: Message) -> State | None:
        """Return where a migration stands for people."""
        account = self.ledger.account(message.id)
        return account.state if account else None

    def journal(self, host: str) -> Journal:
        """Return a host's journal."""
        return Journal(self.place / host / "journal.db")

    def log(self, host: str) -> str:
        """Return the log of a host's worker."""
        return (self.place / f"{host}.log").read_text()

    def message(self, **acting: str) -> Message:
        """Return the message of a new migration, whose steps act so (see ``steps``)."""
        message = Message(str(uuid.uuid4()), PLAN)
        act(self.place, message.id, acting)
        return message

    def acts(self, message: Message) -> list[str]:
        """Return what the steps of a migration have done so far, in that order."""
        return acts(self.place, message.id)

    def send(self, step: Any, message: Message, host: str) -> Any:
        """Send one step to one host."""
        return link(step, host, message.plan).apply_async((message.to_text(),))

    def under_way(self) -> set[str]:
        """Return the ids of the tasks that workers have begun."""
        active = self.app.control.inspect(timeout=0.5).active() or {}
        return {task["id"] for tasks in active.values() for task in tasks if task["time_start"]}

    def phase(self, message: Message, host: str) -> str | None:
        """Return the phase in a host's journal."""
        entry = self.journal(host).entry(
            message.id, Role.SOURCE if host == PLAN.source else Role.DESTINATION
        )
        return entry.phase if entry else None

    def environment(self, host: str) -> dict[str, str]:
        """Return the environment variables from which a program of a host reads its settings."""
        settings = self.settings(host)
        return {
            "PYTHONPATH": ":".join([str(ROOT), *sys.path]),
            "SOJOURN_CONFIG": "/dev/null",
            "SOJOURN_HOST": host,
            "SOJOURN_KEY": KEY,
            "SOJOURN_REDIS_URL": settings.redis_url,
            "SOJOURN_STATE_DIR": str(settings.state_dir),
            "SOJOURN_RUNTIME_DIR": str(settings.runtime_dir),
            **{f"SOJOURN_{name.upper()}": str(value) for name, value in self.more.items()},
        }

    def worker(self, host: str, **more: str) -> Child:
        """Start the worker of a host; ``more`` are environment variables that differ."""
        argv = [
            sys.executable,
            "-m",
            "tests.integration.worker",
            host,
            *["--reconcile"][: self.reconcile],
        ]
        return spawn(argv, output=self.place / f"{host}.log", env=self.environment(host) | more)


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give each module a cluster of its own."""
    made = Cluster(redis, tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    finally:
        made.stop()
