"""Which processes of a worker take work by now: they report it to their supervisor by a pipe."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Collection

from sojourn.settings import variable

#: More than all reports of one restart of every process together.
READ_BYTES = 4096


class Readiness:
    """Which of the processes that a host needs have reported that they are ready.

    Made before they are forked, so that they inherit the pipe. A report is one line, shorter than
    PIPE_BUF, so lines of several processes do not mix (pipe(7)).
    """

    def __init__(self) -> None:
        self._ready: set[str] = set()
        self._reader, self._writer = os.pipe()

    def report(self, name: str) -> None:
        """Report that a process is ready; called in that process."""
        os.write(self._writer, f"{name}\n".encode())

    def forget(self, names: Collection[str]) -> None:
        """Forget the reports of processes that have died."""
        self._ready.difference_update(names)

    def wait(self, seconds: float) -> None:
        """Wait for the next report, at most for so long."""
        if select.select([self._reader], [], [], seconds)[0]:
            # Reports are whole lines, and all that can come fit into one read.
            self._ready.update(os.read(self._reader, READ_BYTES).decode().split())

    def includes(self, names: Collection[str]) -> bool:
        """Return whether all these processes are ready."""
        return self._ready.issuperset(names)


def notify_systemd() -> None:
    """Notify systemd that the worker runs, where it asks for that (sd_notify(3)).

    The lanes take some seconds more; the registry is what shows when the host is ready.
    """
    address = variable("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notification:
            notification.sendto(b"READY=1", _socket_name(address))


def _socket_name(address: str) -> str:
    """Return the name as the kernel takes it: systemd writes an abstract one with a leading @."""
    return f"\0{address[1:]}" if address.startswith("@") else address
