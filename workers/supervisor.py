"""Keeps the processes of a worker running: starts them, restarts those that die, and ends them.

Each process is a child of the supervisor and runs one function, its *body*. A child that dies,
for whatever reason, is started again from the same function, ``RESTART_S`` later, and counted by
what it died of. A
supervisor that dies takes its children with it: the kernel sends them SIGTERM (prctl(2),
PR_SET_PDEATHSIG), also when the supervisor was killed with SIGKILL and could do nothing itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping

from workers.shared import Counts

log = logging.getLogger("sojourn.worker")

#: What a child process runs until it is ended.
Body = Callable[[], object]

#: The request of prctl(2) for a signal at the death of the parent.
PR_SET_PDEATHSIG = 1

#: The signals that ask a worker to end.
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)

#: How long the children may take to finish their steps when the worker ends, before they are
#: killed.
PATIENCE_S = 20

#: How often to look whether they have ended by then.
POLL_S = 0.05

#: The pause before a restart, so that a child that dies at once does not occupy a processor.
RESTART_S = 1.0


#: How a child can have ended: by a signal, such as the kernel's when memory runs out; by an error;
#: or as if it had been asked to.
KILLED, FAILED, ENDED = "killed", "failed", "ended"
CAUSES = (KILLED, FAILED, ENDED)


class Supervisor:
    """The children of this process: their bodies by name, and the names of the running by PID."""

    def __init__(self, bodies: Mapping[str, Body], restarts: Counts) -> None:
        self._bodies = bodies
        self._restarts = restarts
        self._running: dict[int, str] = {}
        self.ending = False

    def start(self) -> None:
        """Start every child, and from now on note SIGTERM and SIGINT in ``ending``."""
        for number in END_SIGNALS:
            signal.signal(number, self._note_end)
        for name in self._bodies:
            self._start(name)

    def restart_dead(self) -> list[str]:
        """Restart the children that have died since the last call, and return their names."""
        restarted = []
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                restarted.append(self._restart(pid, status))
        return restarted

    def end(self) -> None:
        """End every child: SIGTERM, by which a lane finishes its steps, then SIGKILL."""
        _signal(self._running, signal.SIGTERM)
        until = time.monotonic() + PATIENCE_S
        while self._running and time.monotonic() < until:
            self._forget_ended()
            time.sleep(POLL_S)
        # They are not reaped any more: this process ends now, and init does it.
        _signal(self._running, signal.SIGKILL)

    def _start(self, name: str) -> None:
        self._running[_fork(self._bodies[name])] = name

    def _restart(self, pid: int, status: int) -> str:
        name = self._running.pop(pid)
        cause, how = _cause(status)
        self._restarts.count(name, cause)
        log.error("Lane %s %s; it is restarted.", name, how)
        time.sleep(RESTART_S)
        self._start(name)
        return name

    def _forget_ended(self) -> None:
        for pid in list(self._running):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._running[pid]

    def _note_end(self, *_: object) -> None:
        self.ending = True


def _fork(body: Body) -> int:
    """Run a function in a child that ends with its parent, and return the child's PID."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # The kernel sends nothing for a parent that died before the call.
    if os.getppid() != parent:
        os._exit(1)
    # The parent's handlers would only note the end. Celery replaces these with its own.
    for number in END_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))
    body()
    # Not ``sys.exit``: what runs at exit, and output that is still buffered, belong to the parent.
    os._exit(0)


def _cause(status: int) -> tuple[str, str]:
    """Return what a child died of, one of ``CAUSES``, and the same for a sentence."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return KILLED, f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return (FAILED if code else ENDED), f"ended with exit code {code}"


def _signal(pids: Mapping[int, str], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
