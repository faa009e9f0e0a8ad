"""The socket that CRIU gets of a page channel, with this process in place of CRIU."""

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

from sojourn.security.tls import TlsIdentity
from sojourn.transfer import channel
from sojourn.transfer.channel import Listener
from sojourn.transfer.relay import CARRIED_BYTES, Carrier, Direct, Relay, Unasked, carrier
from tests.certificates import authority as new_authority
from tests.certificates import issue
from tests.conftest import eventually

SECRET = channel.secret_for("the cluster's key", "0123abcd")
HOST = "127.0.0.1"


@dataclass
class End:
    """One host's end: the carrier, and the socket of its CRIU."""

    carrier: Carrier
    criu: socket.socket


@contextlib.contextmanager
def _end(connection: socket.socket) -> Iterator[End]:
    """Give CRIU its end as a holder does: a duplicate of the descriptor, then ``hand_over``."""
    with carrier(connection) as held:
        criu = socket.socket(fileno=os.dup(held.descriptor))
        held.hand_over()
        with criu:
            yield End(held, criu)


@contextlib.contextmanager
def _both_ends(
    tmp_path: Path, *, encrypted: bool, bytes_per_s: int | None = None
) -> Iterator[tuple[End, End]]:
    """Connect a source and a destination, with certificates and without."""
    source = destination = None
    if encrypted:
        made = new_authority(tmp_path / "pki")
        source, destination = (
            TlsIdentity(issue(made, "alpha"), "beta"),
            TlsIdentity(issue(made, "beta"), "alpha"),
        )
    with contextlib.closing(Listener(HOST, SECRET, destination)) as server:
        sending = channel.connect(HOST, server.port, SECRET, "pages", source)
        channel.pace(sending, bytes_per_s)
        receiving = server.accept(time.monotonic() + 5).socket
        with _end(sending) as one, _end(receiving) as other:
            yield one, other


