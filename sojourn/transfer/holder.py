"""The holder: a small program that owns one migration's page channel on one host.

It is started before the freeze, in a session of its own, and does not depend on the worker's life:
after a worker's death its successor finds the exit code of CRIU in the journal. It never decides
anything. On its standard output it reports, as one JSON object per line, what the step that started
it needs (``port``, ``bytes``); nothing depends on a reader.

``receive``  on the destination: accepts the connection with the memory, passes it to ``criu
             page-server``, and records the exit code; then accepts the connection with the small
             images and writes them.
``send``     on the source: connects, passes the socket to ``criu dump`` with the limit of the plan,
             keeps it uncorked, and records the exit code. In post-copy it connects to nobody.

Where the hosts have certificates, CRIU gets one end of a relay instead of the socket
(``sojourn.transfer.relay``).

If the holder is killed, CRIU is left with a socket whose other side ends, so it fails too; a dump
that fails lets the tree run on. At its deadline the holder ends CRIU and then itself.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Unpack

from sojourn.criu.commands import Criu
from sojourn.errors import ChannelFailed, FreezeTooLong, ImagesIncomplete, ProcessGone
from sojourn.model import Json, Phase, Role
from sojourn.security.tls import TlsIdentity
from sojourn.state.entry import Entry
from sojourn.state.facts import DumpFacts, Facts
from sojourn.state.journal import Journal
from sojourn.system import process, restart, waits
from sojourn.system.run import Argument, Child, spawn
from sojourn.transfer import channel, program
from sojourn.transfer.image_directory import ImageDirectory
from sojourn.transfer.relay import Carrier, Unasked, carrier

#: How often the corked socket is flushed while CRIU writes: data waits for 2 ms instead of the
#: cork's 200 ms.
UNCORK_S = 0.002

#: How often progress is reported.
PROGRESS_S = 0.1

#: The largest pipe that needs no privilege (pipe(7), ``/proc/sys/fs/pipe-max-size``), and how long
#: to look for the page server's pipe.
PIPE_BYTES = 2**20
PIPE_FOUND_WITHIN_S = 0.5


@dataclass(frozen=True)
class Assignment:
    """All that a holder needs; passed on its standard input, since it contains the secret."""

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


def start(assignment: Assignment, log: Path) -> Child:
    """Start a holder for the assignment; it imports the same code as the caller."""
    mark = (process.MIGRATION_VARIABLE, assignment.migration)
    return program.start("sojourn.transfer.holder", asdict(assignment), log, mark)


class Holder:
    """One assignment in progress."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.until = time.monotonic() + assignment.deadline_s
        self.secret = bytes.fromhex(assignment.secret)
        self.tls_identity = TlsIdentity.of(assignment.certificates, assignment.peer)
        self.directory = ImageDirectory(Path(assignment.place))
        self.criu = Criu(Path(assignment.criu))
        self.journal = Journal(Path(assignment.journal))
        self.entry = self._entry()
        self._seen_stopped: float | None = None

    def run(self) -> None:
        """Carry out the assignment."""
        self.receive() if self.assignment.role == Role.DESTINATION else self.send()

    def receive(self) -> None:
        """Act as the destination: accept one connection per purpose, in any order."""
        listener = channel.Listener(self.assignment.address, self.secret, self.tls_identity)
        program.report(port=listener.port)
        receivers = {"pages": self._receive_pages, "images": self._receive_images}
        open_purposes = set(self.assignment.purposes)
        while open_purposes:
            connection = listener.accept(self.until)
            with connection.socket:  # closes it too if the purpose was served already
                if connection.purpose in open_purposes:
                    open_purposes.remove(connection.purpose)
                    receivers[connection.purpose](connection)

    def send(self) -> None:
        """Act as the source: the whole dump, from the connection to CRIU's exit code."""
        with self._carrier() as held:
            command = self.criu.dump(
                self.entry.plan,
                images=self.directory.images,
                work=self.directory.work,
                socket_fd=held.descriptor,
                ghost_bytes=self.entry.facts.get("ghost_bytes", 0),
            )
            # Before CRIU is started: whatever dies, the journal has the command to replay by hand.
            self._learn(dump_command=shlex.join(map(str, command)))
            observer = waits.observed(
                (member.identity.pid for member in self.entry.tree), restart.may_restart
            )
            # As late as possible. Whoever ends the migration writes its phase first and then kills
            # processes: either we see the phase here, or we are found and killed, with CRIU.
            self._check_phase()
            child = self._spawn(command, "dump", held)
            self._watch(child, held, observer)
            ended: DumpFacts = {
                "dump_exit": child.wait(1),
                "dump_ended": time.time(),
                "pages_bytes": held.bytes_sent(),
                "seen_stopped": self._seen_stopped,
            }
            waits.save(observer.waits, self.directory.waits)
            # The step continues with this report; the journal is for a step that is repeated.
            program.report(**ended)
            self._learn(**ended)

    @contextlib.contextmanager
    def _carrier(self) -> Iterator[Carrier]:
        """Yield what CRIU's dump sends the memory to."""
        if self.entry.plan.post_copy:
            # CRIU holds all of the memory in pipes meanwhile, two descriptors for 4 MB of it.
            program.take_all_descriptors()
            with contextlib.closing(Unasked()) as held:
                yield held
            return
        address, port = self.assignment.address, self.assignment.port
        peer = channel.connect(address, port, self.secret, "pages", self.tls_identity)
        with carrier(peer) as held:
            channel.pace(peer, self.entry.plan.bytes_per_s)
            yield held

    def _watch(self, child: Child, held: Carrier, observer: waits.Observer) -> None:
        """Uncork the connection and report progress until the dump ends."""
        reported = 0.0
        while not child.ended_within(UNCORK_S):
            held.uncork()
            observer.look_again()
            self._look_for_the_stop()
            if time.monotonic() > reported + PROGRESS_S:
                reported = time.monotonic()
                program.report(bytes=held.bytes_sent())
            self._enforce_deadline(child)

    def _look_for_the_stop(self) -> None:
        """Note when the root stood still for the first time, by this host's clock."""
        if self._seen_stopped is None:
            with contextlib.suppress(ProcessGone):
                if process.stat(self.entry.plan.pid).state in "tT":
                    self._seen_stopped = time.time()

    def _receive_pages(self, connection: channel.Connection) -> None:
        images, work = self.directory.images, self.directory.work
        with carrier(connection.socket) as held:
            command = self.criu.page_server(images=images, work=work, socket_fd=held.descriptor)
            child = self._spawn(command, "page-server", held)
            _widen_pipe(child.pid)
            # There is no progress to report on this side: the source counts what was acknowledged.
            while not child.ended_within(PROGRESS_S):
                self._enforce_deadline(child)
        # The restore waits for this: the page server acknowledges to the dump before its last
        # write.
        self._learn(page_server_exit=child.wait(1))

    def _receive_images(self, connection: channel.Connection) -> None:
        manifest = channel.receive_files(connection.socket, self.directory.images, self._left_s())
        self._learn(manifest=manifest)
        # Not before: with this confirmation the source sends the message by which the restore
        # begins, and by then a reconciler must find in the journal what has arrived.
        confirmed = time.time()
        channel.confirm(connection.socket)
        # The source counts up to when it hears of it, so this host counts from here.
        self.entry = self.journal.learn_unsynced(self.entry, {"images_at": confirmed})

    def _enforce_deadline(self, child: Child) -> None:
        if self._left_s() <= 0:
            child.kill()
            raise FreezeTooLong(
                f"CRIU was still running after {self.assignment.deadline_s:g} s and was killed "
                "with all processes that it had started."
            )

    def _left_s(self) -> float:
        return self.until - time.monotonic()

    def _spawn(self, command: list[Argument], verb: str, held: Carrier) -> Child:
        child = spawn(
            command,
            output=self.directory.work / f"{verb}.out",
            pass_fds=[held.descriptor],
            env={process.MIGRATION_VARIABLE: self.assignment.migration},
            own_session=False,
        )
        # After the start: until then CRIU's end must be open here, to be inherited.
        held.hand_over()
        return child

    def _check_phase(self) -> None:
        """Refuse to freeze a tree whose migration was ended while this program was starting."""
        if self._entry().phase is not Phase.FREEZING:
            raise ChannelFailed("The migration was ended before its dump began.")

    def _learn(self, **facts: Unpack[Facts]) -> None:
        self.entry = self.journal.learn(self.entry, facts)

    def _entry(self) -> Entry:
        entry = self.journal.entry(self.assignment.migration, Role(self.assignment.role))
        if entry is None:
            raise ChannelFailed(
                f"This host's journal has no migration {self.assignment.migration}."
            )
        return entry


def _widen_pipe(pid: int) -> None:
    """Widen the pipe through which the page server moves memory, as soon as it exists.

    CRIU leaves it at 64 KiB, which is the bottleneck of the whole dump (fcntl(2), F_SETPIPE_SZ). If
    the pipe is not found, only speed is lost.
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
    # Without O_NONBLOCK this would wait for a writer if CRIU had closed its end meanwhile
    # (fifo(7)).
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    finally:
        os.close(descriptor)


def main() -> int:
    """Read the assignment and carry it out; report a failure to the step and to the log."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data: Json = json.load(sys.stdin)
    assignment = Assignment(**{**data, "purposes": tuple(data["purposes"])})
    try:
        Holder(assignment).run()
    # Anything else is a defect: its traceback is in holder.log, and the step sees this output end.
    except (ChannelFailed, FreezeTooLong, ImagesIncomplete) as error:
        sys.stderr.write(f"{error}\n")
        program.report(code=error.code, message=error.message, hint=error.hint)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
