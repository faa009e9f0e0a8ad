"""Start a program in a shape that migrates well: ``python3 launch.py LOG COMMAND…``. Prints its PID.

Runs inside a host with the standard library only. The program is orphaned, so that the host's init adopts
it, leads its own session, since CRIU refuses a tree whose session leader it can not see, and has no
descriptor but ``/dev/null`` and its log.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Fork, tell the PID, and leave the child to init."""
    log, *command = sys.argv[1:]
    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(command, log, tell)
    os.close(tell)
    error = os.read(told, 4096)  # the pipe closes, with nothing in it, when the program has started
    if error:
        sys.exit(error.decode())
    print(pid)  # noqa: T201  (the PID is the answer)


def _become(command: list[str], log: str, tell: int) -> None:
    try:
        os.setsid()
        os.chdir("/")
        nothing = os.open("/dev/null", os.O_RDONLY)
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for source, target in ((nothing, 0), (sink, 1), (sink, 2)):
            os.dup2(source, target)
        os.closerange(3, tell)
        os.execvp(command[0], command)  # noqa: S606  (no shell is the point)
    except OSError as error:
        os.write(tell, f"{command[0]}: {error.strerror}".encode())
        os._exit(127)


if __name__ == "__main__":
    main()
