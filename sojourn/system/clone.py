"""A child that shares this process's descriptors, not copies of them (clone(2), ``CLONE_FILES``).

What either of the two opens is open in both, and stays open when one of them is killed, whenever
that is. The other side of it: what one of them closes is closed for both. So neither may end in
Python's usual way, which closes what its objects hold; both end by ``os._exit``.
"""

from __future__ import annotations

import ctypes
import os
import signal

#: Number of ``clone(2)`` by machine.
CLONE = {"x86_64": 56, "aarch64": 220}

#: ``CLONE_FILES`` of include/uapi/linux/sched.h; the lowest byte is the signal at the child's end.
CLONE_FILES = 0x400


def sharing_descriptors() -> int:
    """Fork with shared descriptors: return 0 in the child, and its PID in the parent.

    The caller must have one thread only. Raises OSError.
    """
    # PyDLL keeps the interpreter's lock: nothing of Python runs between the two calls.
    library = ctypes.PyDLL(None, use_errno=True)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(library.syscall(CLONE[os.uname().machine], CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid
