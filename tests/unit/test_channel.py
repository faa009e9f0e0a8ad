"""The page channel over real sockets: who is accepted, who is rejected, and what arrives."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from sojourn.errors import ChannelFailed, CommandFailed, ImagesIncomplete
from sojourn.model import MAX_BANDWIDTH_MBIT, MBIT_BYTES
from sojourn.system.mounts import Tmpfs, unmount
from sojourn.system.run import run
from sojourn.transfer import channel, greeting
from sojourn.transfer.channel import Connection, Listener

SECRET = channel.secret_for("the cluster's key", "0123abcd")
WRONG = channel.secret_for("the cluster's key", "0123abce")
HOST = "127.0.0.1"

#: The length of all that a caller sends: its greeting and its code.
INTRODUCTION_BYTES = greeting.LAYOUT.size + channel.CODE_BYTES


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Return threads for the other side."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture
def server() -> Iterator[Listener]:
    """Listen as a destination."""
    with contextlib.closing(Listener(HOST, SECRET)) as listening:
        yield listening


@pytest.fixture
def raw() -> Iterator[socket.socket]:
    """Listen on a plain socket, for a false destination."""
    with socket.create_server((HOST, 0)) as listening:
        yield listening


@pytest.fixture
def pair(
    server: Listener, pool: ThreadPoolExecutor
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection for images: source, destination."""
    accepted = _accepting(pool, server)
    with (
        channel.connect(HOST, server.port, SECRET, "images") as source,
        accepted.result(5).socket as destination,
    ):
        yield source, destination


def _port(raw: socket.socket) -> int:
    return int(raw.getsockname()[1])


def _accepting(
    pool: ThreadPoolExecutor, server: Listener, within_s: float = 5
) -> Future[Connection]:
    return pool.submit(server.accept, time.monotonic() + within_s)


@pytest.mark.parametrize("purpose", channel.PURPOSES)
def test_a_good_handshake(server: Listener, pool: ThreadPoolExecutor, purpose: str) -> None:
    """If both know the secret, data arrives, and no time limit is left on the socket."""
    accepted = _accepting(pool, server)
    with channel.connect(HOST, server.port, SECRET, purpose) as source:
        connection = accepted.result(5)
        with connection.socket as destination:
            source.sendall(b"memory")
            assert destination.recv(6) == b"memory"
            assert (connection.purpose, source.gettimeout(), destination.gettimeout()) == (
                purpose,
                None,
                None,
            )


def test_a_source_with_the_wrong_secret(server: Listener, pool: ThreadPoolExecutor) -> None:
    """It is rejected, and the real source is accepted after it."""
    accepted = _accepting(pool, server)
    with pytest.raises(ChannelFailed):
        channel.connect(HOST, server.port, WRONG, "pages")
    with channel.connect(HOST, server.port, SECRET, "pages"), accepted.result(5).socket:
        assert accepted.result().purpose == "pages"


def test_a_purpose_that_does_not_exist(server: Listener, pool: ThreadPoolExecutor) -> None:
    """The secret alone does not open a connection for something else."""
    accepted = _accepting(pool, server, 0.5)
    with pytest.raises(ChannelFailed):
        channel.connect(HOST, server.port, SECRET, "spy")
    with pytest.raises(ChannelFailed, match="did not connect in time"):
        accepted.result(5)


def _impostor(raw: socket.socket, answer: bytes | None) -> bytes:
    """Answer without the secret: with ``answer``, or with the caller's own code."""
    peer, _ = raw.accept()
    with peer:
        peer.settimeout(5)
        peer.sendall(greeting.MAGIC + bytes(greeting.NONCE_BYTES))
        received = b""
        while len(received) < INTRODUCTION_BYTES and (more := peer.recv(4096)):
            received += more
        peer.sendall(received[-32:] if answer is None else answer)
        return received


@pytest.mark.parametrize("answer", [bytes(32), None], ids=["made up", "reflected"])
def test_a_destination_with_the_wrong_secret(
    raw: socket.socket, pool: ThreadPoolExecutor, answer: bytes | None
) -> None:
    """The source rejects a peer that cannot prove the secret, or that reflects its own proof."""
    pool.submit(_impostor, raw, answer)
    with pytest.raises(ChannelFailed, match="does not know the migration's secret"):
        channel.connect(HOST, _port(raw), SECRET, "pages")


def test_a_recorded_handshake_cannot_be_replayed(
    server: Listener, raw: socket.socket, pool: ThreadPoolExecutor
) -> None:
    """A message that was valid on one connection is rejected on the next, with a new nonce."""
    recorded = pool.submit(_impostor, raw, bytes(32))
    with pytest.raises(ChannelFailed):
        channel.connect(HOST, _port(raw), SECRET, "pages")
    accepted = _accepting(pool, server, 0.5)
    with socket.create_connection((HOST, server.port)) as peer:
        peer.sendall(recorded.result(5))
        with pytest.raises(ChannelFailed, match="did not connect in time"):
            accepted.result(5)


