"""The page channel: our own authenticated connections between the two hosts of a migration.

The destination listens on its address, at a free port, for as long as the step's deadline. Each side
proves that it knows the migration's secret before one byte of memory flows. Only then is the socket
handed to CRIU on both sides (``--ps-socket``), so no CRIU ever listens. The small images travel over
a second connection of the same kind.

The handshake is a mutual challenge and response with HMAC-SHA256: both sides send a nonce, both answer
with a code over their role, the purpose of the connection and both nonces. Nothing can be replayed
and nothing reflected. It authenticates; it does not encrypt.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import ChannelFailed, ImagesIncomplete

#: The first bytes on the wire, so that a stranger's connection is dropped at once.
MAGIC = b"sojourn1"

PURPOSES = ("pages", "images")

NONCE_BYTES = 32

#: How long a peer may take over its next word; the handshake is three short ones.
HANDSHAKE_S = 5

#: Offset of ``tcpi_bytes_acked`` in ``struct tcp_info`` (include/uapi/linux/tcp.h).
TCP_INFO_BYTES_ACKED = 120

#: The largest manifest that is believed: a tree of thousands of processes stays far below.
MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Connection:
    """A connection whose peer has proved that it belongs to the migration, and what it is for."""

    socket: socket.socket
    purpose: str


def secret_for(key: str, migration: str) -> bytes:
    """Return the secret that the two hosts of one migration share; it never travels."""
    return hmac.digest(key.encode(), f"sojourn channel {migration}".encode(), hashlib.sha256)


def listen(address: str) -> socket.socket:
    """Listen on one address at a free port. Raises ChannelFailed if the address is not this host's."""
    try:
        return socket.create_server((address, 0), family=_family(address), backlog=8)
    except OSError as error:
        raise ChannelFailed(
            f"Can not listen on {address}: {error.strerror}.",
            "Is `address` in the settings one of this host's?",
        ) from None


def accept(server: socket.socket, secret: bytes, until: float) -> Connection:
    """Return the next connection of the migration's own peer; strangers are turned away and forgotten.

    ``until`` is a time of ``time.monotonic()``. Raises ChannelFailed when it has come.
    """
    while True:
        server.settimeout(max(0.001, until - time.monotonic()))
        try:
            peer, _ = server.accept()
        except TimeoutError:
            raise ChannelFailed("The source did not connect in time.") from None
        with contextlib.suppress(ChannelFailed):
            return _welcome(peer, secret)
        peer.close()


def connect(address: str, port: int, secret: bytes, purpose: str) -> socket.socket:
    """Connect to the destination and prove the secret to each other. Raises ChannelFailed."""
    try:
        peer = socket.create_connection((address, port), timeout=HANDSHAKE_S)
    except OSError as error:
        raise ChannelFailed(
            f"Can not connect to {address} port {port}: {error.strerror or error}.",
            "Is the destination up, and does a firewall let this host through?",
        ) from None
    try:
        _introduce(peer, secret, purpose)
    except ChannelFailed:
        peer.close()
        raise
    peer.settimeout(None)
    return peer


