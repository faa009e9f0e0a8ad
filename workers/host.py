"""The worker of one host: announces it, and keeps its lanes running.

``main``    consumes the host's queue and the shared one
``frozen``  consumes the steps that a stopped tree waits for; nothing else can fill its slots

Beside them run the reconciler and, where a port is set for it, the server of this host's metrics.

Each lane is a Celery worker in a process of its own. A lane that dies is started again; steps under way are in the
journal. When this process itself dies, its lanes are told to end by the kernel (prctl(2), PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from types import FrameType

from celery.signals import worker_process_init, worker_ready
from kombu.exceptions import OperationalError

from sojourn import __version__, logbook, memory, processor
from sojourn.doctor import Level, place
from sojourn.errors import StoreUnreachable
from sojourn.host import SECONDS_PER_DAY, Host, this_host
from sojourn.log import configure
from sojourn.registry import HostInfo
from sojourn.settings import Settings, variable
from sojourn.tls import Certificates
from workers.lane import run
from workers.metrics import serve
from workers.reconciler import Reconciler
from workflows.app import shared_queue, the_app, trace_here
from workflows.canvas import lane

log = logging.getLogger("sojourn.worker")

PR_SET_PDEATHSIG = 1

#: Warnings that mean nothing here: that a worker is root, which it must be; and that TLS has no options, which Celery
#: provokes when somebody asks a worker for its configuration: it takes the address by itself to hide its password.
KNOWN = ("superuser privileges", "defaulting to insecure SSL behaviour")

#: How long a lane may take to finish its steps when the worker is asked to end, before it is killed.
PATIENCE_S = 20

#: How often old logs are looked for.
TIDY_S = 3600.0

#: A lane that dies at once is not started more often than so.
RESTART_S = 1.0


@dataclass(frozen=True)
class Lane:
    """A Celery worker to keep running: its name, its queues, and how many steps it takes side by side."""

    name: str
    queues: tuple[str, ...]
    slots: int

    def arguments(self, host: str, level: str) -> list[str]:
        """Return the arguments of ``celery worker``."""
        return [
            "worker",
            f"--hostname={self.name}@{host}",
            f"--queues={','.join(self.queues)}",
            f"--concurrency={self.slots}",
            f"--loglevel={level}",
            "--pool=prefork",
            "--without-gossip",
            "--without-mingle",
            "--task-events",
        ]


def lanes(host: Host) -> list[Lane]:
    """Return the lanes of a host."""
    settings = host.settings
    return [
        Lane("main", (lane(host.name, frozen=False), shared_queue(settings)), settings.concurrency),
        Lane("frozen", (lane(host.name, frozen=True),), settings.freeze_slots),
    ]


#: Not Celery workers, but kept running like them.
RECONCILER = Lane("reconciler", (), 1)
METRICS = Lane("metrics", (), 1)


class Restarts(Mapping[str, int]):
    """How often each lane was started again: counted by the supervisor, and seen by the lane that serves metrics."""

    def __init__(self, names: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._counts = RawArray(ctypes.c_uint64, len(names))

    def __getitem__(self, name: str) -> int:
        return int(self._counts[self._places[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def count(self, name: str) -> None:
        """Count one more."""
        self._counts[self._places[name]] += 1


class Worker:
    """The running worker: lanes by PID, until it is asked to end."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.criu = host.criu.version()
        self.running: dict[int, Lane] = {}
        self.ready: set[str] = set()
        self.lanes = [*lanes(host), RECONCILER, *([METRICS] if host.settings.metrics_port else [])]
        self.restarts = Restarts([each.name for each in self.lanes])
        self.ending = False
        self.tidied = float("-inf")
        self._says_ready, self._say_ready = os.pipe()

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then let the lanes finish their steps."""
        the_app().loader.import_default_modules()
        self._leave_pid()
        _tell_systemd()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        for each in self.lanes:
            self._start(each)
        while not self.ending:
            self._restart_the_dead()
            self._tidy()
            self._hear_who_is_ready(self.host.settings.announce_s)
            if self._is_ready():
                self._announce()
        self._finish()

    def _start(self, each: Lane) -> None:
        self.ready.discard(each.name)
        self.running[_fork(lambda: self._be(each))] = each

    def _be(self, each: Lane) -> None:
        """Be the lane, in a process of its own, and say so when it takes steps."""

        def say(**_: object) -> None:
            os.write(self._say_ready, f"{each.name}\n".encode())

        if each is METRICS:
            serve(this_host(), self.restarts)
        if each is RECONCILER:
            say()
            trace_here(self.host.settings)
            Reconciler(this_host()).run()
        worker_process_init.connect(_warm_up)
        worker_ready.connect(say, weak=False)
        run(each.arguments(self.host.name, "INFO"))

    def _hear_who_is_ready(self, seconds: float) -> None:
        """Wait so long, or until a lane says that it is ready: a host announces itself only when all of them are."""
        if select.select([self._says_ready], [], [], seconds)[0]:
            self.ready.update(os.read(self._says_ready, 4096).decode().split())

    def _is_ready(self) -> bool:
        """Whether every lane takes steps. Migrations need no metrics."""
        return self.ready >= {each.name for each in self.lanes if each is not METRICS}

    def _announce(self) -> None:
        try:
            self.host.registry.announce(describe(self.host, self.criu), self.host.settings.announce_s)
        except StoreUnreachable as error:
            log.warning("%s", error)

    def _restart_the_dead(self) -> None:
        for pid in list(self.running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                each = self.running.pop(pid)
                self.restarts.count(each.name)
                log.error("Lane %s ended with status %s; it is started again.", each.name, status)
                time.sleep(RESTART_S)
                self._start(each)

    def _tidy(self) -> None:
        """Remove, now and then, the logs of migrations that ended ``keep_days`` ago."""
        if time.monotonic() < self.tidied + TIDY_S:
            return
        self.tidied = time.monotonic()
        needed = {entry.id for entry in self.host.journal.unfinished()}
        before = time.time() - self.host.settings.keep_days * SECONDS_PER_DAY
        removed = logbook.remove_old(self.host.settings.runtime_dir, before, needed)
        if removed:
            log.info("the logs of %d old migrations were removed", len(removed))

    def _end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (the signature is Python's)
        self.ending = True

    def _finish(self) -> None:
        with contextlib.suppress(StoreUnreachable):
            self.host.registry.withdraw(self.host.name)
        _signal(self.running, signal.SIGTERM)
        until = time.monotonic() + PATIENCE_S
        while self.running and time.monotonic() < until:
            self.running = {pid: each for pid, each in self.running.items() if os.waitpid(pid, os.WNOHANG)[0] == 0}
            time.sleep(0.05)
        _signal(self.running, signal.SIGKILL)
        self.host.worker_file.unlink(missing_ok=True)

    def _leave_pid(self) -> None:
        self.host.worker_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.host.worker_file.write_text(str(os.getpid()))


def _tell_systemd() -> None:
    """Say that the worker runs, where systemd asks for that (sd_notify(3)); the lanes take some seconds more."""
    address = variable("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(b"READY=1", address.replace("@", "\0", 1) if address.startswith("@") else address)


def describe(host: Host, criu: str) -> HostInfo:
    """Return what this host says of itself now; ``criu`` is the version that was there when the worker began."""
    return HostInfo(
        name=host.name,
        cluster=host.settings.cluster,
        address=host.settings.address,
        sojourn=__version__,
        criu=criu,
        kernel=platform.release(),
        machine=platform.machine(),
        cpus=os.cpu_count() or 1,
        memory_bytes=memory.total_bytes(),
        free_bytes=memory.free_bytes(),
        running=len(host.journal.unfinished()),
        announced=time.time(),
        load=processor.load(),
        cpu_flags=processor.flags(),
        certified_until=_certified_until(host.settings),
        max_outgoing=host.settings.max_outgoing,
        max_incoming=host.settings.max_incoming,
    )


def start(host: Host) -> None:
    """Run the worker of this host until it is asked to end. Raises CommandMissing, CriuFailed if CRIU is not there."""
    configure(host.settings.log_format)
    _warn_of_certificates(host.settings)
    _quieten_celery()
    Worker(host).run()


def _certified_until(settings: Settings) -> float | None:
    """Return when our certificate ends; it may have been renewed since it was read last."""
    if settings.certificates is None:
        return None
    from sojourn.pki import ends  # noqa: PLC0415  (of no use where there are no certificates)

    return ends(Certificates(settings.certificates).host)


def _warn_of_certificates(settings: Settings) -> None:
    """Say it loud if memory can be read on its way, or soon can not be sent any more."""
    found = place.certificates(settings)
    if found.level is not Level.OK:
        log.warning("%s %s", found.sentence, found.advice)


def _warm_up(**_: object) -> None:
    """Open what a step needs before the first one comes: journal and connections cost 30 ms, perhaps of a freeze."""
    app = the_app()
    away = (StoreUnreachable, OperationalError, *app.connection_for_write().connection_errors)
    try:
        this_host().ledger.bookmark()
        app.backend.client.ping()
        with app.producer_or_acquire() as producer:
            producer.connection.ensure_connection(max_retries=1)
            producer.channel.queue_declare(app.conf.task_default_queue)
    except away:
        log.warning("Redis does not answer yet; the first steps will be slower.")


def _quieten_celery() -> None:
    """Leave out what our own lines say better: each task received and succeeded, with all its arguments."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("py.warnings", "kombu.connection"):
        logging.getLogger(name).addFilter(lambda record: not any(word in record.getMessage() for word in KNOWN))


def _fork(run: Callable[[], object]) -> int:
    """Run a function in a child that ends with its parent; return the child's PID."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # Celery puts its own in the place of these
    run()
    os._exit(0)


def _signal(running: dict[int, Lane], number: signal.Signals) -> None:
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
