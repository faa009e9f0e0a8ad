"""Hold something that a restore elsewhere can disturb: ``python3 holding.py WHAT ARGUMENT...``.

Runs inside a host with the standard library only. Prints ``ready``, then what becomes of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

#: ``SO_LINGER`` with no time: a connection that is closed is reset.
RESET = struct.pack("ii", 1, 0)


def stream(path: str) -> None:
    """Answer who connects with our PID and the host where we were started."""
    _serve(path)


def relative(directory: str, name: str) -> None:
    """Do the same at a path that is relative to the working directory."""
    os.chdir(directory)
    _serve(name)


def renamed(path: str) -> None:
    """Bind another name, and rename the file."""
    _serve(f"{path}.new", lambda: Path(f"{path}.new").replace(path))


def linked(path: str) -> None:
    """Bind another name, and make a link, which fails where the name is taken."""

    def link() -> None:
        os.link(f"{path}.new", path)
        Path(f"{path}.new").unlink()

    _serve(f"{path}.new", link)


def datagram(path: str) -> None:
    """Receive datagrams."""
    Path(path).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        _say("ready")
        while True:
            _say(server.recv(100).decode())


def _serve(path: str, then: Callable[[], object] = bool) -> None:
    Path(path).unlink(missing_ok=True)
    answer = f"{os.getpid()} {os.uname().nodename}".encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        then()
        _say("ready")
        while True:
            client, _ = server.accept()
            with client:
                client.sendall(answer)


def lease(path: str, mode: str, kind: str, when: str) -> None:
    """Hold a lease on a file, now or from SIGUSR1 on; SIGIO ends the program when it is broken."""
    with Path(path).open(mode) as file:

        def take(*_: object) -> None:
            fcntl.fcntl(
                file, fcntl.F_SETLEASE, {"write": fcntl.F_WRLCK, "read": fcntl.F_RDLCK}[kind]
            )
            _say("leased")

        signal.signal(signal.SIGUSR1, take)
        if when == "now":
            take()
        _say("ready")
        _live()


def closed(address: str, *kinds: str) -> None:
    """Have TCP sockets in state CLOSE, and use each at SIGUSR1."""
    made = {kind: CLOSED[kind](address) for kind in kinds}
    signal.signal(signal.SIGUSR1, lambda *_: [_use(*one) for one in made.items()])
    _say("ready")
    _live()


def connected() -> None:
    """Have a connection to ourselves, and say at SIGUSR1 whether its ends may reuse addresses."""
    with socket.create_server(("127.0.0.1", 7452)) as server:
        ends = (socket.create_connection(server.getsockname()), server.accept()[0])
        signal.signal(signal.SIGUSR1, lambda *_: _say(" ".join(map(_reuse, ends))))
        _say("ready")
        _live()


def _reuse(end: socket.socket) -> str:
    return f"reuse={end.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)}"


def waiting() -> None:
    """Wait, in order to be sent signals."""
    _say("ready")
    _live()


def _never(_: str) -> socket.socket:
    return socket.socket()


def _bound(_: str) -> socket.socket:
    made = socket.socket()
    made.bind(("0.0.0.0", 7451))
    return made


def _refused(address: str) -> socket.socket:
    made = socket.socket()
    made.connect_ex((address, 1))
    return made


def _reset(address: str, send: bytes = b"", *, read: bool = True) -> socket.socket:
    with socket.create_server((address, 0)) as server:
        made = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        peer.sendall(send)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
    if read:
        with_error = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert with_error == errno.ECONNRESET, with_error
    return made


CLOSED = {
    "never": _never,
    "bound": _bound,
    "refused": _refused,
    "reset": _reset,
    "unread": lambda address: _reset(address, b"unread"),
    "error": lambda address: _reset(address, read=False),
}


def _use(kind: str, made: socket.socket) -> None:
    """Say what the kernel answers to the usual calls."""
    answers = []
    poll = select.poll()
    poll.register(made, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    answers.append(f"{poll.poll(0)[0][1]:#x}" if poll.poll(0) else "-")
    for call in (lambda: made.recv(10), lambda: made.send(b"x"), made.getpeername):
        try:
            answers.append(repr(call()))
        except OSError as error:
            answers.append(errno.errorcode[error.errno])
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            made.connect(server.getsockname())
            answers.append("connected")
    except OSError as error:
        answers.append(errno.errorcode[error.errno])
    _say(f"{kind}: {' '.join(answers)}")


def _live() -> None:
    while True:
        signal.pause()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
