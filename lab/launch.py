"""Start a program detached, and print its PID: ``python3 launch.py LOG COMMAND…``.

Runs inside a host with the standard library only. The program is in a shape that migrates well: it
is orphaned, so that the host's init adopts it; it leads its own session, since CRIU refuses a tree
whose session leader is outside of it; and it has no descriptor but ``/dev/null`` and its log.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Fork, print the PID, and leave the child to init."""
    log, *command = sys.argv[1:]
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(command, log, writer)
    os.close(writer)
    # O_CLOEXEC: exec closes the pipe, so nothing comes out of it once the program has started.
    error = os.read(reader, 4096)
    if error:
        sys.exit(error.decode())
    print(pid)  # noqa: T201  (the PID is the answer)


def _become(command: list[str], log: str, writer: int) -> None:
    try:
        os.setsid()
        os.chdir("/")
        nothing = os.open("/dev/null", os.O_RDONLY)
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for source, target in ((nothing, 0), (sink, 1), (sink, 2)):
            os.dup2(source, target)
        # The pipe itself stays open, for exec to close it or for an error to be reported.
        os.closerange(3, writer)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(writer, f"{command[0]}: {error.strerror}".encode())
        os._exit(127)


if __name__ == "__main__":
    main()
