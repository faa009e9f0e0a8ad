"""The page channel: our own authenticated connections between the two hosts of a migration.

The destination listens on its address, at a free port, for as long as the step's deadline. Each side
proves that it knows the migration's secret before one byte of memory flows. Only then is the socket
handed to CRIU on both sides (``--ps-socket``), so no CRIU ever listens. The small images travel over
a second connection of the same kind.

The handshake is a mutual challenge and response with HMAC-SHA256: both sides send a nonce, both answer
with a code over their role, the purpose of the connection and both nonces. Nothing can be replayed
and nothing reflected. It authenticates; it does not encrypt.

Where the hosts have certificates, all of this happens inside TLS (``sojourn.tls``), in which both have shown who
they are: then a connection is of this migration, and between these two hosts, and nobody can read or change it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import logging
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import ChannelFailed, ImagesIncomplete
from sojourn.tls import Party, why

log = logging.getLogger("sojourn.channel")

#: The first bytes on the wire, so that a stranger's connection is dropped at once.
MAGIC = b"sojourn1"

PURPOSES = ("pages", "images")

#: Lengths of the handshake's words: purposes are padded, codes are SHA-256.
PURPOSE_BYTES, NONCE_BYTES, CODE_BYTES = 6, 32, 32

#: How long a peer may take over the handshake, which is three short words.
HANDSHAKE_S = 5

#: How long to wait before the next attempt when a connection could not be accepted.
ACCEPT_AGAIN_S = 0.05

#: How many callers are greeted at once; further ones wait.
BACKLOG = 16

#: How much of a file is sent or received in one piece.
CHUNK_BYTES = 2**18

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


class Listener:
    """Waits for the migration's own peer at a free port of one address. Strangers are turned away and forgotten.

    Each caller is greeted in a thread of its own, so a silent one keeps nobody waiting. With a ``party``, the
    conversation is encrypted. Raises ChannelFailed if the address is not this host's.
    """

    def __init__(self, address: str, secret: bytes, party: Party | None = None) -> None:
        try:
            self._server = socket.create_server((address, 0), family=_family(address), backlog=BACKLOG)
        except OSError as error:
            raise ChannelFailed(
                f"Can not listen on {address}: {error.strerror}.",
                "Is `address` in the settings one of this host's?",
            ) from None
        self.port: int = self._server.getsockname()[1]
        self._secret, self._party = secret, party
        self._proved: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._greeting = threading.BoundedSemaphore(BACKLOG)
        self._closed = threading.Event()
        threading.Thread(target=self._answer_callers, daemon=True).start()

    def accept(self, until: float) -> Connection:
        """Return the next connection that has proved the secret. ``until`` is a time of ``time.monotonic()``.

        Raises ChannelFailed when that time has come.
        """
        try:
            return self._proved.get(timeout=max(0.001, until - time.monotonic()))
        except queue.Empty:
            raise ChannelFailed("The source did not connect in time.") from None

    def close(self) -> None:
        """Stop listening; connections that were accepted stay."""
        self._closed.set()
        with contextlib.suppress(OSError):  # shutdown is what wakes the thread in accept
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _answer_callers(self) -> None:
        while not self._closed.is_set():
            self._greeting.acquire()
            try:
                peer, _ = self._server.accept()
            except OSError:  # a caller that hung up, too many open files, or the end of listening
                self._greeting.release()
                self._closed.wait(ACCEPT_AGAIN_S)
                continue
            threading.Thread(target=self._greet, args=(peer,), daemon=True).start()

    def _greet(self, peer: socket.socket) -> None:
        try:
            peer.settimeout(HANDSHAKE_S)
            peer = self._party.accept(peer) if self._party else peer
            self._proved.put(_welcome(peer, self._secret))
        except ChannelFailed as refused:
            log.info("A caller was turned away: %s", refused)
            peer.close()
        finally:
            self._greeting.release()


def connect(address: str, port: int, secret: bytes, purpose: str, party: Party | None = None) -> socket.socket:
    """Connect to the destination and prove the secret to each other, within TLS if there is a ``party``.

    Raises ChannelFailed.
    """
    try:
        peer = socket.create_connection((address, port), timeout=HANDSHAKE_S)
    except OSError as error:
        raise ChannelFailed(
            f"Can not connect to {address} port {port}: {error.strerror or error}.",
            "Is the destination up, and does a firewall let this host through?",
        ) from None
    try:
        peer = party.connect(peer) if party else peer
        _introduce(peer, secret, purpose)
    except ChannelFailed:
        peer.close()
        raise
    return peer


Manifest = dict[str, int]


def send_files(peer: socket.socket, files: Sequence[Path], deadline_s: float) -> Manifest:
    """Send files with their names and sizes, and wait until the other side has them all. Raises ChannelFailed."""
    manifest = {path.name: path.stat().st_size for path in files}
    with _within(peer, deadline_s) as until:
        header = json.dumps(manifest).encode()
        peer.sendall(struct.pack("!I", len(header)) + header)
        for path in files:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    peer.sendall(chunk)
        if _receive(peer, 2, until) != b"ok":
            raise ChannelFailed("The destination did not confirm the images.")
    return manifest


def receive_files(peer: socket.socket, directory: Path, deadline_s: float) -> Manifest:
    """Receive what ``send_files`` sends; the caller confirms. Raises ChannelFailed, ImagesIncomplete."""
    with _within(peer, deadline_s) as until:
        (length,) = struct.unpack("!I", _receive(peer, 4, until))
        if length > MANIFEST_BYTES:
            raise ChannelFailed("The source announced a manifest that is too large to be one.")
        manifest = _manifest(_receive(peer, length, until))
        for name, size in manifest.items():
            _receive_file(peer, directory / name, size, until)
    return manifest


def confirm(peer: socket.socket) -> None:
    """Tell the source that all files are here."""
    peer.sendall(b"ok")


def _manifest(text: bytes) -> Manifest:
    """Read a manifest, and believe only file names that are no paths, and sizes."""
    try:
        manifest = json.loads(text)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise ChannelFailed("The source sent a manifest that is none.")
    for name, size in manifest.items():
        if name != Path(name).name or name in {"", ".", ".."} or not isinstance(size, int) or size < 0:
            raise ChannelFailed(f"The source sent a file that can not be one: {name!r} of {size!r} bytes.")
    return manifest


def _receive_file(peer: socket.socket, path: Path, size: int, until: float) -> None:
    try:
        with path.open("wb") as file:
            for chunk in _chunks(peer, size, until):
                file.write(chunk)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ImagesIncomplete(
            f"No room for the image {path.name}: the image directory is full.", "Free memory on the destination."
        ) from None


def _chunks(peer: socket.socket, size: int, until: float) -> Iterator[bytes]:
    while size:
        peer.settimeout(max(0.001, until - time.monotonic()))
        chunk = peer.recv(min(size, CHUNK_BYTES))
        if not chunk:
            raise ChannelFailed("The other host ended the connection in the middle of a word.")
        size -= len(chunk)
        yield chunk


def _welcome(peer: socket.socket, secret: bytes) -> Connection:
    """Check a caller, as the destination: its magic, its purpose, its code; then prove ourselves."""
    with _within(peer, HANDSHAKE_S) as until:
        ours = secrets.token_bytes(NONCE_BYTES)
        peer.sendall(MAGIC + ours)
        if _receive(peer, len(MAGIC), until) != MAGIC:
            raise ChannelFailed("The caller does not speak our language.")
        purpose = _receive(peer, PURPOSE_BYTES, until).decode("ascii", "replace").strip()
        theirs, code = _receive(peer, NONCE_BYTES, until), _receive(peer, CODE_BYTES, until)
        if purpose not in PURPOSES or not hmac.compare_digest(code, _code(secret, "source", purpose, ours, theirs)):
            raise ChannelFailed("The caller does not know the migration's secret.")
        peer.sendall(_code(secret, "destination", purpose, ours, theirs))
    return Connection(peer, purpose)


def _introduce(peer: socket.socket, secret: bytes, purpose: str) -> None:
    """Prove ourselves, as the source, and check that the other side is the migration's destination."""
    with _within(peer, HANDSHAKE_S) as until:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _receive(peer, len(MAGIC), until) != MAGIC:
            raise ChannelFailed("Who listens there does not speak our language.")
        theirs, ours = _receive(peer, NONCE_BYTES, until), secrets.token_bytes(NONCE_BYTES)
        code = _code(secret, "source", purpose, theirs, ours)
        peer.sendall(MAGIC + purpose.ljust(PURPOSE_BYTES).encode() + ours + code)
        expected = _code(secret, "destination", purpose, theirs, ours)
        if not hmac.compare_digest(_receive(peer, CODE_BYTES, until), expected):
            raise ChannelFailed("Who listens there does not know the migration's secret.")


def _code(secret: bytes, role: str, purpose: str, destination_nonce: bytes, source_nonce: bytes) -> bytes:
    words = b"\0".join([MAGIC, role.encode(), purpose.encode(), destination_nonce, source_nonce])
    return hmac.digest(secret, words, hashlib.sha256)


def _receive(peer: socket.socket, size: int, until: float) -> bytes:
    return b"".join(_chunks(peer, size, until))


@contextlib.contextmanager
def _within(peer: socket.socket, deadline_s: float) -> Iterator[float]:
    """Bound a conversation as a whole, and turn what the network says into one sentence; yield when it must be over."""
    peer.settimeout(deadline_s)
    try:
        yield time.monotonic() + deadline_s
    except TimeoutError:
        raise ChannelFailed(f"The other host took longer than {deadline_s:g} s.") from None
    except OSError as error:
        raise ChannelFailed(f"The connection to the other host broke: {why(error)}.") from None
    peer.settimeout(None)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
