"""The page channel: our own authenticated connections between the two hosts of a migration.

The destination listens on its address, at a free port, until the step's deadline. Both sides prove
that they know the migration's secret before one byte of memory flows. Only then is the socket
passed to CRIU on both sides (``--ps-socket``), so no CRIU ever listens. The small images travel
over a second connection of the same kind.

The handshake is a mutual challenge and response with HMAC-SHA256. The caller greets first, which
keeps strangers out (``sojourn.transfer.greeting``). Both sides send a nonce, and both answer with a
code over their role, the purpose of the connection and both nonces, so no message can be replayed
or reflected. The handshake authenticates; it does not encrypt.

Where the hosts have certificates, all that follows the greeting happens inside TLS
(``sojourn.security.tls``), which authenticates the hosts. Then a connection belongs to this
migration and to these two hosts, and no one else can read or change it.

A migration with a limit has its connections paced by the kernel (``pace``), on the side that sends.
The limit is a property of the connection: whatever dies, it ends with that, and nothing has to be
undone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import logging
import queue
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from sojourn.errors import ChannelFailed, ImagesIncomplete
from sojourn.security.tls import TlsIdentity, why
from sojourn.transfer.greeting import MAGIC, NONCE_BYTES, Door, Greeting, code

log = logging.getLogger("sojourn.channel")

#: What a connection is for: the memory that CRIU sends; the small images; and, once the process
#: runs on the destination, the rest of its memory, and the pages for which a thread waits.
PURPOSES = ("pages", "images", "rest", "urgent")

#: The length of a code, which is SHA-256.
CODE_BYTES = 32

#: How long the handshake may take, which is three short messages.
HANDSHAKE_S = 5

#: How many callers may wait in the kernel until they are accepted, which takes no time: as many as
#: it allows (listen(2), ``net.core.somaxconn``).
BACKLOG = 4096

#: ``SO_MAX_PACING_RATE`` of include/uapi/asm-generic/socket.h, which Python does not name.
SO_MAX_PACING_RATE = 47

#: How much of a file is sent or received in one piece.
CHUNK_BYTES = 2**18

#: The largest manifest that is accepted: that of thousands of processes is far smaller.
MANIFEST_BYTES = 16 * 2**20

#: The names that images have, CRIU's and ours.
FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}")

#: How much of a malformed text from the other host a sentence shows.
SHOWN = 80


@dataclass(frozen=True)
class Connection:
    """A connection whose peer has proved that it belongs to the migration, and its purpose."""

    socket: socket.socket
    purpose: str


def secret_for(key: str, migration: str) -> bytes:
    """Return the secret that the two hosts of one migration share; it never travels."""
    return hmac.digest(key.encode(), f"sojourn channel {migration}".encode(), hashlib.sha256)


class Listener:
    """Waits for the migration's own peer at a free port of one address, and rejects all others.

    Who has greeted has a thread of its own for the handshake; all others share one. With a
    ``tls_identity``, connections are encrypted. Raises ChannelFailed if the address is not this
    host's.
    """

    def __init__(
        self, address: str, secret: bytes, tls_identity: TlsIdentity | None = None, *, port: int = 0
    ) -> None:
        try:
            # Port 0 is any free one; the peer learns the number from the message of the step.
            server = socket.create_server((address, port), family=_family(address), backlog=BACKLOG)
        except OSError as error:
            raise ChannelFailed(
                f"Cannot listen on {address}: {error.strerror}.",
                "Check that `address` in the settings is an address of this host.",
            ) from None
        self.port: int = server.getsockname()[1]
        self._secret, self._tls_identity = secret, tls_identity
        self._proved: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._door = Door(server, secret)
        threading.Thread(target=self._answer_callers, daemon=True).start()

    def accept(self, until: float | None = None) -> Connection:
        """Return the next connection that has proved the secret.

        ``until`` is a time of ``time.monotonic()``, at which ChannelFailed is raised; without it
        this waits for ever.
        """
        try:
            left = None if until is None else max(0.001, until - time.monotonic())
            return self._proved.get(timeout=left)
        except queue.Empty:
            raise ChannelFailed("The source did not connect in time.") from None

    def close(self) -> None:
        """Stop listening; accepted connections stay open. Idempotent."""
        self._door.close()

    def _answer_callers(self) -> None:
        for caller in self._door.greeted():
            threading.Thread(target=self._answer, args=caller, daemon=True).start()

    def _answer(self, peer: socket.socket, greeting: Greeting) -> None:
        try:
            # TLS has its handshake before ``_within`` sets a time-out.
            peer.settimeout(HANDSHAKE_S)
            peer = self._tls_identity.accept(peer) if self._tls_identity else peer
            self._proved.put(_welcome(peer, self._secret, greeting))
        except ChannelFailed as refused:
            log.info("A caller was rejected: %s", refused)
            peer.close()


def connect(
    address: str,
    port: int,
    secret: bytes,
    purpose: str,
    tls_identity: TlsIdentity | None = None,
    *,
    timeout_s: float = HANDSHAKE_S,
) -> socket.socket:
    """Connect to who listens; both sides prove the secret, inside TLS with a ``tls_identity``.

    ``timeout_s`` is how long the network may take for one answer. Raises ChannelFailed.
    """
    try:
        peer = socket.create_connection((address, port), timeout=timeout_s)
    except OSError as error:
        raise ChannelFailed(
            f"Cannot connect to {address} port {port}: {error.strerror or error}.",
            "Check that the other host is up, and that no firewall blocks this one.",
        ) from None
    greeting = Greeting.new(purpose)
    try:
        _send_first(peer, greeting.to_bytes(secret))
        peer = tls_identity.connect(peer) if tls_identity else peer
        _introduce(peer, secret, greeting)
    except ChannelFailed:
        peer.close()
        raise
    return peer


def pace(peer: socket.socket, bytes_per_s: int | None) -> None:
    """Have the kernel send no more bytes per second than this; None sets no limit.

    Since Linux 4.13 TCP does so by itself; before, it took the queueing discipline of tc-fq(8). It
    counts what a connection carries, without the headers of its packets, and waits before it sends
    one, so that none is dropped. Whoever inherits the descriptor sends at this pace too. Raises
    ChannelFailed.
    """
    if bytes_per_s is None:
        return
    try:
        # An ``unsigned long``: 32 bits would end at 34 Gbit/s.
        peer.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("@L", bytes_per_s))
    except OSError as error:
        raise ChannelFailed(
            f"The kernel does not limit the connection to {bytes_per_s} bytes/s: {error.strerror}.",
            "Migrate without a limit of the bandwidth.",
        ) from None


Manifest = dict[str, int]


def send_files(peer: socket.socket, files: Sequence[Path], deadline_s: float) -> Manifest:
    """Send files with names and sizes, and wait for confirmation. Raises ChannelFailed."""
    manifest = {path.name: path.stat().st_size for path in files}
    with _within(peer, deadline_s) as until:
        for piece in _gathered(_pieces(manifest, files)):
            peer.sendall(piece)
        if _receive(peer, 2, until) != b"ok":
            raise ChannelFailed("The destination did not confirm the images.")
    return manifest


def _pieces(manifest: Manifest, files: Sequence[Path]) -> Iterator[bytes]:
    header = json.dumps(manifest).encode()
    yield struct.pack("!I", len(header)) + header
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield pieces together up to the size of a chunk: most images have a few hundred bytes."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= CHUNK_BYTES:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


def receive_files(peer: socket.socket, directory: Path, deadline_s: float) -> Manifest:
    """Receive what ``send_files`` sends; the caller must call ``confirm``.

    Raises ChannelFailed, ImagesIncomplete.
    """
    with _within(peer, deadline_s) as until:
        (length,) = struct.unpack("!I", _receive(peer, 4, until))
        if length > MANIFEST_BYTES:
            raise ChannelFailed(
                f"The source announced a manifest of {length} bytes, which is too large."
            )
        manifest = _manifest(_receive(peer, length, until))
        for name, size in manifest.items():
            _receive_file(peer, directory / name, size, until)
    return manifest


def exactly(peer: socket.socket, size: int) -> bytes:
    """Receive so many bytes; return fewer if the peer ends before that. Raises OSError."""
    received = b""
    while len(received) < size and (part := peer.recv(size - len(received))):
        received += part
    return received


def confirm(peer: socket.socket) -> None:
    """Confirm to the source that all files have arrived."""
    peer.sendall(b"ok")


def _manifest(text: bytes) -> Manifest:
    """Read a manifest; only plain file names and sizes are accepted."""
    try:
        # Not by Python's own, which raises RecursionError at deep nesting.
        manifest = orjson.loads(text)
    except orjson.JSONDecodeError:
        manifest = None
    if not isinstance(manifest, dict):
        raise ChannelFailed("The source sent a malformed manifest.")
    # A name with a slash would let the other host write anywhere on this one, as root.
    for name, size in manifest.items():
        if not FILE_NAME.fullmatch(name) or type(size) is not int or size < 0:
            raise ChannelFailed(
                "The source sent a malformed manifest: "
                f"file {name[:SHOWN]!r} of {str(size)[:SHOWN]} bytes."
            )
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
            f"There is no space for the image {path.name}: the image directory is full.",
            "Free memory on the destination.",
        ) from None


def _chunks(peer: socket.socket, size: int, until: float) -> Iterator[bytes]:
    while size:
        # A socket's time-out is that of one call. A peer that sends single bytes would never exceed
        # it.
        peer.settimeout(max(0.001, until - time.monotonic()))
        chunk = peer.recv(min(size, CHUNK_BYTES))
        if not chunk:
            raise ChannelFailed("The other host ended the connection in the middle of a message.")
        size -= len(chunk)
        yield chunk


def _send_first(peer: socket.socket, greeting: bytes) -> None:
    with _within(peer, HANDSHAKE_S):
        # The small images are written one after another while a tree is frozen: Nagle's algorithm
        # would hold back the end of them until the rest is acknowledged (tcp(7)).
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(greeting)


def _welcome(peer: socket.socket, secret: bytes, greeting: Greeting) -> Connection:
    """Check a caller that has greeted, as the destination: its code; then answer with ours."""
    purpose, theirs = greeting.purpose, greeting.nonce
    with _within(peer, HANDSHAKE_S) as until:
        ours = secrets.token_bytes(NONCE_BYTES)
        peer.sendall(MAGIC + ours)
        received = _receive(peer, CODE_BYTES, until)
        if purpose not in PURPOSES or not hmac.compare_digest(
            received, _code(secret, "source", purpose, ours, theirs)
        ):
            raise ChannelFailed("The caller does not know the migration's secret.")
        # Last: a caller that has not proved the secret gets nothing that was computed from it.
        peer.sendall(_code(secret, "destination", purpose, ours, theirs))
    return Connection(peer, purpose)


def _introduce(peer: socket.socket, secret: bytes, greeting: Greeting) -> None:
    """Send our code, as the source, and check that the peer is the migration's destination."""
    purpose, ours = greeting.purpose, greeting.nonce
    with _within(peer, HANDSHAKE_S) as until:
        if _receive(peer, len(MAGIC), until) != MAGIC:
            raise ChannelFailed("The program that listens there does not speak Sojourn's protocol.")
        theirs = _receive(peer, NONCE_BYTES, until)
        peer.sendall(_code(secret, "source", purpose, theirs, ours))
        expected = _code(secret, "destination", purpose, theirs, ours)
        if not hmac.compare_digest(_receive(peer, CODE_BYTES, until), expected):
            raise ChannelFailed(
                "The program that listens there does not know the migration's secret."
            )


def _code(
    secret: bytes, role: str, purpose: str, destination_nonce: bytes, source_nonce: bytes
) -> bytes:
    # The role is part of the code, so neither side can answer with the code that it received.
    return code(secret, role.encode(), purpose.encode(), destination_nonce, source_nonce)


def _receive(peer: socket.socket, size: int, until: float) -> bytes:
    return b"".join(_chunks(peer, size, until))


@contextlib.contextmanager
def _within(peer: socket.socket, deadline_s: float) -> Iterator[float]:
    """Limit a whole exchange in time, and turn errors into ChannelFailed; yield its deadline."""
    peer.settimeout(deadline_s)
    try:
        yield time.monotonic() + deadline_s
    except TimeoutError:
        raise ChannelFailed(f"The other host took longer than {deadline_s:g} s.") from None
    except OSError as error:
        raise ChannelFailed(f"The connection to the other host broke: {why(error)}.") from None
    # The socket may go to CRIU next, which needs a blocking one: with a time-out, Python makes the
    # descriptor non-blocking for everybody who shares it.
    peer.settimeout(None)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
