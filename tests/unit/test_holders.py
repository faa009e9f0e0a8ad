"""Who else holds what a tree uses: not a child that it has got since it was read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from sojourn.preflight.holders import outside
from sojourn.preflight.scan import scan

#: Has a pipe in common with its child, and gets another child for each line that it reads.
FAMILY = """
import os, sys, time
ends = os.pipe()
while True:
    if os.fork() == 0:
        time.sleep(60)
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_a_child_that_was_born_since() -> None:
    """A shell's loop forks all the time: what it has just started is not outside of it."""
    argv = [sys.executable, "-c", FAMILY]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, start_new_session=True) as program:
        assert program.stdin
        assert program.stdout
        program.stdout.readline()
        tree = scan(program.pid)
        program.stdin.write(b"\n")
        program.stdin.flush()
        program.stdout.readline()
        found = outside(tree)
        os.killpg(program.pid, signal.SIGKILL)
    assert len(tree.tasks) == 2
    assert found.held == []
