"""Pages put into place by the kernel's userfaultfd(2), in a process that changes its mappings."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sojourn.criu.pagemap import PAGE
from sojourn.system import clone, userfaultfd
from sojourn.system.userfaultfd import Event
from sojourn.transfer.filling import Filling
from sojourn.transfer.pager_record import Ended, Received, Record, Space
from tests.unit.missing import GO, PAGES, Act, Child, libc, starter, word


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Act], Child]]:
    """Return what starts a child that does something with its memory, and answers."""
    with starter(tmp_path) as begin:
        yield begin


def serve(child: Child, fillings: list[Filling], *, fill: bool = False) -> None:
    """Serve until the child has answered, and fill everything then if asked to."""
    while True:
        if fill:
            for filling in fillings:
                while not filling.is_complete and filling.fill(4 * PAGE, committed=True):
                    pass
        waiting = [child.answers, *(filling.descriptor for filling in fillings)]
        ready = select.select(waiting, [], [], 30)[0]
        assert ready, "the child waits for ever"
        if child.answers in ready:
            return
        for number, filling in enumerate(list(fillings)):
            if filling.descriptor in ready:
                handle(child, number, fillings)


def handle(child: Child, number: int, fillings: list[Filling]) -> None:
    """Do what a pager does with the messages of one address space."""
    filling = fillings[number]
    for message in child.record.read(number, filling.descriptor):
        if message.event is Event.FAULT:
            filling.serve(message.second, committed=True)
        elif message.event is Event.FORK:
            fillings.append(filling.fork(message.first))
        else:
            filling.follow(message)


def test_a_page_comes_when_it_is_touched(start: Callable[[Act], Child]) -> None:
    """The one that a thread waits for, with what is around it; the rest is still missing."""
    child = start(lambda address: struct.pack("=2Q", word(address, 40), word(address, 3)))
    filling = child.filling()
    serve(child, [filling])
    assert struct.unpack("=2Q", child.answer()) == (41, 4)
    assert not filling.is_complete


def test_all_of_it(start: Callable[[Act], Child], tmp_path: Path) -> None:
    """Every page is right, and the page store has given its memory back."""

    def check(address: int) -> bytes:
        return bytes([all(word(address, page) == page + 1 for page in range(PAGES))])

    child = start(check)
    filling = child.filling()
    serve(child, [filling], fill=True)
    assert child.answer() == b"\x01"
    assert filling.is_complete
    assert (tmp_path / "pages-1.img").stat().st_blocks == 0


def test_what_was_given_back_is_zero(start: Callable[[Act], Child]) -> None:
    """A page that the process gave back does not come back with its old content."""

    def act(address: int) -> bytes:
        libc.madvise(ctypes.c_void_p(address + 5 * PAGE), 2 * PAGE, mmap.MADV_DONTNEED)
        return struct.pack("=3Q", *(word(address, page) for page in (5, 6, 7)))

    child = start(act)
    serve(child, [child.filling()], fill=True)
    assert struct.unpack("=3Q", child.answer()) == (0, 0, 8)


def test_a_successor_knows_what_was_given_back(start: Callable[[Act], Child]) -> None:
    """By the record: with the same address space anew, the old content would come back."""

    def act(address: int) -> bytes:
        libc.madvise(ctypes.c_void_p(address + 5 * PAGE), PAGE, mmap.MADV_DONTNEED)
        signal.sigwait(GO)
        return struct.pack("=2Q", word(address, 5), word(address, 6))

    child = start(act)
    first = child.filling()
    assert select.select([first.descriptor], [], [], 30)[0]
    handle(child, 0, [first])
    successor = child.filling()
    for found in child.record.replay():
        if isinstance(found, Received):
            successor.follow(found.message)
    os.kill(child.pid, signal.SIGUSR1)
    serve(child, [successor], fill=True)
    assert struct.unpack("=2Q", child.answer()) == (0, 7)


def test_a_child_has_what_its_parent_had(start: Callable[[Act], Child]) -> None:
    """Parent and child go their own ways; the page store keeps what one of them misses."""

    def act(address: int) -> bytes:
        if pid := os.fork():
            libc.madvise(ctypes.c_void_p(address), PAGE, mmap.MADV_DONTNEED)
            status = os.waitpid(pid, 0)[1]
            return struct.pack("=3Q", word(address, 0), word(address, 9), status)
        os._exit(not (word(address, 0) == 1 and word(address, 63) == 64))

    child = start(act)
    fillings = [child.filling()]
    serve(child, fillings)
    assert struct.unpack("=3Q", child.answer()) == (0, 10, 0)
    assert len(fillings) == 2


def forked(child: Child, fillings: list[Filling], count: int) -> None:
    """Read messages until so many children are there."""
    while len(fillings) <= count:
        assert select.select([child.descriptor], [], [], 30)[0]
        handle(child, 0, fillings)


def ended(filling: Filling) -> None:
    """Wait until a process has ended."""
    until = time.monotonic() + 20
    while not userfaultfd.is_gone(filling.descriptor):
        assert time.monotonic() < until


def stored(tmp_path: Path) -> int:
    """Return how many pages the page store has."""
    return (tmp_path / "pages-1.img").stat().st_blocks * 512 // PAGE


def test_children_that_have_ended_take_nothing(
    start: Callable[[Act], Child], tmp_path: Path
) -> None:
    """What is put into place is given back as if there had been none."""

    def act(_: int) -> bytes:
        for _ in range(20):
            if pid := os.fork():
                os.waitpid(pid, 0)
            else:
                os._exit(0)
        signal.sigwait(GO)
        return b""

    child = start(act)
    fillings = [child.filling()]
    forked(child, fillings, 20)
    ended(fillings[-1])
    assert not userfaultfd.is_gone(child.descriptor)
    assert fillings[0].fill(8 * PAGE, committed=True)
    assert stored(tmp_path) == PAGES - 8


def test_what_came_while_a_child_lived_is_given_back_later(
    start: Callable[[Act], Child], tmp_path: Path
) -> None:
    """The page store keeps it for the child, and no longer than that."""

    def act(_: int) -> bytes:
        if pid := os.fork():
            signal.sigwait(GO)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            signal.sigwait(GO)
        signal.sigtimedwait(GO, 20)
        os._exit(0)

    child = start(act)
    fillings = [child.filling()]
    forked(child, fillings, 1)
    while not fillings[0].fill(8 * PAGE, committed=True):
        pass  # the fork goes on until its message has been read
    assert stored(tmp_path) == PAGES
    os.kill(child.pid, signal.SIGUSR1)
    ended(fillings[1])
    assert fillings[0].fill(8 * PAGE, committed=True)
    assert stored(tmp_path) == PAGES - 16


def test_the_record_of_an_end(tmp_path: Path) -> None:
    """A successor does not take the next child's descriptor for that of one which has ended."""
    record = Record(tmp_path / "record")
    record.add(Space(7, 3))
    record.end(0)
    record.add(Space(8, 3))
    assert [*Record(tmp_path / "record").replay()] == [Space(7, 3), Ended(0), Space(8, 3)]


