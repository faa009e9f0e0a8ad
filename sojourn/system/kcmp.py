"""Whether two processes or threads have the same object of the kernel, by kcmp(2)."""

from __future__ import annotations

import ctypes
import os

#: Number of the call by machine; that of 64-bit Arm is asm-generic's (include/uapi).
NUMBERS = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272}

#: What is compared (include/uapi/linux/kcmp.h): an open file of each, the table of descriptors, or
#: the working directory, root and umask.
FILE, FILES, FILE_SYSTEM = 0, 2, 3

#: The answers: the same one; two, of which the first comes before the other one in the kernel's
#: own order, or after it.
SAME, BEFORE, AFTER = 0, 1, 2


def compare(kind: int, one: int, other: int, first: int = 0, second: int = 0) -> int:
    """Return the kernel's answer; -1 if either is gone, or on a machine that is not known here.

    ``one`` and ``other`` are threads; ``first`` and ``second`` are their descriptors, for ``FILE``.
    """
    number = NUMBERS.get(os.uname().machine)
    if number is None:
        return -1
    return int(_libc.syscall(number, one, other, kind, first, second))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long] * 6
