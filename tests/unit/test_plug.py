"""What CRIU is given of a page channel, with this process in CRIU's place: what goes in comes out, ends are seen."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sojourn import channel
from sojourn.channel import Listener
from sojourn.plug import CARRIED_BYTES, Direct, Plug, Relay, plug
from sojourn.tls import Party
from tests.certificates import authority as new_authority
from tests.certificates import issue
from tests.conftest import eventually

SECRET = channel.secret_for("the cluster's key", "0123abcd")
HOST = "127.0.0.1"


@dataclass
class End:
    """One host's end: the plug, and what its CRIU holds."""

    plug: Plug
    criu: socket.socket


@contextlib.contextmanager
def _end(connection: socket.socket) -> Iterator[End]:
    """Give CRIU its end as a holder does: CRIU inherits the descriptor, and then it is handed over."""
    with plug(connection) as held:
        criu = socket.socket(fileno=os.dup(held.descriptor))
        held.hand_over()
        with criu:
            yield End(held, criu)


@pytest.fixture(params=["plain", "encrypted"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[End, End]]:
    """Connect a source and a destination, with certificates and without."""
    source = destination = None
    if request.param == "encrypted":
        made = new_authority(tmp_path / "pki")
        source, destination = Party(issue(made, "alpha"), "beta"), Party(issue(made, "beta"), "alpha")
    with contextlib.closing(Listener(HOST, SECRET, destination)) as server:
        sending = channel.connect(HOST, server.port, SECRET, "pages", source)
        receiving = server.accept(time.monotonic() + 5).socket
        with _end(sending) as one, _end(receiving) as other:
            yield one, other


def _digest_of(criu: socket.socket, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        piece = criu.recv(min(size, 2**20))
        assert piece
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


def test_what_criu_is_given(ends: tuple[End, End]) -> None:
    """The connection itself, or one end of a pair that is no TCP socket."""
    families = {Direct: socket.AF_INET, Relay: socket.AF_UNIX}
    for each in ends:
        assert each.criu.family == families[type(each.plug)]


def test_memory_arrives_as_it_is(ends: tuple[End, End]) -> None:
    """Many pieces, the last no whole one; and the destination's answer comes back."""
    source, destination = ends
    memory = os.urandom(200 * CARRIED_BYTES + 4097)
    sending = threading.Thread(target=source.criu.sendall, args=(memory,))
    sending.start()
    assert _digest_of(destination.criu, len(memory)) == hashlib.sha256(memory).hexdigest()
    sending.join()
    destination.criu.sendall(b"done")
    assert source.criu.recv(4) == b"done"


def test_small_words_do_not_wait(ends: tuple[End, End]) -> None:
    """A header by itself arrives by itself, a hundred times there and back."""
    source, destination = ends
    for number in range(100):
        word = number.to_bytes(8)
        source.criu.sendall(word)
        source.plug.uncork()
        assert destination.criu.recv(8) == word
        destination.criu.sendall(word[-1:])
        assert source.criu.recv(1) == word[-1:]


def test_progress(ends: tuple[End, End]) -> None:
    """All that CRIU has written, and no more than the channel's own words beside it."""
    source, destination = ends
    before = source.plug.bytes_sent()
    source.criu.sendall(b"x" * 100_000)
    source.plug.uncork()
    _digest_of(destination.criu, 100_000)
    eventually(lambda: source.plug.bytes_sent() == before + 100_000)


def test_a_corked_word_waits(ends: tuple[End, End]) -> None:
    """Without uncorking, a connection that CRIU has corked keeps its last small word; a relay can not be corked."""
    source, destination = ends
    if isinstance(source.plug, Direct):
        source.criu.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    source.criu.sendall(b"last")
    source.plug.uncork()
    destination.criu.settimeout(0.1)
    assert destination.criu.recv(4) == b"last"


@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_a_criu_that_dies_is_seen_by_the_other(ends: tuple[End, End]) -> None:
    """Else it would wait for ever: CRIU has no time-outs."""
    source, destination = ends
    source.criu.sendall(b"half of it")
    source.criu.close()
    assert destination.criu.recv(100) == b"half of it"
    assert destination.criu.recv(100) == b""


@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_a_page_server_that_dies_is_seen_while_memory_flows(ends: tuple[End, End]) -> None:
    """The dump must fail, so that the tree runs on."""
    source, destination = ends
    destination.criu.close()
    source.criu.settimeout(10)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        source.criu.sendall(b"x" * 100 * CARRIED_BYTES)


@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_a_holder_that_goes_away_with_its_criu_lets_the_last_answer_through(ends: tuple[End, End], number: int) -> None:
    """It sees at once that the page server has ended, perhaps before it has carried what that has said last."""
    source, destination = ends
    destination.criu.sendall(b"done")
    destination.criu.close()
    destination.plug.close()
    assert source.criu.recv(4) == b"done"


@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_a_holder_goes_away_though_nobody_takes_what_it_carries(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that stands still keeps it no longer than CRIU's last words may take."""
    monkeypatch.setattr("sojourn.plug.LAST_WORDS_S", 0.2)
    source, _ = ends
    source.criu.setblocking(False)
    eventually(lambda: _is_full(source.criu))
    source.criu.close()
    source.plug.close()


def _is_full(criu: socket.socket) -> bool:
    """Write until nothing more is taken, here and on the way, since nobody reads at the other end."""
    with contextlib.suppress(BlockingIOError):
        while criu.send(b"x" * CARRIED_BYTES):
            pass
    time.sleep(0.1)
    return not select.select([], [criu], [], 0)[1]


@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_the_last_answer_arrives(ends: tuple[End, End]) -> None:
    """A page server ends with its answer; that it ends at once must not take the answer away."""
    source, destination = ends
    source.criu.sendall(b"x" * 3 * CARRIED_BYTES)
    _digest_of(destination.criu, 3 * CARRIED_BYTES)
    destination.criu.sendall(b"done")
    destination.criu.close()
    assert source.criu.recv(4) == b"done"
    assert source.criu.recv(4) == b""
