"""The command line. In ``main`` every failure becomes one sentence, a hint and an exit code.

This module imports next to nothing, so that Ctrl-C finds ``main`` at work however early it comes.
"""

from __future__ import annotations

import signal
import sys

#: How a program reports that Ctrl-C ended it: 128 and the number of the signal, as shells do.
INTERRUPTED = 130


def main() -> None:
    """Run the command line; never returns."""
    try:
        # Slow enough to be interrupted.
        from sojourn.cli.program import run

        status = run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == INTERRUPTED:
        # What Python still does before it ends would show a second Ctrl-C as a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)