def test_what_a_child_finds_zero(start: Callable[[Act], Child]) -> None:
    """Memory that its parent keeps from it (``MADV_WIPEONFORK``), such as that of a generator."""

    def act(address: int) -> bytes:
        libc.madvise(ctypes.c_void_p(address), 2 * PAGE, 18)
        if pid := os.fork():
            status = os.waitpid(pid, 0)[1]
            return struct.pack("=3Q", word(address, 0), word(address, 9), status)
        os._exit(not (word(address, 0) == word(address, 1) == 0 and word(address, 2) == 3))

    child = start(act)
    serve(child, [child.filling(wiped=2)], fill=True)
    assert struct.unpack("=3Q", child.answer()) == (1, 10, 0)


def test_only_what_was_asked_for_is_put_into_place(start: Callable[[Act], Child]) -> None:
    """Where something else is missing by now, what has arrived does not belong."""
    child = start(lambda _: b"")
    filling = child.remote()
    asked = filling.missing.at(child.address)
    assert asked
    # As after mremap(2) of the upper half onto the lower one.
    filling.missing.move(child.address + 32 * PAGE, child.address, 32 * PAGE)
    before = filling.missing_bytes
    assert filling.put(asked, child.store, committed=True)
    assert filling.missing_bytes == before == 32 * PAGE


def test_a_process_that_ends(start: Callable[[Act], Child]) -> None:
    """Nothing is missing any more."""
    child = start(lambda _: os._exit(1))
    filling = child.filling()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert filling.fill(PAGE, committed=True)
    assert filling.is_complete


def test_before_the_commit_the_store_keeps_all(
    start: Callable[[Act], Child], tmp_path: Path
) -> None:
    """Another restore may need the same pages."""
    child = start(lambda _: b"")
    filling = child.filling()
    assert filling.fill(8 * PAGE, committed=False)
    assert (tmp_path / "pages-1.img").stat().st_blocks * 512 == PAGES * PAGE


def test_descriptors_are_shared() -> None:
    """What the child opens is open here too, and stays open when it is killed."""
    reader, writer = os.pipe()
    pid = clone.sharing_descriptors()
    if pid == 0:
        opened = os.memfd_create("shared")
        os.write(opened, b"here")
        os.write(writer, struct.pack("=i", opened))
        os.kill(os.getpid(), signal.SIGKILL)
    (opened,) = struct.unpack("=i", os.read(reader, 4))
    os.waitpid(pid, 0)
    assert os.pread(opened, 4, 0) == b"here"
    for descriptor in (opened, reader, writer):
        os.close(descriptor)