def uncork(peer: socket.socket) -> None:
    """Send what CRIU has corked, now: its last small frame would otherwise wait for 200 ms."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


def bytes_acked(peer: socket.socket) -> int:
    """Return how many bytes the other side has acknowledged so far (tcp(7), TCP_INFO)."""
    info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int(struct.unpack_from("=Q", info, TCP_INFO_BYTES_ACKED)[0])


Manifest = dict[str, int]


def send_files(peer: socket.socket, files: Sequence[Path], deadline_s: float) -> Manifest:
    """Send files with their names and sizes, and wait until the other side has them all. Raises ChannelFailed."""
    manifest = {path.name: path.stat().st_size for path in files}
    with _within(peer, deadline_s):
        header = json.dumps(manifest).encode()
        peer.sendall(struct.pack("!I", len(header)) + header)
        for path in files:
            with path.open("rb") as file:
                peer.sendfile(file)
        if _receive(peer, 2) != b"ok":
            raise ChannelFailed("The destination did not confirm the images.")
    return manifest


def receive_files(peer: socket.socket, directory: Path, deadline_s: float) -> Manifest:
    """Receive what ``send_files`` sends; the caller confirms. Raises ChannelFailed, ImagesIncomplete."""
    with _within(peer, deadline_s):
        (length,) = struct.unpack("!I", _receive(peer, 4))
        if length > MANIFEST_BYTES:
            raise ChannelFailed("The source announced a manifest that is too large to be one.")
        manifest: Manifest = json.loads(_receive(peer, length))
        for name, size in manifest.items():
            _receive_file(peer, directory, name, size)
    return manifest


def confirm(peer: socket.socket) -> None:
    """Tell the source that all files are here."""
    peer.sendall(b"ok")


def _receive_file(peer: socket.socket, directory: Path, name: str, size: int) -> None:
    if name != Path(name).name or name in {"", ".", ".."}:
        raise ChannelFailed(f"The source sent a file name that is a path: {name!r}.")
    try:
        with (directory / name).open("wb") as file:
            for chunk in _chunks(peer, size):
                file.write(chunk)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ImagesIncomplete(
            f"No room for the image {name}: the image directory is full.", "Free memory on the destination."
        ) from None


def _chunks(peer: socket.socket, size: int) -> Iterator[bytes]:
    while size:
        chunk = peer.recv(min(size, 2**18))
        if not chunk:
            raise ChannelFailed("The connection ended in the middle of a file.")
        size -= len(chunk)
        yield chunk


def _welcome(peer: socket.socket, secret: bytes) -> Connection:
    """Check a caller, as the destination: its magic, its purpose, its code; then prove ourselves."""
    with _within(peer, HANDSHAKE_S):
        ours = secrets.token_bytes(NONCE_BYTES)
        peer.sendall(MAGIC + ours)
        if _receive(peer, len(MAGIC)) != MAGIC:
            raise ChannelFailed("The caller does not speak our language.")
        purpose = _receive(peer, 6).decode("ascii", "replace").strip()
        theirs, code = _receive(peer, NONCE_BYTES), _receive(peer, 32)
        if purpose not in PURPOSES or not hmac.compare_digest(code, _code(secret, "source", purpose, ours, theirs)):
            raise ChannelFailed("The caller does not know the migration's secret.")
        peer.sendall(_code(secret, "destination", purpose, ours, theirs))
    peer.settimeout(None)
    return Connection(peer, purpose)


def _introduce(peer: socket.socket, secret: bytes, purpose: str) -> None:
    """Prove ourselves, as the source, and check that the other side is the migration's destination."""
    with _within(peer, HANDSHAKE_S):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _receive(peer, len(MAGIC)) != MAGIC:
            raise ChannelFailed("Who listens there does not speak our language.")
        theirs, ours = _receive(peer, NONCE_BYTES), secrets.token_bytes(NONCE_BYTES)
        peer.sendall(MAGIC + purpose.ljust(6).encode() + ours + _code(secret, "source", purpose, theirs, ours))
        if not hmac.compare_digest(_receive(peer, 32), _code(secret, "destination", purpose, theirs, ours)):
            raise ChannelFailed("Who listens there does not know the migration's secret.")


def _code(secret: bytes, role: str, purpose: str, destination_nonce: bytes, source_nonce: bytes) -> bytes:
    words = b"\0".join([MAGIC, role.encode(), purpose.encode(), destination_nonce, source_nonce])
    return hmac.digest(secret, words, hashlib.sha256)


def _receive(peer: socket.socket, size: int) -> bytes:
    return b"".join(_chunks(peer, size))


@contextlib.contextmanager
def _within(peer: socket.socket, deadline_s: float) -> Iterator[None]:
    """Bound each word of the peer, and turn what the network says into one sentence."""
    peer.settimeout(deadline_s)
    try:
        yield
    except TimeoutError:
        raise ChannelFailed(f"The other host was silent for {deadline_s:g} s.") from None
    except OSError as error:
        raise ChannelFailed(f"The connection to the other host broke: {error.strerror or error}.") from None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
