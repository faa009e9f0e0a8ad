"""The carrier: the socket of a page channel that CRIU gets, and what the holder does with it.

``Direct``  the connection itself. CRIU corks it, and the holder keeps a duplicate to uncork it.
``Relay``   for an encrypted connection, which CRIU does not support: one end of a pair of Unix
            sockets. A thread of the holder forwards data between the other end and TLS.

CRIU's own TLS is not used: it takes longer, and fails with lazy pages (docs/architecture.md).

``Unasked`` for a dump that leaves the memory in the original: nobody asks CRIU for it.

If the holder dies, the kernel closes both its sockets: CRIU's on this host, and with the connection
that of the other host. When either side of a relay ends, the other is ended too, so no CRIU waits
for a peer that is gone.
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

#: How long CRIU's last data may take to reach the other side after CRIU has ended; it is in flight
#: already.
LAST_DATA_S = 2.0

#: The largest TLS record (RFC 8446, 5.1), and how much is forwarded in one piece.
RECORD_BYTES, CARRIED_BYTES = 2**14, 2**18


class Direct:
    """CRIU uses the connection itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.descriptor = connection.fileno()

    def hand_over(self) -> None:
        """Keep the duplicate open; CRIU has inherited the connection."""

    def uncork(self) -> None:
        """Send what CRIU has corked: its last small frame would otherwise wait for 200 ms."""
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def bytes_sent(self) -> int:
        """Return how many bytes the other side has acknowledged so far (tcp(7), TCP_INFO)."""
        # The kernel fills in as much of the structure as it knows and we ask for; 192 bytes go
        # beyond the field that is read, which is in it since Linux 4.1.
        info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        return int(struct.unpack_from("=Q", info, TCP_INFO_BYTES_ACKED)[0])

    def close(self) -> None:
        """Do nothing: the caller closes the connection."""


class Unasked:
    """A socket at which CRIU finds the end at once when it comes to serve the memory.

    ``criu dump --lazy-pages`` then ends with success, and leaves the tree stopped. It must never be
    the network: at what is malformed, or a reset, CRIU lets the tree run on (docs/memory.md).
    """

    def __init__(self) -> None:
        self._ours, self._criu = socket.socketpair()
        self._ours.shutdown(socket.SHUT_WR)
        self.descriptor = self._criu.fileno()

    def hand_over(self) -> None:
        """Close our copy of CRIU's end."""
        self._criu.close()

    def uncork(self) -> None:
        """Do nothing: nothing is sent."""

    def bytes_sent(self) -> int:
        """Return 0."""
        return 0

    def close(self) -> None:
        """Close the far end, once CRIU has ended."""
        self._criu.close()
        self._ours.close()


class Relay:
    """CRIU uses a Unix socket, which cannot be corked, and a thread forwards its data."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection
        self._ours, self._criu = socket.socketpair()
        self.descriptor = self._criu.fileno()
        self._sent = 0
        self._carrier = threading.Thread(target=self._carry, daemon=True)

    def hand_over(self) -> None:
        """Close our copy of CRIU's end, so that its closing can be seen, and start forwarding."""
        self._criu.close()
        self._carrier.start()

    def uncork(self) -> None:
        """Do nothing: nothing is corked."""

    def bytes_sent(self) -> int:
        """Return how many bytes from CRIU the network has accepted so far."""
        return self._sent

    def close(self) -> None:
        """Forward the rest of CRIU's data and stop; then the connection is no longer used."""
        # CRIU's last bytes may still be on their way here when CRIU has ended: without this wait 4
        # of 332 dumps failed.
        if self._carrier.is_alive():
            # CRIU's end is closed by now, so the thread ends by itself.
            self._carrier.join(LAST_DATA_S)
        self._end()
        if self._carrier.is_alive():
            self._carrier.join()
        # It is open still if CRIU could not be started.
        self._criu.close()
        self._ours.close()

    def _carry(self) -> None:
        """Forward until one side ends, and then end the other, for whatever reason."""
        try:
            with contextlib.suppress(OSError):
                self._both_ways()
        finally:
            self._end()

    def _both_ways(self) -> None:
        """Forward memory one way and CRIU's answers back.

        Answers have a few bytes, so the two directions never block each other.
        """
        piece = memoryview(bytearray(CARRIED_BYTES))
        while True:
            ready, _, _ = select.select([self._ours, self._connection], [], [])
            if self._ours in ready and not self._outwards(piece):
                return
            if self._connection in ready and not self._inwards(piece):
                return

    def _outwards(self, piece: memoryview) -> bool:
        size = self._ours.recv_into(piece)
        # The two directions share one socket: sending waits, receiving takes only what is there.
        self._connection.settimeout(None)
        self._connection.sendall(piece[:size])
        self._sent += size
        return size > 0

    def _inwards(self, piece: memoryview) -> bool:
        """Forward all that has arrived: forwarding single records would cost more than decryption.

        There is always space for a whole record, so no data stays in the TLS layer, where select(2)
        does not see it.
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
        """End both sides."""
        for side in (self._connection, self._ours):
            with contextlib.suppress(OSError):  # it has ended already
                # Not SSLSocket.shutdown: it removes the TLS layer first, and memory that is written
                # after that would leave this host unencrypted.
                socket.socket.shutdown(side, socket.SHUT_RDWR)


Carrier = Direct | Relay | Unasked


@contextlib.contextmanager
def carrier(connection: socket.socket) -> Iterator[Carrier]:
    """Yield the carrier for a connection, which is closed at the end."""
    held = Relay(connection) if isinstance(connection, ssl.SSLSocket) else Direct(connection)
    with connection, contextlib.closing(held):
        yield held
