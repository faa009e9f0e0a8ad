"""The greeting: a caller of a page channel proves that it knows the secret before it gets a thread.

It comes with the connection itself, so the migration's own peer never waits for others. One thread
looks at all callers at once: one that is silent, slow or malformed costs a descriptor for
``GREETING_S``, and where too many wait, the one that has waited longest is turned away.

A greeting opens one connection: one that was recorded on the network and is sent again is turned
away. It travels in the clear, before TLS, and says nothing but what the connection is for. The
handshake behind it proves both sides to each other (``sojourn.transfer.channel``).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

log = logging.getLogger("sojourn.channel")

#: The first bytes on the wire, by which a stranger's connection is told from one of ours.
MAGIC = b"sojourn2"

#: Magic, purpose (padded), the caller's nonce, and a code over these (HMAC-SHA256).
LAYOUT = struct.Struct("!8s6s32s32s")

NONCE_BYTES = 32

#: How long a caller may take to greet, in seconds.
GREETING_S = 2.0

#: How many callers may be about to greet at once; each costs a descriptor.
MOST_WAITING = 256

#: How long to wait before the next attempt when a connection could not be accepted.
ACCEPT_AGAIN_S = 0.05


@dataclass(frozen=True)
class Greeting:
    """What a caller wants, and its nonce."""

    purpose: str
    nonce: bytes

    @classmethod
    def new(cls, purpose: str) -> Greeting:
        """Return the greeting of one more connection."""
        return cls(purpose, secrets.token_bytes(NONCE_BYTES))

    def to_bytes(self, secret: bytes) -> bytes:
        """Return it as it is sent."""
        purpose = self.purpose.encode()
        return LAYOUT.pack(MAGIC, purpose, self.nonce, _code(secret, purpose, self.nonce))

    @classmethod
    def parse(cls, raw: bytes, secret: bytes) -> Greeting | None:
        """Return what was sent; None if it is malformed or proves nothing."""
        magic, padded, nonce, code = LAYOUT.unpack(raw)
        purpose = padded.rstrip(b"\0")
        # compare_digest takes the same time wherever two codes differ: nobody can guess ours byte
        # by byte.
        if magic != MAGIC or not hmac.compare_digest(code, _code(secret, purpose, nonce)):
            return None
        return cls(purpose.decode(), nonce)


@dataclass(eq=False)
class _Caller:
    """A connection that has not greeted yet."""

    socket: socket.socket
    until: float
    received: bytearray = field(default_factory=bytearray)


class Door:
    """Accepts connections at a listening socket and lets in those that greet.

    Used by one thread, but for ``close``.
    """

    def __init__(self, server: socket.socket, secret: bytes) -> None:
        self._server, self._secret = server, secret
        self._closed = threading.Event()
        self._waiting: list[_Caller] = []  # in the order in which they came
        self._used: set[bytes] = set()
        self._turned_away = 0
        server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)

    def close(self) -> None:
        """Accept nobody any more. Idempotent."""
        self._closed.set()
        # Not closed here, but by the thread that waits: this is what wakes it.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def greeted(self) -> Iterator[tuple[socket.socket, Greeting]]:
        """Yield callers as they greet, each a connection that blocks, until the door is closed."""
        try:
            while not self._closed.is_set():
                for key, _ in self._selector.select(self._patience_s()):
                    if key.data is None:
                        self._accept()
                    elif found := self._hear(key.data):
                        yield key.data.socket, found
                self._dismiss_the_slow()
        finally:
            for caller in self._waiting:
                caller.socket.close()
            self._selector.close()
            self._server.close()

    def _patience_s(self) -> float | None:
        """Return how long the first of those who wait may still take."""
        return max(0, self._waiting[0].until - time.monotonic()) if self._waiting else None

    def _accept(self) -> None:
        try:
            peer, _ = self._server.accept()
        except BlockingIOError:  # it hung up
            return
        # Without the pause, a process that is out of descriptors would try again without end and
        # occupy a processor.
        except OSError:
            if not self._closed.is_set() and self._waiting:
                self._turn_away(self._waiting[0], "it waited longest")
            self._closed.wait(ACCEPT_AGAIN_S)
            return
        peer.setblocking(False)
        caller = _Caller(peer, time.monotonic() + GREETING_S)
        self._waiting.append(caller)
        self._selector.register(peer, selectors.EVENT_READ, caller)
        if len(self._waiting) > MOST_WAITING:
            self._turn_away(self._waiting[0], "too many wait")

    def _hear(self, caller: _Caller) -> Greeting | None:
        """Receive what a caller has sent; return its greeting once that is whole and right."""
        if caller not in self._waiting:  # turned away in this round, for another one
            return None
        try:
            # Not a byte more: what follows belongs to TLS.
            part = caller.socket.recv(LAYOUT.size - len(caller.received))
        except BlockingIOError:
            return None
        except OSError:
            part = b""
        caller.received += part
        if not part:
            self._turn_away(caller, "it hung up")
        elif len(caller.received) == LAYOUT.size:
            return self._judge(caller)
        return None

    def _judge(self, caller: _Caller) -> Greeting | None:
        found = Greeting.parse(bytes(caller.received), self._secret)
        if found is None or found.nonce in self._used:
            self._turn_away(caller, "it does not know the migration's secret")
            return None
        self._used.add(found.nonce)
        self._forget(caller)
        caller.socket.setblocking(True)
        return found

    def _dismiss_the_slow(self) -> None:
        while self._waiting and self._waiting[0].until <= time.monotonic():
            self._turn_away(self._waiting[0], "it did not greet in time")

    def _turn_away(self, caller: _Caller, why: str) -> None:
        self._forget(caller)
        caller.socket.close()
        self._turned_away += 1
        # At the powers of two: a flood must not fill the file system that has the log.
        if self._turned_away.bit_count() == 1:
            log.info("A caller was rejected, the %dth: %s", self._turned_away, why)

    def _forget(self, caller: _Caller) -> None:
        self._waiting.remove(caller)
        self._selector.unregister(caller.socket)


def code(secret: bytes, *parts: bytes) -> bytes:
    """Return the code by which whoever knows the secret proves it, over some parts of a message."""
    return hmac.digest(secret, b"\0".join([MAGIC, *parts]), hashlib.sha256)


def _code(secret: bytes, purpose: bytes, nonce: bytes) -> bytes:
    return code(secret, b"greeting", purpose, nonce)
