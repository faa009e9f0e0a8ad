"""bpf(2): the one door to it, and why it may not be passed."""

from __future__ import annotations

import ctypes
import errno
import os

#: Its number by machine.
SYSCALL = {"x86_64": 321, "aarch64": 280}


class Unavailable(Exception):
    """This kernel, or the rights of this program, do not permit what was asked."""


def call(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Return what the kernel answers, and the attributes with what it wrote into them.

    ``command`` and ``attributes`` are those of include/uapi/linux/bpf.h. Raises Unavailable.
    """
    number = SYSCALL.get(os.uname().machine)
    if number is None:
        raise Unavailable(f"bpf(2) is not known on {os.uname().machine}.")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    answer = int(_libc.syscall(number, command, buffer, len(attributes)))
    if answer < 0:
        code = ctypes.get_errno()
        raise Unavailable(f"bpf(2) failed: {os.strerror(code)} ({errno.errorcode.get(code)}).")
    return answer, buffer.raw


_libc = ctypes.CDLL(None, use_errno=True)
