"""The holder: the little program that owns the page channel of one migration on one host while CRIU works.

It is started before the freeze, in a session of its own, and does not depend on the worker's life: a
worker that dies finds the exit code of CRIU in the journal when it comes back. It never decides
anything. On its standard output it says, one JSON object per line, what the step that started it
wants to know (``port``, ``bytes``); nobody needs to listen.

``receive``  on the destination: takes the connection with the memory, hands it to ``criu page-server``,
             records its exit code; then takes the connection with the small images and writes them.
``send``     on the source: connects, hands the socket to ``criu dump``, keeps it uncorked, records the
             exit code.

Where the hosts have certificates, CRIU gets one end of a relay instead of the socket (``sojourn.plug``).

If the holder is killed, CRIU is left with a socket whose other side ends, so it fails too; a dump that
fails lets the tree run on. At its deadline the holder ends CRIU and then itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sojourn import channel, process
from sojourn.criu import Criu
from sojourn.errors import ChannelFailed, FreezeTooLong, ImagesIncomplete
from sojourn.images import ImageDirectory
from sojourn.journal import Entry, Journal
from sojourn.model import Json, Phase, Role
from sojourn.plug import Plug, plug
from sojourn.run import Argument, Child, spawn
from sojourn.tls import Party

#: How often the corked socket is flushed while CRIU writes: a wait of 2 ms instead of the cork's 200 ms.
UNCORK_S = 0.002

#: How often progress is told.
PROGRESS_S = 0.1

#: The largest pipe that needs no privilege (pipe(7), ``/proc/sys/fs/pipe-max-size``), and how long to look for it.
PIPE_BYTES = 2**20
PIPE_FOUND_WITHIN_S = 0.5


@dataclass(frozen=True)
class Errand:
    """Everything a holder must know; handed over on its standard input, since it carries the secret."""

    migration: str
    role: str
    journal: str
    place: str
    criu: str
    secret: str
    certificates: str
    peer: str
    address: str
    port: int
    purposes: tuple[str, ...]
    deadline_s: float


def start(errand: Errand, log: Path) -> Child:
    """Start a holder for the errand; it runs the very code that we run."""
    return spawn(
        [sys.executable, "-m", "sojourn.holder"],
        stdin=json.dumps(asdict(errand)),
        pipe=True,
        output=log,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), process.MIGRATION_VARIABLE: errand.migration},
    )


class Holder:
    """One errand under way."""

    def __init__(self, errand: Errand) -> None:
        self.errand = errand
        self.until = time.monotonic() + errand.deadline_s
        self.secret = bytes.fromhex(errand.secret)
        self.party = Party.of(errand.certificates, errand.peer)
        self.directory = ImageDirectory(Path(errand.place))
        self.criu = Criu(Path(errand.criu))
        self.journal = Journal(Path(errand.journal))
        self.entry = self._entry()

    def run(self) -> None:
        """Do the errand."""
        self.receive() if self.errand.role == Role.DESTINATION else self.send()

    def receive(self) -> None:
        """Be the destination: one connection per purpose, in whatever order strangers come and go."""
        listener = channel.Listener(self.errand.address, self.secret, self.party)
        _tell(port=listener.port)
        wanted = {"pages": self._receive_pages, "images": self._receive_images}
        open_purposes = set(self.errand.purposes)
        while open_purposes:
            connection = listener.accept(self.until)
            with connection.socket:  # closed also where the purpose was served already
                if connection.purpose in open_purposes:
                    open_purposes.remove(connection.purpose)
                    wanted[connection.purpose](connection)

    def send(self) -> None:
        """Be the source: the whole dump, from the connection to CRIU's exit code."""
        peer = channel.connect(self.errand.address, self.errand.port, self.secret, "pages", self.party)
        with plug(peer) as held:
            command = self.criu.dump(
                self.entry.plan,
                images=self.directory.images,
                work=self.directory.work,
                socket_fd=held.descriptor,
            )
            self._learn(dump_command=shlex.join(map(str, command)))
            self._check_phase()
            child = self._spawn(command, "dump", held)
            told = 0.0
            while not child.ended_within(UNCORK_S):
                held.uncork()
                if time.monotonic() > told + PROGRESS_S:
                    told = time.monotonic()
                    _tell(bytes=held.bytes_sent())
                self._mind_the_deadline(child)
            # The step goes on with what it is told; the journal is for one that comes later.
            ended = {"dump_exit": child.wait(1), "dump_ended": time.time(), "pages_bytes": held.bytes_sent()}
            _tell(**ended)
            self._learn(**ended)

    def _receive_pages(self, connection: channel.Connection) -> None:
        images, work = self.directory.images, self.directory.work
        with plug(connection.socket) as held:
            command = self.criu.page_server(images=images, work=work, socket_fd=held.descriptor)
            child = self._spawn(command, "page-server", held)
            _widen_pipe(child.pid)
            while not child.ended_within(PROGRESS_S):
                self._mind_the_deadline(child)
        self._learn(page_server_exit=child.wait(1))

    def _receive_images(self, connection: channel.Connection) -> None:
        manifest = channel.receive_files(connection.socket, self.directory.images, self._left_s())
        self._learn(manifest=manifest, images_at=time.time())
        channel.confirm(connection.socket)

    def _mind_the_deadline(self, child: Child) -> None:
        if self._left_s() <= 0:
            child.kill()
            raise FreezeTooLong(
                f"CRIU was still at work after {self.errand.deadline_s:g} s and was ended with all it had started."
            )

    def _left_s(self) -> float:
        return self.until - time.monotonic()

    def _spawn(self, command: list[Argument], verb: str, held: Plug) -> Child:
        child = spawn(
            command,
            output=self.directory.work / f"{verb}.out",
            pass_fds=[held.descriptor],
            env={process.MIGRATION_VARIABLE: self.errand.migration},
            own_session=False,
        )
        held.hand_over()
        return child

    def _check_phase(self) -> None:
        """Refuse to freeze a tree that was given back while this program was starting."""
        if self._entry().phase is not Phase.FREEZING:
            raise ChannelFailed("The migration was given up before its dump began.")

    def _learn(self, **facts: object) -> None:
        self.entry = self.journal.learn(self.entry, facts)

    def _entry(self) -> Entry:
        entry = self.journal.entry(self.errand.migration, Role(self.errand.role))
        if entry is None:
            raise ChannelFailed(f"This host's journal knows no migration {self.errand.migration}.")
        return entry


def _widen_pipe(pid: int) -> None:
    """Widen the pipe through which the page server moves memory, as soon as it has made it (fcntl(2), F_SETPIPE_SZ).

    CRIU leaves it at 64 KiB, which is the bottleneck of the whole dump. If it is not found, nothing is lost but speed.
    """
    until = time.monotonic() + PIPE_FOUND_WITHIN_S
    while time.monotonic() < until:
        pipes = process.descriptors(pid, "pipe:")
        for path in pipes:
            with contextlib.suppress(OSError):
                _widen(path)
        if pipes:
            return
        time.sleep(0.001)


def _widen(pipe: Path) -> None:
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    finally:
        os.close(descriptor)


def _tell(**words: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(words), flush=True)  # noqa: T201  (this is the protocol with the step)


def main() -> int:
    """Read the errand and do it; a failure is one sentence, told to the step and to the log."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data: Json = json.load(sys.stdin)
    errand = Errand(**{**data, "purposes": tuple(data["purposes"])})
    try:
        Holder(errand).run()
    except (ChannelFailed, FreezeTooLong, ImagesIncomplete) as error:
        sys.stderr.write(f"{error}\n")
        _tell(code=error.code, message=error.message, hint=error.hint)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
