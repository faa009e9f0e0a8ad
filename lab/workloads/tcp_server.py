"""An echo server: proves, with tcp_client.py, what a move does to an established TCP connection.

Listens on ``--address``, which must exist on the host where it runs, and sends every line back.
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

# A host's own Python runs this file by its name, without the checkout on its path.
sys.path.insert(0, str(Path(__file__).parents[2]))

from lab.workloads.beating import Beat, arguments


class Echo:
    """Counts what it sends back."""

    def __init__(self, address: str, port: int) -> None:
        self.listener = socket.create_server((address, port))
        self.connections = 0
        self.lines = 0
        self.broken = 0

    def serve(self) -> None:
        """Accept connections until killed, each served by a thread of its own."""
        while True:
            connection, _ = self.listener.accept()
            self.connections += 1
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb", buffering=0) as stream:
                for line in stream:
                    stream.write(line)
                    self.lines += 1
        except OSError:
            self.broken += 1


def main() -> None:
    """Serve, and beat until killed."""
    parser = arguments(__doc__)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7000)
    options = parser.parse_args()
    echo = Echo(options.address, options.port)
    threading.Thread(target=echo.serve, daemon=True).start()
    beat = Beat(options)
    while True:
        beat({"connections": echo.connections, "lines": echo.lines, "broken": echo.broken})


if __name__ == "__main__":
    main()
