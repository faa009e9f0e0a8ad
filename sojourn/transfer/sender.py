"""The sender: hands out the memory of a frozen original, page by page, to the host it runs on now.

It listens, and answers what the pager there asks (``sojourn.transfer.page_protocol``), over any
number of connections: one is for what threads wait for. It reads ``/proc/PID/mem`` (proc(5)), which
belongs to one address space from the moment it was opened: once that is gone it reads nothing,
whoever has its PID by then. CRIU is not needed for that, and has ended by then.

It never decides anything. It answers while the journal says ``released``: from then on the original
cannot run on unless its host has ended this program first (``sojourn.migration.serving``).

* The connection breaks: the pager connects again. Threads that touch a missing page wait meanwhile.
* This program dies: the reconciler of its host starts another one, at the same port. If another
  program has that by now, it is another port, which the journal here has from the sender itself;
  the reconciler, who asks the destination for its verdict then, brings it there.
* The worker or Redis dies: neither is needed.
* The original is killed: the answer is that it is gone, and the process is ended where it runs.
* This host dies: the same, once it is known (docs/memory.md).
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from sojourn.criu.pagemap import PAGE
from sojourn.errors import ChannelFailed, JournalFailed, ProcessGone
from sojourn.model import Json, Phase, Role
from sojourn.security.tls import TlsIdentity
from sojourn.state.journal import Journal
from sojourn.system import process, waits
from sojourn.system.run import Child
from sojourn.transfer import channel, page_protocol, program
from sojourn.transfer.channel import Connection
from sojourn.transfer.page_protocol import HEAD, MOST, SHARES, Question

log = logging.getLogger("sojourn.sender")

#: A variable in the environment of senders, by which they are found. It is not that of the
#: processes which end with a step.
VARIABLE = "SOJOURN_SENDER"

ZEROS = bytes(PAGE)

#: A file in the work directory whose time is that of the last piece of the rest, which is asked for
#: only where the process runs; and how often it is set, in seconds.
HANDED_OUT, NOTED_S = "handed-out", 1.0

#: How long a peer may leave unacknowledged what was sent to it, in milliseconds (tcp(7),
#: ``TCP_USER_TIMEOUT``), before the connection counts as broken.
UNACKNOWLEDGED_MS = 10_000


@dataclass(frozen=True)
class Assignment:
    """All that a sender needs; ``port`` is the one to have if it is free, or 0 for any."""

    migration: str
    journal: str
    work: str
    secret: str
    certificates: str
    peer: str
    address: str
    port: int
    bytes_per_s: int | None


def start(assignment: Assignment, log_file: Path) -> Child:
    """Start a sender; it prints its port as JSON once it listens."""
    mark = (VARIABLE, assignment.migration)
    return program.start("sojourn.transfer.sender", asdict(assignment), log_file, mark)


class Sender:
    """The memory of one frozen tree."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._listener = self._listen()
        self.port = self._listener.port
        self._noted = 0.0

    def _listen(self) -> channel.Listener:
        """Listen at the port that the pager knows, or, if it is taken, at any other one."""
        wanted = self._assignment
        identity = TlsIdentity.of(wanted.certificates, wanted.peer)
        listener = partial(channel.Listener, wanted.address, bytes.fromhex(wanted.secret), identity)
        try:
            return listener(port=wanted.port)
        except ChannelFailed:
            if not wanted.port:
                raise
        moved = listener()
        log.info("Port %d is taken; listening at port %d", wanted.port, moved.port)
        self._note_port(moved.port)
        return moved

    def _note_port(self, port: int) -> None:
        """Write the new port down here: whoever has started this program may die before."""
        journal = Journal(Path(self._assignment.journal))
        entry = journal.entry(self._assignment.migration, Role.SOURCE)
        if entry is not None:
            journal.learn(entry, {"moved_port": port})

    def run(self) -> None:
        """Serve until this program is ended."""
        while True:
            connection = self._listener.accept()
            if connection.purpose not in SHARES:
                connection.socket.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """Serve one connection until it ends."""
        peer = connection.socket
        with peer, contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            try:
                channel.pace(peer, self._share_of(connection.purpose))
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
                memory, piece = None, _Piece()
                for question in _questions(peer):
                    # Not before: the pager connects while the process still runs here.
                    memory = memory or undo.enter_context(self._memory())
                    piece.answer(peer, question, memory.get(question.pid))
                    self._note(connection.purpose)
            except (ChannelFailed, JournalFailed) as error:
                log.warning("%s: %s", connection.purpose, error)

    def _note(self, purpose: str) -> None:
        """Leave word that the process runs elsewhere, and gets what it asks for."""
        now = time.monotonic()
        if purpose == "rest" and now > self._noted + NOTED_S:
            self._noted = now
            with contextlib.suppress(OSError):  # the file system is full
                (Path(self._assignment.work) / HANDED_OUT).touch()

    def _share_of(self, purpose: str) -> int | None:
        """Return how many bytes per second a connection may carry; together they keep the limit."""
        limit = self._assignment.bytes_per_s
        return None if limit is None else int(limit * SHARES[purpose])

    @contextlib.contextmanager
    def _memory(self) -> Iterator[dict[int, int]]:
        """Open the memory of the tree: descriptors by the PIDs in their own namespaces.

        Raises ChannelFailed if this host has not left the decision to the other one.
        """
        journal = Journal(Path(self._assignment.journal))
        entry = journal.entry(self._assignment.migration, Role.SOURCE)
        if entry is None or entry.phase is not Phase.RELEASED:
            raise ChannelFailed("Pages were asked for, and the images have not left this host.")
        with contextlib.ExitStack() as undo:
            found = {}
            for member in entry.tree:
                # Opened before the identity is checked: a PID that was reused is never read.
                with contextlib.suppress(OSError, ProcessGone):
                    descriptor = os.open(f"/proc/{member.identity.pid}/mem", os.O_RDONLY)
                    undo.callback(os.close, descriptor)
                    if process.is_alive(member.identity):
                        found[waits.status(member.identity.pid).inner_id] = descriptor
            yield found


class _Piece:
    """A buffer for one answer, which the kernel fills and the network reads without a copy."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, MOST)
        self.view = memoryview(self.memory)

    def answer(self, peer: socket.socket, question: Question, descriptor: int | None) -> None:
        """Send the pages, or that there are none any more. Raises OSError."""
        if descriptor is None or not self._read(descriptor, question):
            peer.sendall(page_protocol.gone(question))
            return
        follow = [self.memory[at : at + PAGE] != ZEROS for at in range(0, question.length, PAGE)]
        peer.sendall(question.to_bytes() + page_protocol.map_of(follow))
        for follows, begin, end in page_protocol.runs(follow):
            if follows:
                peer.sendall(self.view[begin:end])

    def _read(self, descriptor: int, question: Question) -> bool:
        """Read what was asked for; False if it is not there any more."""
        done = 0
        with contextlib.suppress(OSError):
            while done < question.length:
                target = self.view[done : question.length]
                size = os.preadv(descriptor, [target], question.address + done)
                if size == 0:
                    break
                done += size
        return done == question.length


def _questions(peer: socket.socket) -> Iterator[Question]:
    """Yield what the pager asks, until it ends the connection. Raises ChannelFailed, OSError."""
    while len(raw := channel.exactly(peer, HEAD.size)) == HEAD.size:
        yield Question.parse(raw)


def main() -> int:
    """Read the assignment and carry it out."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    data: Json = json.load(sys.stdin)
    try:
        sender = Sender(Assignment(**data))
    except ChannelFailed as error:
        log.warning("%s", error)
        return 1
    program.report(port=sender.port)
    sender.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