@pytest.fixture(params=["plain", "encrypted"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[End, End]]:
    """Give out both ends of a connection, with certificates and without."""
    with _both_ends(tmp_path, encrypted=request.param == "encrypted") as both:
        yield both


def _digest_of(criu: socket.socket, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        piece = criu.recv(min(size, 2**20))
        assert piece
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


def test_the_socket_of_criu(ends: tuple[End, End]) -> None:
    """It is the connection itself, or one end of a pair of Unix sockets."""
    families = {Direct: socket.AF_INET, Relay: socket.AF_UNIX}
    for end in ends:
        assert end.criu.family == families[type(end.carrier)]


def test_memory_arrives_unchanged(ends: tuple[End, End]) -> None:
    """Many pieces arrive, the last a partial one, and the destination's answer returns."""
    source, destination = ends
    memory = os.urandom(200 * CARRIED_BYTES + 4097)
    sending = threading.Thread(target=source.criu.sendall, args=(memory,))
    sending.start()
    assert _digest_of(destination.criu, len(memory)) == hashlib.sha256(memory).hexdigest()
    sending.join()
    destination.criu.sendall(b"done")
    assert source.criu.recv(4) == b"done"


def _crossing_s(ends: tuple[End, End], size: int) -> float:
    """Return how long memory of CRIU takes from one end to the other."""
    source, destination = ends
    began = time.monotonic()
    sending = threading.Thread(target=source.criu.sendall, args=(bytes(size),))
    sending.start()
    _digest_of(destination.criu, size)
    sending.join()
    return time.monotonic() - began


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_memory_is_paced(tmp_path: Path, *, encrypted: bool) -> None:
    """The network carries no more per second than the limit; without one, it is faster.

    The kernel does not pace the first ten segments, which have up to 64 KiB on the loopback.
    """
    size, bytes_per_s = 8_000_000, 20_000_000
    with _both_ends(tmp_path / "one", encrypted=encrypted, bytes_per_s=bytes_per_s) as ends:
        limited_s = _crossing_s(ends, size)
    with _both_ends(tmp_path / "other", encrypted=encrypted) as ends:
        assert _crossing_s(ends, size) < limited_s
    assert limited_s >= (size - 10 * 2**16) / bytes_per_s


def test_small_messages_do_not_wait(ends: tuple[End, End]) -> None:
    """A single header arrives at once, a hundred times there and back."""
    source, destination = ends
    for number in range(100):
        message = number.to_bytes(8)
        source.criu.sendall(message)
        source.carrier.uncork()
        assert destination.criu.recv(8) == message
        destination.criu.sendall(message[-1:])
        assert source.criu.recv(1) == message[-1:]


def test_progress(ends: tuple[End, End]) -> None:
    """It counts all that CRIU has written, and at most the handshake besides."""
    source, destination = ends
    before = source.carrier.bytes_sent()
    source.criu.sendall(b"x" * 100_000)
    source.carrier.uncork()
    _digest_of(destination.criu, 100_000)
    eventually(lambda: source.carrier.bytes_sent() == before + 100_000)


def test_a_corked_message_waits(ends: tuple[End, End]) -> None:
    """A connection that CRIU has corked keeps its last small message; a relay cannot be corked."""
    source, destination = ends
    if isinstance(source.carrier, Direct):
        source.criu.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    source.criu.sendall(b"last")
    source.carrier.uncork()
    destination.criu.settimeout(0.1)
    assert destination.criu.recv(4) == b"last"


@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_the_peer_sees_that_criu_has_died(ends: tuple[End, End]) -> None:
    """Otherwise it would wait forever: CRIU has no time-outs."""
    source, destination = ends
    source.criu.sendall(b"half of it")
    source.criu.close()
    assert destination.criu.recv(100) == b"half of it"
    assert destination.criu.recv(100) == b""


@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_a_page_server_that_dies_while_memory_flows(ends: tuple[End, End]) -> None:
    """The dump must fail, so that the tree runs on."""
    source, destination = ends
    destination.criu.close()
    source.criu.settimeout(10)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        source.criu.sendall(b"x" * 100 * CARRIED_BYTES)


@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_a_holder_that_ends_with_its_criu_forwards_the_last_answer(
    ends: tuple[End, End], number: int
) -> None:
    """It sees the page server's end at once, perhaps before it has forwarded its last answer."""
    source, destination = ends
    destination.criu.sendall(b"done")
    destination.criu.close()
    destination.carrier.close()
    assert source.criu.recv(4) == b"done"


@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_a_holder_ends_though_no_data_is_accepted(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stalled network delays it no longer than CRIU's last data may take."""
    monkeypatch.setattr("sojourn.transfer.relay.LAST_DATA_S", 0.2)
    source, _ = ends
    source.criu.setblocking(False)
    eventually(lambda: _is_full(source.criu))
    source.criu.close()
    source.carrier.close()


def _is_full(criu: socket.socket) -> bool:
    """Write until no more data is accepted, here and on the way: the other end does not read."""
    with contextlib.suppress(BlockingIOError):
        while criu.send(b"x" * CARRIED_BYTES):
            pass
    time.sleep(0.1)
    return not select.select([], [criu], [], 0)[1]


@pytest.mark.parametrize("ends", ["encrypted"], indirect=True)
def test_the_last_answer_arrives(ends: tuple[End, End]) -> None:
    """A page server ends right after its answer, which must not get lost."""
    source, destination = ends
    source.criu.sendall(b"x" * 3 * CARRIED_BYTES)
    _digest_of(destination.criu, 3 * CARRIED_BYTES)
    destination.criu.sendall(b"done")
    destination.criu.close()
    assert source.criu.recv(4) == b"done"
    assert source.criu.recv(4) == b""


def test_nobody_asks_for_pages() -> None:
    """CRIU finds the end at once, may answer that all the same, and is never reset."""
    with contextlib.closing(Unasked()) as held:
        criu = socket.socket(fileno=os.dup(held.descriptor))
        held.hand_over()
        with criu:
            assert criu.recv(32) == b""
            criu.sendall(bytes(4))
            assert held.bytes_sent() == 0
