"""Pages handed out of a stopped process, by the program that does it, on the loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from sojourn.criu.pagemap import PAGE
from sojourn.model import Member, Phase, Plan, Role
from sojourn.state.entry import Entry
from sojourn.state.journal import Journal
from sojourn.system import process
from sojourn.transfer import channel, page_protocol, sender
from sojourn.transfer.page_protocol import HEAD, MOST, Question

ID = "0123abcd-4567"
HOST = "127.0.0.1"
SECRET = channel.secret_for("the cluster's key", ID)

#: Has four pages of which the third is zero, prints their address, and stops itself.
ORIGINAL = """
import ctypes, mmap, os, signal
memory = mmap.mmap(-1, 4 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = b"1" * 4096 + b"2" * 4096 + bytes(4096) + b"4" * 4096
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@dataclass
class Original:
    """A stopped process, its migration, and where its memory is."""

    program: subprocess.Popen[bytes]
    journal: Journal
    entry: Entry
    address: int

    @property
    def pid(self) -> int:
        """Its PID."""
        return self.program.pid

    def release(self) -> None:
        """Leave the decision to the destination."""
        for phase in (Phase.FREEZING, Phase.FROZEN, Phase.RELEASED):
            self.entry = self.journal.advance(self.entry, phase)


@pytest.fixture
def original(tmp_path: Path) -> Iterator[Original]:
    """Start and stop the process, and record it."""
    program = subprocess.Popen([sys.executable, "-c", ORIGINAL], stdout=subprocess.PIPE)
    assert program.stdout
    address = int(program.stdout.readline())
    os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
    journal = Journal(tmp_path / "journal.db")
    entry = journal.open(ID, Role.SOURCE, Plan(program.pid, "alpha", "beta", "post-copy"))
    entry = journal.record_tree(entry, [Member(process.identity(program.pid))])
    yield Original(program, journal, entry, address)
    program.kill()
    program.wait()


@contextmanager
def running(original: Original, port: int = 0) -> Iterator[int]:
    """Start a sender; yield its port."""
    work = original.journal.path.parent
    assignment = sender.Assignment(
        migration=ID,
        journal=str(original.journal.path),
        work=str(work),
        secret=SECRET.hex(),
        certificates="",
        peer="beta",
        address=HOST,
        port=port,
        bytes_per_s=None,
    )
    child = sender.start(assignment, work / "sender.log")
    try:
        with child.stdout:
            yield int(json.loads(child.stdout.readline())["port"])
    finally:
        child.kill()


@pytest.fixture
def port(original: Original) -> Iterator[int]:
    """Start a sender; return its port."""
    with running(original) as found:
        yield found


def connected(port: int) -> socket.socket:
    """Connect as the pager does."""
    peer = channel.connect(HOST, port, SECRET, "urgent")
    limit(peer)
    return peer


def limit(peer: socket.socket) -> None:
    """Let no receive wait for more than ten seconds; with Python's own limit none waits for all."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@2l", 10, 0))


def ask(peer: socket.socket, question: Question) -> bytes:
    """Ask, and return the head of the answer; empty if the connection ends instead."""
    peer.sendall(question.to_bytes())
    return peer.recv(HEAD.size, socket.MSG_WAITALL)


def test_pages_and_no_zeros(original: Original, port: int) -> None:
    """What is zero does not cross; the rest comes in order, as often as it is asked for."""
    original.release()
    question = Question(original.pid, original.address, 4 * PAGE)
    with closing(connected(port)) as peer:
        for _ in range(2):
            assert ask(peer, question) == question.to_bytes()
            follow = page_protocol.follow(peer.recv(question.map_bytes, socket.MSG_WAITALL), 4)
            assert follow == [True, True, False, True]
            pages = peer.recv(3 * PAGE, socket.MSG_WAITALL)
            assert pages == b"1" * PAGE + b"2" * PAGE + b"4" * PAGE


def test_nothing_before_the_images_have_left(original: Original, port: int) -> None:
    """It can be connected to, and answers no question; afterwards it does."""
    question = Question(original.pid, original.address, PAGE)
    with closing(connected(port)) as peer, closing(connected(port)) as later:
        assert ask(peer, question) == b""
        original.release()
        assert ask(later, question) == question.to_bytes()


def test_an_original_that_is_gone(original: Original, port: int) -> None:
    """It is reported as gone, also to who was answered before; nobody else's memory is read."""
    original.release()
    question = Question(original.pid, original.address, PAGE)
    with closing(connected(port)) as before:
        assert ask(before, question) == question.to_bytes()
        before.recv(question.map_bytes + PAGE, socket.MSG_WAITALL)
        original.program.send_signal(signal.SIGKILL)
        original.program.wait()
        assert ask(before, question) == page_protocol.gone(question)
    with closing(connected(port)) as after:
        assert ask(after, question) == page_protocol.gone(question)


def test_a_port_that_is_taken(original: Original) -> None:
    """Another one is used, which the journal has before anybody is answered."""
    original.release()
    question = Question(original.pid, original.address, PAGE)
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        with running(original, taken) as port, closing(connected(port)) as peer:
            assert port != taken
            known = original.journal.entry(ID, Role.SOURCE)
            assert known is not None
            assert known.facts["moved_port"] == port
            assert ask(peer, question) == question.to_bytes()
    with running(original, port) as again:
        assert again == port


def test_a_process_of_nobody(original: Original, port: int) -> None:
    """Only processes of the tree are read."""
    original.release()
    question = Question(os.getpid(), original.address, PAGE)
    with closing(connected(port)) as peer:
        assert ask(peer, question) == page_protocol.gone(question)


def test_another_process_with_the_pid_of_the_original(original: Original, port: int) -> None:
    """Its memory is not read."""
    who = process.identity(original.pid)
    another = Member(replace(who, start_time=who.start_time + 1))
    original.entry = original.journal.record_tree(original.entry, [another])
    original.release()
    question = Question(original.pid, original.address, PAGE)
    with closing(connected(port)) as peer:
        assert ask(peer, question) == page_protocol.gone(question)


@pytest.mark.parametrize(
    ("pages", "address"), [(0, 0), (MOST // PAGE + 1, 0), (2**32 - 1, 0), (1, 17)]
)
def test_a_malformed_question(original: Original, port: int, pages: int, address: int) -> None:
    """The connection ends; others are served."""
    original.release()
    with closing(connected(port)) as peer:
        peer.sendall(HEAD.pack(original.pid, pages, address))
        assert peer.recv(1) == b""
    question = Question(original.pid, original.address, PAGE)
    with closing(connected(port)) as peer:
        assert ask(peer, question) == question.to_bytes()


def test_what_is_no_readers_business(port: int) -> None:
    """A connection for the small images is not for this program."""
    with closing(channel.connect(HOST, port, SECRET, "images")) as peer:
        limit(peer)
        assert peer.recv(1) == b""


@pytest.mark.parametrize("pages", [[True], [False], [True, False, False, True], [False] * 9])
def test_the_map(pages: list[bool]) -> None:
    """It is read as it was written, and divides the pages into runs."""
    raw = page_protocol.map_of(pages)
    assert page_protocol.follow(raw, len(pages)) == pages
    runs = [*page_protocol.runs(pages)]
    assert [follows for follows, begin, end in runs for _ in range((end - begin) // PAGE)] == pages
    assert runs[0][1] == 0
    assert all(one[2] == two[1] for one, two in pairwise(runs))
