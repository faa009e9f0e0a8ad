"""A client of tcp_server.py: proves that a connection holds, and measures its longest silence.

Sends a numbered line at each beat over one connection and waits for it to come back. A connection
that breaks is counted and not opened again. ``longest_answer_ms`` is the outage as the client feels
it.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

# A host's own Python runs this file by its name, without the checkout on its path.
sys.path.insert(0, str(Path(__file__).parents[2]))

from lab.workloads.beating import Beat, arguments


class Asker:
    """One connection over which numbered lines go there and back."""

    def __init__(self, address: str, port: int, source: str) -> None:
        self.connection = socket.create_connection(
            (address, port), source_address=(source, 0) if source else None
        )
        self.stream = self.connection.makefile("rwb", buffering=0)
        self.answers = 0
        self.longest_answer_s = 0.0
        self.error = ""

    def ask(self, number: int) -> None:
        """Send one line and wait until it is back; does nothing once the connection is broken."""
        if self.error:
            return
        started = time.monotonic()
        try:
            self.error = self._exchange(b"%d\n" % number)
        except OSError as error:
            self.error = str(error)
        self.longest_answer_s = max(self.longest_answer_s, time.monotonic() - started)
        self.answers += not self.error

    def status(self) -> dict[str, object]:
        """Return how the connection fared."""
        return {
            "answers": self.answers,
            "longest_answer_ms": round(self.longest_answer_s * 1000, 3),
            "error": self.error,
        }

    def _exchange(self, line: bytes) -> str:
        self.stream.write(line)
        answer = self.stream.readline()
        if not answer:
            return "the server closed the connection"
        return "" if answer == line else f"sent {line!r}, got {answer!r}"


def main() -> None:
    """Connect, then ask at each beat until killed."""
    parser = arguments(__doc__)
    parser.add_argument("--address", default="127.0.0.1", help="of the server")
    parser.add_argument("--port", type=int, default=7000, help="of the server")
    parser.add_argument("--source", default="", help="our own address, where it matters")
    options = parser.parse_args()
    asker = Asker(options.address, options.port, options.source)
    beat = Beat(options)
    while True:
        asker.ask(beat.counter)
        beat(asker.status())


if __name__ == "__main__":
    main()
