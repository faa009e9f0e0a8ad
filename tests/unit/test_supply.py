"""Pages of an original that come by two connections, into a real process that waits for them."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sojourn.criu.pagemap import PAGE
from sojourn.errors import ChannelFailed
from sojourn.system.userfaultfd import Event
from sojourn.transfer import page_protocol, supply
from sojourn.transfer.filling import Filling
from sojourn.transfer.page_protocol import HEAD, Question
from sojourn.transfer.supply import Supply
from tests.unit.missing import GO, PAGES, Act, Child, libc, starter, word

#: A page that is zero in the original, beside all those that have their number.
ZERO = 10


@dataclass
class Original:
    """The far end: answers by the connections that it is asked to accept."""

    address: int
    #: What happens at the answer with this number, counted from 0, instead of sending it.
    instead: dict[int, Callable[[socket.socket, bytes], None]] = field(default_factory=dict)
    #: Purposes that are not answered.
    silent: set[str] = field(default_factory=set)
    refuses: bool = False
    answers: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)

    def dial(self, purpose: str) -> socket.socket:
        """Connect, as the pager does."""
        if self.refuses:
            raise ChannelFailed("Nobody listens.")
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(theirs, purpose), daemon=True).start()
        return ours

    def _serve(self, peer: socket.socket, purpose: str) -> None:
        with peer, suppress(OSError):
            while raw := peer.recv(HEAD.size, socket.MSG_WAITALL):
                question = Question.parse(raw)
                first = (question.address - self.address) // PAGE
                self.asked.append((purpose, first))
                if purpose in self.silent:
                    continue
                number, self.answers = self.answers, self.answers + 1
                answer = self.answer(question, first)
                if number in self.instead:
                    self.instead[number](peer, answer)
                else:
                    # In two parts, and the first one ends within a page.
                    peer.sendall(answer[:5000])
                    time.sleep(0.001)
                    peer.sendall(answer[5000:])

    def answer(self, question: Question, first: int) -> bytes:
        """Return the answer that a sender gives."""
        pages = range(first, first + question.length // PAGE)
        follow = page_protocol.map_of([page != ZERO for page in pages])
        content = (struct.pack("=Q", page + 1) * 512 for page in pages if page != ZERO)
        return question.to_bytes() + follow + b"".join(content)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Act], Child]]:
    """Return what starts a child that does something with its memory, and answers."""
    with starter(tmp_path) as begin:
        yield begin


def right(address: int) -> bytes:
    """Compare every page, in the child."""
    wanted = (0 if page == ZERO else page + 1 for page in range(PAGES))
    return bytes([all(word(address, page) == one for page, one in enumerate(wanted))])


@dataclass
class Pager:
    """What a pager does with one child; ``committed`` has it ask for the rest, too."""

    child: Child
    original: Original
    committed: bool = True

    def __post_init__(self) -> None:
        self.poll = select.poll()
        self.poll.register(self.child.answers, select.POLLIN)
        self.poll.register(self.child.descriptor, select.POLLIN)
        self.supply = Supply(self.original.dial, self.poll)
        self.fillings = [self.child.remote()]

    def run(self, until: Callable[[], object]) -> bool:
        """Work until something is so; False if it is not within 20 s."""
        end = time.monotonic() + 20
        while not until():
            if time.monotonic() > end:
                return False
            self.poll.poll(0 if self.supply.is_ready else 20)
            for number, filling in enumerate(list(self.fillings)):
                self.read(number, filling)
            self.supply.go_on(self.fillings, committed=self.committed)
        return True

    def read(self, number: int, filling: Filling) -> None:
        """Read the messages of one address space, and do what follows."""
        for message in self.child.record.read(number, filling.descriptor):
            if message.event is Event.FORK:
                self.fillings.append(filling.fork(message.first))
            elif message.event is not Event.FAULT:
                filling.follow(message)
            elif wanted := filling.serve(message.second, committed=True):
                self.supply.want(filling, wanted)

    def has_answered(self) -> bool:
        """Whether the child has done what it had to do."""
        return bool(select.select([self.child.answers], [], [], 0)[0])

    def is_filled(self) -> bool:
        """Whether nothing is missing any more."""
        return all(filling.is_complete for filling in self.fillings)


def when_asked(address: int) -> bytes:
    """Compare every page once there is a signal, in the child."""
    signal.sigwait(GO)
    return right(address)


def test_all_of_it(start: Callable[[Act], Child], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page is right, those that are zero too; nothing was asked for twice."""
    monkeypatch.setattr(supply, "MOST", 4 * PAGE)
    child = start(when_asked)
    pager = Pager(child, Original(child.address))
    assert pager.run(pager.is_filled)
    os.kill(child.pid, signal.SIGUSR1)
    assert pager.run(pager.has_answered)
    assert child.answer() == b"\x01"
    assert pager.original.asked == [("rest", first) for first in range(0, PAGES, 4)]
    assert pager.supply.waits == []


