"""The plug: what CRIU is given of a page channel, and what the holder keeps of it while CRIU works.

``Direct``  the connection itself. CRIU corks it, so the holder's duplicate is there to uncork it.
``Relay``   where the connection is encrypted, of which CRIU knows nothing: one end of a pair of unix sockets. A thread
            of the holder carries what comes out of the other end through TLS, and back.

CRIU's own TLS is not used: it takes longer, and fails with lazy pages (docs/architecture.md).

If the holder dies, the kernel ends both its sockets: CRIU's on this host, and with the connection the other host's.
When either side of a relay ends, the other is ended too, so neither CRIU waits for one that is gone.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator

#: Offset of ``tcpi_bytes_acked`` in ``struct tcp_info`` (include/uapi/linux/tcp.h).
TCP_INFO_BYTES_ACKED = 120

#: How long what CRIU has written last may take to the other side when CRIU has ended; it is on its way already.
LAST_WORDS_S = 2.0

#: The most that is decrypted at once (RFC 8446, 5.1), and how much is carried in one piece.
RECORD_BYTES, CARRIED_BYTES = 2**14, 2**18


class Direct:
    """CRIU works on the connection itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.descriptor = connection.fileno()

    def hand_over(self) -> None:
        """CRIU has it now; our duplicate stays open."""

    def uncork(self) -> None:
        """Send what CRIU has corked, now: its last small frame would otherwise wait for 200 ms."""
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def bytes_sent(self) -> int:
        """Return how many bytes the other side has acknowledged so far (tcp(7), TCP_INFO)."""
        info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        return int(struct.unpack_from("=Q", info, TCP_INFO_BYTES_ACKED)[0])

    def close(self) -> None:
        """Nothing of it is ours but the connection."""


class Relay:
    """CRIU works on a unix socket, which can not be corked, and we carry."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection
        self._ours, self._criu = socket.socketpair()
        self.descriptor = self._criu.fileno()
        self._sent = 0
        self._carrier = threading.Thread(target=self._carry, daemon=True)

    def hand_over(self) -> None:
        """CRIU has its end now: ours is closed, so that its end can be seen, and carrying begins."""
        self._criu.close()
        self._carrier.start()

    def uncork(self) -> None:
        """Nothing is corked."""

    def bytes_sent(self) -> int:
        """Return how many bytes of CRIU's were taken by the network so far."""
        return self._sent

    def close(self) -> None:
        """Carry what CRIU has left, then nothing more; the connection is no longer used when this returns."""
        if self._carrier.is_alive():
            self._carrier.join(LAST_WORDS_S)  # CRIU's end is closed by now, and this ends by itself
        self._end()
        if self._carrier.is_alive():
            self._carrier.join()
        self._criu.close()
        self._ours.close()

    def _carry(self) -> None:
        """Carry until one side ends, and then end the other, whatever the reason is."""
        try:
            with contextlib.suppress(OSError):
                self._both_ways()
        finally:
            self._end()

    def _both_ways(self) -> None:
        """Carry memory one way and CRIU's answers back; they are of some bytes, so the ways never block each other."""
        piece = memoryview(bytearray(CARRIED_BYTES))
        while True:
            ready, _, _ = select.select([self._ours, self._connection], [], [])
            if self._ours in ready and not self._outwards(piece):
                return
            if self._connection in ready and not self._inwards(piece):
                return

    def _outwards(self, piece: memoryview) -> bool:
        size = self._ours.recv_into(piece)
        self._connection.settimeout(None)
        self._connection.sendall(piece[:size])
        self._sent += size
        return size > 0

    def _inwards(self, piece: memoryview) -> bool:
        """Pass on all that is there: one record by itself would cost more to pass on than to decrypt.

        There is always room for a whole one, so nothing stays behind in TLS, where select(2) does not see it.
        """
        self._connection.settimeout(0)
        size, ended = 0, False
        with contextlib.suppress(ssl.SSLWantReadError):
            while not ended and len(piece) - size >= RECORD_BYTES:
                taken = self._connection.recv_into(piece[size:])
                size, ended = size + taken, taken == 0
        self._ours.sendall(piece[:size])
        return not ended

    def _end(self) -> None:
        """End both sides. The connection below TLS: if TLS were taken off it first, memory could leave it in clear."""
        for one in (self._connection, self._ours):
            with contextlib.suppress(OSError):  # it has ended already
                socket.socket.shutdown(one, socket.SHUT_RDWR)


Plug = Direct | Relay


@contextlib.contextmanager
def plug(connection: socket.socket) -> Iterator[Plug]:
    """Yield what CRIU is given of a connection, which is closed at the end."""
    held = Relay(connection) if isinstance(connection, ssl.SSLSocket) else Direct(connection)
    with connection, contextlib.closing(held):
        yield held
