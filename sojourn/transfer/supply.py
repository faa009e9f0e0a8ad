"""Pages of the frozen original, as the pager gets them: asked of the source, put into place here.

Two connections to the sender (``sojourn.transfer.sender``): by ``rest`` all memory comes, in large
pieces and upwards, several of them on their way at once; by ``urgent`` come the pages for which
threads wait, so that none of them queues behind the rest.

What is on its way when a connection breaks is asked for anew. Nothing is kept of what has arrived
but the pages in the process: the kernel itself knows which those are, and refuses to replace one.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from sojourn.criu.pagemap import PAGE, Run
from sojourn.errors import ChannelFailed, JournalFailed
from sojourn.transfer import page_protocol
from sojourn.transfer.filling import Filling
from sojourn.transfer.page_protocol import HEAD, MOST, Question

log = logging.getLogger("sojourn.pager")

#: How much may be on its way for nobody in particular: what the fastest network carries while an
#: answer comes.
AHEAD_BYTES = 8 * MOST

#: How long to wait before the next try to connect, and how long one may take, in seconds.
AGAIN_S, CONNECT_S = 0.2, 1.0

#: While threads find one page missing after the other, the rest would delay those. So it waits
#: until none was missing for as long as the first, in seconds, but not for longer than the second.
CALM_S, FIRST_TOUCHES_S = 0.01, 0.15

#: How long nothing may come of what was asked for before the connection counts as broken.
SILENCE_S = 5.0

#: How long sending a question may take: a few bytes.
ASK_S = 1.0


#: A process, and the address of a page there.
Place = tuple[Filling, int]


@dataclass(frozen=True)
class Asked:
    """Pages that were asked for, for one process."""

    filling: Filling
    run: Run

    @property
    def key(self) -> Place:
        """Where a thread may wait: the first page."""
        return self.filling, self.run.address

    @property
    def question(self) -> Question:
        """What the sender is asked: where the pages were in the original."""
        return Question(self.filling.pid, self.run.offset, self.run.length)


class Piece:
    """A buffer into which answers come, and from which pages are put into place."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, MOST)
        self.view = memoryview(self._memory)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._begin = self._end = 0

    def begin(self, run: Run) -> None:
        """Note which part of the original comes next."""
        self._begin, self._end = run.offset, run.offset + run.length

    def held(self, offset: int, length: int) -> tuple[int, int]:
        """Return how many bytes were given back, which is never so, and how many are there."""
        return 0, max(0, min(length, self._end - offset))

    def address(self, offset: int, _length: int) -> int:
        """Return where in this process a part of the piece is."""
        return self._address + offset - self._begin