def test_what_a_thread_waits_for_overtakes_the_rest(start: Callable[[Act], Child]) -> None:
    """It comes by a connection of its own, with what is next to it."""
    child = start(lambda address: struct.pack("=2Q", word(address, 40), word(address, 41)))
    pager = Pager(child, Original(child.address, silent={"rest"}))
    assert pager.run(pager.has_answered)
    assert struct.unpack("=2Q", child.answer()) == (41, 42)
    assert pager.original.asked.count(("urgent", 40)) == 1
    assert len(pager.supply.waits) == 1


def test_the_rest_waits_for_the_first_touches(
    start: Callable[[Act], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What threads find missing one after the other has the connection, and this host, alone."""
    monkeypatch.setattr(supply, "CALM_S", 60)
    monkeypatch.setattr(supply, "FIRST_TOUCHES_S", 60)
    child = start(right)
    pager = Pager(child, Original(child.address))
    assert pager.run(pager.has_answered)
    assert {purpose for purpose, _ in pager.original.asked} == {"urgent"}


@pytest.mark.parametrize(("calm_s", "at_most_s"), [(0.01, 60), (60, 0.2)])
def test_the_rest_does_not_wait_for_long(
    start: Callable[[Act], Child], monkeypatch: pytest.MonkeyPatch, calm_s: float, at_most_s: float
) -> None:
    """It comes once no page was found missing for a moment, and in any case after a while."""
    monkeypatch.setattr(supply, "CALM_S", calm_s)
    monkeypatch.setattr(supply, "FIRST_TOUCHES_S", at_most_s)
    child = start(when_asked)
    pager = Pager(child, Original(child.address))
    assert pager.run(pager.is_filled)
    os.kill(child.pid, signal.SIGUSR1)
    assert pager.run(pager.has_answered)
    assert child.answer() == b"\x01"


def cut_off(peer: socket.socket, answer: bytes) -> None:
    """Send half of an answer, and end the connection."""
    peer.sendall(answer[: len(answer) // 2])
    peer.shutdown(socket.SHUT_RDWR)


def answer_another(peer: socket.socket, answer: bytes) -> None:
    """Answer what nobody asked."""
    peer.sendall(HEAD.pack(7, 1, PAGE) + answer[HEAD.size :])


@pytest.mark.parametrize("instead", [cut_off, answer_another])
@pytest.mark.parametrize("purpose", ["rest", "urgent"])
def test_a_connection_that_breaks(
    start: Callable[[Act], Child], instead: Callable[[socket.socket, bytes], None], purpose: str
) -> None:
    """Another one is made, and no page is taken from half an answer, or a wrong one."""
    child = start(right if purpose == "urgent" else when_asked)
    silent = {"rest", "urgent"} - {purpose}
    pager = Pager(child, Original(child.address, {0: instead, 2: instead}, silent))
    if purpose == "rest":
        assert pager.run(pager.is_filled)
        os.kill(child.pid, signal.SIGUSR1)
    assert pager.run(pager.has_answered)
    assert child.answer() == b"\x01"
    assert pager.original.answers > 1


def test_nobody_listens_for_a_while(start: Callable[[Act], Child]) -> None:
    """The thread waits, and its wait counts from the begin."""
    child = start(lambda address: struct.pack("=Q", word(address, 40)))
    pager = Pager(child, Original(child.address, refuses=True))
    began = time.monotonic()
    pager.run(lambda: time.monotonic() > began + 1)
    assert not pager.has_answered()
    pager.original.refuses = False
    assert pager.run(pager.has_answered)
    assert struct.unpack("=Q", child.answer()) == (41,)
    assert max(pager.supply.waits) > 0.9


def test_a_silent_connection(
    start: Callable[[Act], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that is gone without a word is given up."""
    monkeypatch.setattr(supply, "SILENCE_S", 0.5)
    child = start(when_asked)
    original = Original(child.address, silent={"rest"})
    pager = Pager(child, original)
    assert pager.run(lambda: bool(original.asked))
    original.silent.clear()
    assert pager.run(pager.is_filled)


def test_the_original_is_gone(start: Callable[[Act], Child]) -> None:
    """That is known, and the thread waits on: it never reads a zero."""
    child = start(lambda address: struct.pack("=Q", word(address, 40)))

    def gone(peer: socket.socket, answer: bytes) -> None:
        pid, _, address = HEAD.unpack(answer[: HEAD.size])
        peer.sendall(HEAD.pack(pid, 0, address))

    pager = Pager(child, Original(child.address, dict.fromkeys(range(1000), gone)))
    assert pager.run(lambda: pager.supply.is_gone)
    began = time.monotonic()
    pager.run(lambda: time.monotonic() > began + 0.5)
    assert not pager.has_answered()
    assert not pager.is_filled()


def test_memory_that_moves_meanwhile(start: Callable[[Act], Child]) -> None:
    """What was asked for before mremap(2) is asked for anew, and is right where it is now."""

    def act(address: int) -> bytes:
        libc.mremap.restype = ctypes.c_void_p
        size = PAGES * PAGE
        elsewhere = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        target = ctypes.addressof(ctypes.c_char.from_buffer(elsewhere))
        arguments = (ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_size_t(size), 3)
        signal.sigwait(GO)
        moved = libc.mremap(*arguments, ctypes.c_void_p(target))
        signal.sigwait(GO)
        return right(moved)

    child = start(act)
    moved = threading.Event()
    original = Original(child.address, {0: after(moved)})
    pager = Pager(child, original)
    assert pager.run(lambda: original.asked)
    os.kill(child.pid, signal.SIGUSR1)
    asked = child.address
    assert pager.run(lambda: not pager.fillings[0].missing.at(asked))
    moved.set()
    assert pager.run(pager.is_filled)
    os.kill(child.pid, signal.SIGUSR1)
    assert pager.run(pager.has_answered)
    assert child.answer() == b"\x01"


def after(event: threading.Event) -> Callable[[socket.socket, bytes], None]:
    """Return what sends an answer once something has happened."""

    def send(peer: socket.socket, answer: bytes) -> None:
        event.wait(10)
        peer.sendall(answer)

    return send


def test_a_thread_that_waits_where_memory_is_given_back(start: Callable[[Act], Child]) -> None:
    """Its page arrives and does not belong there any more: it is woken, and finds zero."""

    def act(address: int) -> bytes:
        reader, writer = os.pipe()
        page = (ctypes.c_char * 8).from_address(address + 5 * PAGE)
        thread = threading.Thread(target=lambda: os.write(writer, page))
        thread.start()
        signal.sigwait(GO)
        libc.madvise(ctypes.c_void_p(address + 5 * PAGE), PAGE, mmap.MADV_DONTNEED)
        thread.join()
        return os.read(reader, 8)

    child = start(act)
    given_back = threading.Event()
    original = Original(child.address, dict.fromkeys(range(2), after(given_back)))
    pager = Pager(child, original)
    assert pager.run(lambda: ("urgent", 5) in original.asked)
    os.kill(child.pid, signal.SIGUSR1)
    page = child.address + 5 * PAGE
    assert pager.run(lambda: not pager.fillings[0].missing.at(page))
    given_back.set()
    assert pager.run(pager.has_answered)
    assert child.answer() == bytes(8)


def test_what_was_given_back_meanwhile_stays_zero(start: Callable[[Act], Child]) -> None:
    """Though the old content of the page is on its way already."""

    def act(address: int) -> bytes:
        libc.madvise(ctypes.c_void_p(address), PAGE, mmap.MADV_DONTNEED)
        return struct.pack("=2Q", word(address, 0), word(address, 1))

    child = start(act)
    pager = Pager(child, Original(child.address))
    assert pager.run(lambda: pager.is_filled() and pager.has_answered())
    assert struct.unpack("=2Q", child.answer()) == (0, 2)


def test_a_child_of_the_process(start: Callable[[Act], Child]) -> None:
    """It gets pages of its own, from its parent's original."""

    def act(address: int) -> bytes:
        if pid := os.fork():
            status = os.waitpid(pid, 0)[1]
            return right(address) + bytes([status == 0])
        os._exit(right(address) != b"\x01")

    child = start(act)
    pager = Pager(child, Original(child.address))
    assert pager.run(pager.has_answered)
    assert child.answer() == b"\x01\x01"
    assert len(pager.fillings) == 2
