"""An interactive shell on a terminal, into which one line is typed: ``terminal.py LINE``.

Runs inside a host with the standard library only. It is what a terminal's window or sshd is on a
real host: it has the master side, and prints what appears on the screen.
"""

from __future__ import annotations

import os
import pty
import sys
import time


def main() -> None:
    """Type the line as soon as the shell shows its prompt, then look on."""
    pid, master = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", PS1="$ ")
        os.execvp("bash", ["bash", "--norc", "-i"])
    time.sleep(0.3)
    os.write(master, sys.argv[1].encode() + b"\n")
    while True:
        os.write(1, os.read(master, 4096))


if __name__ == "__main__":
    main()