class Answer:
    """An answer on its way into a piece."""

    def __init__(self, asked: Asked, piece: Piece) -> None:
        self._piece, self._question = piece, asked.question
        self._head = memoryview(bytearray(HEAD.size))
        self._map = memoryview(bytearray(self._question.map_bytes))
        #: What is still to come, the next part last.
        self._parts = [self._map, self._head]
        #: How many bytes have come.
        self.size = 0
        piece.begin(asked.run)

    def take(self, peer: socket.socket) -> None:
        """Take what has come.

        Raises BlockingIOError and ssl.SSLWantReadError if that is not all yet, OSError if the
        connection has broken, Gone if the original is not there any more, and ChannelFailed for a
        malformed answer.
        """
        while self._parts:
            part = self._parts[-1]
            size = peer.recv_into(part)
            if size == 0:
                raise ConnectionResetError
            self.size += size
            self._parts[-1] = part[size:]
            if size == len(part):
                self._parts.pop()
                self._complete(part)

    def _complete(self, part: memoryview) -> None:
        if part.obj is self._head.obj:
            self._check()
        elif part.obj is self._map.obj:
            self._expect(page_protocol.follow(bytes(self._map), self._question.length // PAGE))

    def _check(self) -> None:
        if bytes(self._head) == page_protocol.gone(self._question):
            raise Gone
        if bytes(self._head) != self._question.to_bytes():
            raise ChannelFailed("The source answered what it was not asked.")

    def _expect(self, follow: list[bool]) -> None:
        """Expect the pages that follow, each at its place; the others are zero."""
        view = self._piece.view
        for follows, begin, end in reversed([*page_protocol.runs(follow)]):
            if follows:
                self._parts.append(view[begin:end])
            else:
                view[begin:end] = bytes(end - begin)


class Gone(Exception):
    """The original is not there any more."""


class Link:
    """One connection to the sender, with what was asked by it and has not been put into place."""

    def __init__(self, purpose: str, dial: Callable[[str], socket.socket]) -> None:
        self.peer: socket.socket | None = None
        self.asked: deque[Asked] = deque()
        self._purpose, self._dial = purpose, dial
        self._piece = Piece()
        self._answer: Answer | None = None
        self._arrived: Asked | None = None
        self._heard = self._next_try = 0.0
        self._logged = ""

    @property
    def bytes_asked(self) -> int:
        """How many bytes were asked for."""
        return sum(asked.run.length for asked in self.asked)

    @property
    def is_ready(self) -> bool:
        """Whether there is something to do at once, which poll(2) does not show."""
        hidden = isinstance(self.peer, ssl.SSLSocket) and self.peer.pending() > 0
        return self._arrived is not None or hidden

    def connect(self) -> bool:
        """Connect if it is time to try; return whether a connection is new."""
        now = time.monotonic()
        if self.peer is not None or now < self._next_try:
            return False
        try:
            self.peer = self._dial(self._purpose)
        except (ChannelFailed, JournalFailed) as error:
            self._log_once(str(error))
            self._next_try = time.monotonic() + AGAIN_S
            return False
        self._logged = ""
        self.peer.settimeout(0)
        return True

    def _log_once(self, why: str) -> None:
        """Log why there is no connection, which may last for days: the log is in memory."""
        if why != self._logged:
            log.info("%s", why)
            self._logged = why

    def ask(self, asked: Asked) -> None:
        """Ask for pages. Raises OSError."""
        assert self.peer is not None
        if not self.asked:
            self._heard = time.monotonic()
        self.peer.settimeout(ASK_S)
        self.peer.sendall(asked.question.to_bytes())
        self.peer.settimeout(0)
        self.asked.append(asked)

    def take(self, *, committed: bool) -> Asked | None:
        """Take what has come, and return what is in place now; None if that is nothing yet.

        Raises OSError, ChannelFailed and Gone.
        """
        if self._arrived is None and self.asked:
            self._take()
        if self._arrived is None or not self._arrived.filling.put(
            self._arrived.run, self._piece, committed=committed
        ):
            return None
        done, self._arrived = self._arrived, None
        return done

    def is_silent(self) -> bool:
        """Whether nothing came for long of what was asked for."""
        return bool(self.asked) and time.monotonic() > self._heard + SILENCE_S

    def close(self) -> None:
        """End the connection; what was asked by it must be asked for anew."""
        if self.peer is not None:
            with contextlib.suppress(OSError):
                self.peer.close()
        self.peer = self._answer = self._arrived = None
        self.asked.clear()
        self._next_try = time.monotonic() + AGAIN_S

    def _take(self) -> None:
        assert self.peer is not None
        answer = self._answer = self._answer or Answer(self.asked[0], self._piece)
        before = answer.size
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            answer.take(self.peer)
            self._arrived, self._answer = self.asked.popleft(), None
        if answer.size > before:
            self._heard = time.monotonic()


class Supply:
    """All that comes from the original of one tree.

    ``dial`` connects to the sender for a purpose; it raises ChannelFailed.
    """

    def __init__(self, dial: Callable[[str], socket.socket], poll: select.poll) -> None:
        self._rest, self._urgent = Link("rest", dial), Link("urgent", dial)
        self._poll = poll
        #: Up to where the rest of each process was asked for.
        self._cursors: dict[Filling, int] = {}
        #: Pages that were asked for urgently, and since when threads wait for them.
        self._wanted: set[Place] = set()
        self._since: dict[Place, float] = {}
        #: When the tree began to run, and when a thread last found a page missing.
        self._began: float | None = None
        self._wanted_at = 0.0
        #: Whether the rest waits for the tree's first touches.
        self.holds_back = False
        #: Whether the original is gone, with what is missing here.
        self.is_gone = False
        #: For how long threads waited for pages, in seconds.
        self.waits: list[float] = []
        #: How many pieces of the rest are in place, and how many bytes of pages have come.
        self.pieces = self.bytes = 0

    @property
    def is_connected(self) -> bool:
        """Whether pages can be asked for."""
        return self._urgent.peer is not None and self._rest.peer is not None

    @property
    def is_ready(self) -> bool:
        """Whether there is something to do at once, which poll(2) does not show."""
        return self._urgent.is_ready or self._rest.is_ready

    def want(self, filling: Filling, run: Run) -> None:
        """Ask for a page for which a thread waits, and what is next to it."""
        self._wanted_at = time.monotonic()
        self._since.setdefault((filling, run.address), self._wanted_at)
        self.hurry(filling, run)

    def hurry(self, filling: Filling, run: Run) -> None:
        """Ask for pages before all others, unless they were asked for so."""
        asked = Asked(filling, run)
        if asked.key in self._wanted or self._urgent.peer is None:
            return  # whoever waits is woken when there is a connection, and asks again
        self._wanted.add(asked.key)
        self._by(self._urgent, partial(self._urgent.ask, asked))

    def forget(self, filling: Filling) -> None:
        """Forget a process that has ended: nobody waits there any more."""
        self._cursors.pop(filling, None)
        for place in [place for place in self._since if place[0] is filling]:
            del self._since[place]
            self._wanted.discard(place)

    def go_on(self, fillings: Collection[Filling], *, committed: bool) -> None:
        """Connect, take what has come, and ask for more of the rest once the tree runs."""
        for link in (self._urgent, self._rest):
            self._connect(link, fillings)
            if link.peer is not None:
                self._by(link, partial(self._take, link, committed=committed))
            if link.is_silent():
                self._break(link, "nothing came of what was asked for")
        self.holds_back = committed and self._rest.peer is not None and not self._is_calm()
        if committed and self._rest.peer is not None and not self.holds_back:
            self._by(self._rest, partial(self._ask_ahead, fillings))

    def _is_calm(self) -> bool:
        """Whether the tree has found what it touches first, or has looked for it long enough."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        calm_since = max(self._began, self._wanted_at)
        return now > min(calm_since + CALM_S, self._began + FIRST_TOUCHES_S)

    def _connect(self, link: Link, fillings: Collection[Filling]) -> None:
        if not link.connect():
            return
        assert link.peer is not None
        self._poll.register(link.peer, select.POLLIN)
        if link is self._urgent:
            for filling in fillings:
                filling.wake_all()

    def _take(self, link: Link, *, committed: bool) -> None:
        done = link.take(committed=committed)
        if done is None:
            return
        self.bytes += done.run.length
        if link is self._rest:
            self.pieces += 1
        else:
            self._wanted.discard(done.key)
        self._end_waits(done)

    def _end_waits(self, done: Asked) -> None:
        """Note how long threads waited for what is in place now, whichever way it came."""
        first, end = done.run.address, done.run.address + done.run.length
        for key in [*self._since]:
            if key[0] is done.filling and first <= key[1] < end:
                self.waits.append(time.monotonic() - self._since.pop(key))

    def _ask_ahead(self, fillings: Collection[Filling]) -> None:
        room = AHEAD_BYTES - self._rest.bytes_asked
        while room >= MOST:
            asked = self._next(fillings)
            if asked is None:
                if not self._rest.asked:
                    self._cursors.clear()  # what was moved meanwhile is asked for from the begin
                return
            self._rest.ask(asked)
            room -= asked.run.length

    def _next(self, fillings: Collection[Filling]) -> Asked | None:
        """Return what is missing next and was not asked for; None if that is nothing."""
        for filling in fillings:
            if filling.is_complete:
                continue
            cursor = self._cursors.get(filling, 0)
            run = filling.missing.from_address(cursor)
            if run is not None:
                run = Run(run.address, min(run.length, MOST), run.offset)
                self._cursors[filling] = run.address + run.length
                return Asked(filling, run)
        return None

    def _by(self, link: Link, act: Callable[[], None]) -> None:
        """Do something by a connection, and give it up if it breaks."""
        try:
            act()
        except Gone:
            self.is_gone = True
            self._break(link, "the original is gone")
        except (OSError, ChannelFailed) as error:
            self._break(link, str(error) or "it was ended")

    def _break(self, link: Link, why: str) -> None:
        log.info("A connection to the source ends: %s", why)
        if link.peer is not None:
            self._poll.unregister(link.peer)
        link.close()
        if link is self._urgent:
            self._wanted.clear()
