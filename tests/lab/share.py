"""Share something between a parent and its child, then use it: ``python3 share.py WHAT``.

Runs inside a host with the standard library only. Prints ``ready`` and the child's PID.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Objects that must stay open.
KEPT: list[Any] = []

_libc = ctypes.CDLL(None, use_errno=True)


def pipe() -> None:
    KEPT.extend(os.pipe())


def fifo() -> None:
    path = Path(tempfile.mkdtemp(dir="/shared")) / "fifo"
    os.mkfifo(path)
    KEPT.append(os.open(path, os.O_RDWR))


def memory() -> None:
    KEPT.append(mmap.mmap(-1, 4096))


def memfd() -> None:
    KEPT.append(os.memfd_create("shared"))


def memfd_mapped() -> None:
    descriptor = os.memfd_create("mapped")
    os.ftruncate(descriptor, 4096)
    KEPT.append(mmap.mmap(descriptor, 4096))
    os.close(descriptor)


def file_mapped() -> None:
    file = tempfile.NamedTemporaryFile(dir="/shared", delete=False)
    file.truncate(4096)
    KEPT.append(mmap.mmap(file.fileno(), 4096))
    file.close()


def eventfd() -> None:
    KEPT.append(os.eventfd(0))


def epoll() -> None:
    KEPT.append(select.epoll())


def timerfd() -> None:
    KEPT.append(_libc.timerfd_create(time.CLOCK_MONOTONIC, 0))


def signalfd() -> None:
    KEPT.append(_libc.signalfd(-1, bytes(128), 0))


def listener() -> None:
    KEPT.append(socket.create_server(("127.0.0.1", 7391)))


def unix() -> Callable[[], None]:
    """One end in the child, the other one in the parent."""
    KEPT.extend(socket.socketpair())
    return lambda: KEPT.pop().close()


def connection() -> Callable[[], None]:
    """Connect the child, as client, to the parent."""
    return _connection(socket.create_server(("127.0.0.1", 7392)))


def connection6() -> Callable[[], None]:
    """Do the same with a server for both versions of the protocol."""
    return _connection(
        socket.create_server(("::", 7393), family=socket.AF_INET6, dualstack_ipv6=True)
    )


def _connection(server: socket.socket) -> Callable[[], None]:
    client = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
    KEPT.extend((client, *server.accept()))
    server.close()
    give_up: Callable[[], None] = KEPT[1].close
    return give_up


def main(what: str) -> None:
    """Share it; the child gives up its part where the parent shall have that alone."""
    part = globals()[what]()
    child = os.fork()
    if child == 0:
        if part:
            part()
        signal.pause()
    if part:
        KEPT.pop(0).close()
    print("ready", child, flush=True)
    signal.pause()


main(sys.argv[1])