def test_the_secret_never_travels(raw: socket.socket, pool: ThreadPoolExecutor) -> None:
    """No message contains the secret, and two handshakes have no nonce or code in common."""
    received = []
    for _ in range(2):
        heard = pool.submit(_impostor, raw, bytes(32))
        with pytest.raises(ChannelFailed):
            channel.connect(HOST, _port(raw), SECRET, "pages")
        received.append(heard.result(5))
    assert SECRET not in received[0]
    for field in (slice(14, 46), slice(46, 78), slice(78, None)):  # nonce, both codes
        assert received[0][field] != received[1][field]


def test_two_migrations_have_two_secrets() -> None:
    """The secret depends on the key and on the migration."""
    secrets = {
        channel.secret_for(key, migration)
        for key in ("k", "l")
        for migration in ("0123abcd", "0123abce")
    }
    assert len(secrets) == 4


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n" * 9, b"\0" * 200, b"sojourn2" + b"\xff" * 200, b"s"]
)
def test_garbage(server: Listener, pool: ThreadPoolExecutor, garbage: bytes) -> None:
    """Whatever a stranger sends, it is rejected, and the real source is accepted."""
    accepted = _accepting(pool, server)
    with socket.create_connection((HOST, server.port)) as stranger:
        stranger.sendall(garbage)
        with contextlib.suppress(OSError):  # it may have been turned away already
            stranger.shutdown(socket.SHUT_WR)
        with channel.connect(HOST, server.port, SECRET, "pages"), accepted.result(5).socket:
            assert accepted.result().purpose == "pages"


def test_a_stranger_that_speaks_first_and_garbage_to_the_source(
    raw: socket.socket, pool: ThreadPoolExecutor
) -> None:
    """A source that has reached another program reports so."""
    pool.submit(
        lambda: raw.accept()[0].sendall(b"220 mail.example ESMTP ready, at your service\r\n")
    )
    with pytest.raises(ChannelFailed, match="does not speak Sojourn's protocol"):
        channel.connect(HOST, _port(raw), SECRET, "pages")


def test_a_port_without_a_listener() -> None:
    """It is reported in one sentence with the address."""
    closed = Listener(HOST, SECRET)
    closed.close()
    with pytest.raises(
        ChannelFailed, match=f"Cannot connect to {HOST} port {closed.port}: Connection refused"
    ):
        channel.connect(HOST, closed.port, SECRET, "pages")


def test_the_end_of_listening(server: Listener, pool: ThreadPoolExecutor) -> None:
    """An accepted connection stays open after listening has ended; closing is idempotent."""
    accepted = _accepting(pool, server)
    with (
        channel.connect(HOST, server.port, SECRET, "pages") as source,
        accepted.result(5).socket as destination,
    ):
        server.close()
        server.close()
        source.sendall(b"memory")
        assert destination.recv(6) == b"memory"


def test_an_address_of_another_host() -> None:
    """It is reported in one sentence (192.0.2.1 belongs to no host, RFC 5737)."""
    with pytest.raises(ChannelFailed, match=r"Cannot listen on 192\.0\.2\.1"):
        Listener("192.0.2.1", SECRET)


def test_the_deadline_of_accept(server: Listener) -> None:
    """Without a caller, it fails at the deadline and not much later."""
    began = time.monotonic()
    with pytest.raises(ChannelFailed, match="did not connect in time"):
        server.accept(began + 0.2)
    assert 0.2 <= time.monotonic() - began < 1


#: A source with the handshake limit of the product, in a process of its own.
SOURCE = (
    "import sys; from sojourn.transfer import channel\n"
    "channel.connect('127.0.0.1', int(sys.argv[1]), bytes.fromhex(sys.argv[2]), 'pages').close()"
)


def _source(server: Listener) -> int:
    argv = [sys.executable, "-c", SOURCE, str(server.port), SECRET.hex()]
    return run(argv, deadline_s=10, check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode


def _silent(server: Listener) -> socket.socket:
    """Return a stranger's connection that is in the handshake, or waits for it."""
    return socket.create_connection((HOST, server.port))


def test_several_silent_strangers(server: Listener, pool: ThreadPoolExecutor) -> None:
    """They do not delay the real source at all, let alone for the handshake's time limit."""
    accepted = _accepting(pool, server)
    with _silent(server), _silent(server), _silent(server):
        began = time.monotonic()
        channel.connect(HOST, server.port, SECRET, "pages").close()
        accepted.result(5).socket.close()
        assert time.monotonic() - began < channel.HANDSHAKE_S / 2


def test_more_silent_strangers_than_may_wait(
    server: Listener, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have waited longest are turned away; the real source is accepted at once."""
    monkeypatch.setattr(greeting, "GREETING_S", 60)
    accepted = _accepting(pool, server)
    with contextlib.ExitStack() as strangers:
        first = strangers.enter_context(_silent(server))
        for _ in range(greeting.MOST_WAITING):
            strangers.enter_context(_silent(server))
        channel.connect(HOST, server.port, SECRET, "pages").close()
        accepted.result(5).socket.close()
        first.settimeout(5)
        assert first.recv(1) == b""


def test_a_crowd(server: Listener, pool: ThreadPoolExecutor) -> None:
    """Silent, dribbling and flooding callers never keep the real source from connecting."""
    over = threading.Event()
    crowd = [pool.submit(_come_again, server, over, act) for act in (_hang_up, _spam, _wait)]
    try:
        for _ in range(20):
            accepted = _accepting(pool, server)
            channel.connect(HOST, server.port, SECRET, "pages").close()
            accepted.result(5).socket.close()
    finally:
        over.set()
    assert min(each.result(10) for each in crowd) > 20


def _come_again(
    server: Listener, over: threading.Event, act: Callable[[socket.socket], None]
) -> int:
    """Connect again and again, keeping the last 300 connections open; return how often."""
    kept: collections.deque[socket.socket] = collections.deque(maxlen=300)
    times = 0
    while not over.is_set():
        times += 1
        if len(kept) == kept.maxlen:
            kept[0].close()
        with contextlib.suppress(OSError):
            kept.append(_silent(server))
            act(kept[-1])
    for stranger in kept:
        stranger.close()
    return times


def _hang_up(stranger: socket.socket) -> None:
    stranger.close()


def _spam(stranger: socket.socket) -> None:
    stranger.sendall(b"x" * 1000)


def _wait(stranger: socket.socket) -> None:
    stranger.send(greeting.MAGIC)
    time.sleep(0.001)


def test_a_recorded_greeting_opens_no_second_connection(
    server: Listener, pool: ThreadPoolExecutor
) -> None:
    """Else whoever heard it could occupy threads with it."""
    recorded = greeting.Greeting.new("pages").to_bytes(SECRET)
    with _silent(server) as first, _silent(server) as second:
        for stranger in (first, second):
            stranger.settimeout(5)
            stranger.sendall(recorded)
        answers = [first.recv(8), second.recv(8)]
    assert sorted(answers) == [b"", greeting.MAGIC]


def _dribble(stranger: socket.socket) -> None:
    for byte in greeting.MAGIC + bytes(100):
        stranger.send(bytes([byte]))
        time.sleep(0.05)


def test_a_stranger_that_dribbles(
    server: Listener, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that sends a byte now and then is rejected at the time limit like a silent one."""
    monkeypatch.setattr(greeting, "GREETING_S", 0.3)
    began = time.monotonic()
    with _silent(server) as stranger, pytest.raises(ConnectionError):
        _dribble(stranger)
    assert 0.3 <= time.monotonic() - began < 2


def _files(directory: Path, sizes: dict[str, int]) -> list[Path]:
    directory.mkdir()
    for name, size in sizes.items():
        (directory / name).write_bytes(os.urandom(size))
    return sorted(directory.iterdir())


@pytest.mark.parametrize(
    "sizes",
    [{"empty.img": 0}, {"big.img": 5_000_001}, {f"core-{n}.img": n for n in range(300)}, {}],
    ids=["empty", "big", "many", "none"],
)
def test_files_arrive(
    pair: tuple[socket.socket, socket.socket],
    pool: ThreadPoolExecutor,
    tmp_path: Path,
    sizes: dict[str, int],
) -> None:
    """Every file arrives complete, and both sides have the same manifest."""
    files = _files(tmp_path / "sent", sizes)
    (tmp_path / "here").mkdir()
    sent = pool.submit(channel.send_files, pair[0], files, 5)
    received = channel.receive_files(pair[1], tmp_path / "here", 5)
    channel.confirm(pair[1])
    assert sent.result(5) == received == sizes
    assert all((tmp_path / "here" / file.name).read_bytes() == file.read_bytes() for file in files)


def test_images_are_paced(
    pair: tuple[socket.socket, socket.socket], pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """They take as long as the limit has it, less ten segments, which the kernel does not pace."""
    size, bytes_per_s = 4_000_000, 20_000_000
    channel.pace(pair[0], bytes_per_s)
    files = _files(tmp_path / "sent", {"carried-0.img": size})
    (tmp_path / "here").mkdir()
    began = time.monotonic()
    sent = pool.submit(channel.send_files, pair[0], files, 5)
    channel.receive_files(pair[1], tmp_path / "here", 5)
    assert time.monotonic() - began >= (size - 10 * 2**16) / bytes_per_s
    channel.confirm(pair[1])
    assert sent.result(5) == {"carried-0.img": size}


@pytest.mark.parametrize("mbit", [1, 100, MAX_BANDWIDTH_MBIT])
def test_the_pace_of_the_kernel(pair: tuple[socket.socket, socket.socket], mbit: int) -> None:
    """The kernel has the whole number, the largest too, which needs more than 32 bits."""
    bytes_per_s = mbit * MBIT_BYTES
    channel.pace(pair[0], bytes_per_s)
    kept = pair[0].getsockopt(socket.SOL_SOCKET, channel.SO_MAX_PACING_RATE, 8)
    assert struct.unpack("@L", kept) == (bytes_per_s,)


def test_without_a_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    """The kernel's own value stays, which is none."""
    channel.pace(pair[0], None)
    kept = pair[0].getsockopt(socket.SOL_SOCKET, channel.SO_MAX_PACING_RATE, 8)
    assert kept == b"\xff" * 8


def test_a_connection_that_cannot_be_limited(pair: tuple[socket.socket, socket.socket]) -> None:
    """It is not used without the limit."""
    pair[0].close()
    with pytest.raises(
        ChannelFailed, match="The kernel does not limit the connection to 5 bytes/s"
    ):
        channel.pace(pair[0], 5)


def _announce(peer: socket.socket, manifest: object) -> None:
    header = json.dumps(manifest).encode()
    peer.sendall(struct.pack("!I", len(header)) + header)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/b", "..", ".", "", "a\0b", "\ud800", "a\nb", "x" * 256]
)
def test_a_name_that_is_no_file_name(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, name: str
) -> None:
    """Names that lead elsewhere, or to nowhere, are rejected, and nothing is written."""
    here = tmp_path / "here"
    here.mkdir()
    _announce(pair[0], {name: 1})
    pair[0].sendall(b"x")
    with pytest.raises(ChannelFailed, match="a malformed manifest"):
        channel.receive_files(pair[1], here, 5)
    assert list(tmp_path.rglob("*")) == [here]


@pytest.mark.parametrize("size", [-1, "1", None, 0.5, True])
def test_a_malformed_size(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, size: object
) -> None:
    """A file with a malformed size is rejected, and nothing is written."""
    _announce(pair[0], {"a.img": size})
    with pytest.raises(ChannelFailed, match="a malformed manifest: file"):
        channel.receive_files(pair[1], tmp_path, 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b"[]", b"5", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_a_malformed_manifest(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, text: bytes
) -> None:
    """Only a mapping of names to sizes is accepted."""
    pair[0].sendall(struct.pack("!I", len(text)) + text)
    with pytest.raises(ChannelFailed, match="a malformed manifest"):
        channel.receive_files(pair[1], tmp_path, 5)


def test_a_manifest_too_large(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    """A length that no manifest has is rejected at once."""
    pair[0].sendall(struct.pack("!I", channel.MANIFEST_BYTES + 1))
    with pytest.raises(ChannelFailed, match="too large"):
        channel.receive_files(pair[1], tmp_path, 5)


@pytest.mark.parametrize("size", [0, 999])
def test_a_connection_cut_in_the_middle(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, size: int
) -> None:
    """A source that dies in the middle of a file is an error, never a short file."""
    _announce(pair[0], {"pages-1.img": 1000})
    pair[0].sendall(bytes(size))
    pair[0].close()
    with pytest.raises(ChannelFailed, match="ended the connection in the middle"):
        channel.receive_files(pair[1], tmp_path, 5)


def test_a_destination_that_dies(
    pair: tuple[socket.socket, socket.socket], pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """If the destination dies before it confirms, the source reports a failure."""
    sent = pool.submit(
        channel.send_files, pair[0], _files(tmp_path / "sent", {"a.img": 3_000_000}), 5
    )
    pair[1].recv(1000)
    pair[1].close()
    with pytest.raises(ChannelFailed):
        sent.result(5)


def test_a_destination_that_is_silent(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """A destination that receives the files and never confirms is an error at the deadline."""
    with pytest.raises(ChannelFailed, match=r"took longer than 0\.2 s"):
        channel.send_files(pair[0], _files(tmp_path / "sent", {"a.img": 10}), 0.2)


def test_a_full_image_directory(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    """The error reports that the tmpfs is full, and names the file."""
    full = tmp_path / "full"
    try:
        Tmpfs(full, 64 * 1024).mount()
    except CommandFailed as error:
        pytest.skip(f"cannot mount a tmpfs here: {error}")
    try:
        _announce(pair[0], {"pages-1.img": 128 * 1024})
        pair[0].sendall(bytes(128 * 1024))
        with pytest.raises(ImagesIncomplete, match=r"There is no space for the image pages-1\.img"):
            channel.receive_files(pair[1], full, 5)
    finally:
        unmount(full)
