"""Reading and writing the registers of a stopped thread by ptrace(2), on x86-64.

The mask of blocked signals can be written too, of any thread and on any architecture.

A thread that is stopped runs none of its instructions: ``PTRACE_SEIZE`` does not let it go, and
when its tracer detaches, or dies, the kernel puts it back into its stop. One call writes all
registers, so that a death in here leaves the old ones or the new ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from collections.abc import Iterator

from sojourn.errors import ProcessGone

#: Requests of include/uapi/linux/ptrace.h, and the register set of include/uapi/linux/elf.h.
DETACH, GETREGSET, SETREGSET, SEIZE, PRSTATUS = 17, 0x4204, 0x4205, 0x4206, 1
INTERRUPT, SETSIGMASK = 0x4207, 0x420B

#: The kernel's ``sigset_t``, in bytes.
MASK_BYTES = 8

#: Wait for a thread too, not for whole processes only (waitpid(2), ``__WALL``).
ALL_THREADS = 0x40000000

#: ``struct user_regs_struct`` of arch/x86/include/asm/user_64.h; CRIU's images use the same order.
NAMES = (
    *("r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si"),
    *("di", "orig_ax", "ip", "cs", "flags", "sp", "ss", "fs_base", "gs_base", "ds", "es", "fs"),
    "gs",
)

#: ``struct user_regs_struct32`` of arch/x86/include/asm/user32.h, for 32-bit programs.
NAMES_32 = (
    *("bx", "cx", "dx", "si", "di", "bp", "ax", "ds", "es", "fs", "gs", "orig_ax", "ip", "cs"),
    *("flags", "sp", "ss"),
)

#: How the kernel lays them out, by the size of the set.
LAYOUTS = {8 * len(NAMES): (NAMES, "Q"), 4 * len(NAMES_32): (NAMES_32, "I")}

#: How long a stopped thread may take to report its stop, in seconds; it needs microseconds.
REPORTED_WITHIN_S = 1

#: Registers by name, as numbers without a sign.
Registers = dict[str, int]


class _Vector(ctypes.Structure):
    """``struct iovec`` of readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@contextlib.contextmanager
def seized(tid: int, *, interrupt: bool = False) -> Iterator[None]:
    """Trace a stopped thread, and let go of it. Raises ProcessGone, and OSError if it may not be.

    For a thread that runs only with ``interrupt``: else this would wait for its next stop.
    """
    _ptrace(SEIZE, tid)
    try:
        if interrupt:
            _ptrace(INTERRUPT, tid)
        _await_stop(tid)
        yield
    finally:
        with contextlib.suppress(ProcessGone, OSError):
            _ptrace(DETACH, tid)


def registers(tid: int) -> Registers:
    """Return the registers of a traced thread, those that its kind of program has."""
    buffer = ctypes.create_string_buffer(max(LAYOUTS))
    vector = _Vector(ctypes.addressof(buffer), len(buffer))
    _ptrace(GETREGSET, tid, PRSTATUS, ctypes.addressof(vector))
    names, kind = LAYOUTS[vector.length]
    values = struct.unpack(f"={len(names)}{kind}", buffer.raw[: vector.length])
    return dict(zip(names, values, strict=True))


def set_registers(tid: int, values: Registers) -> None:
    """Write all registers of a traced thread in one go."""
    names, kind = LAYOUTS[8 * len(NAMES)] if "r15" in values else LAYOUTS[4 * len(NAMES_32)]
    packed = struct.pack(f"={len(names)}{kind}", *(values[name] for name in names))
    buffer = ctypes.create_string_buffer(packed, len(packed))
    vector = _Vector(ctypes.addressof(buffer), len(packed))
    _ptrace(SETREGSET, tid, PRSTATUS, ctypes.addressof(vector))


def set_signal_mask(tid: int, mask: int) -> None:
    """Write which signals a traced thread blocks, as bits."""
    blocked = ctypes.c_uint64(mask)
    _ptrace(SETSIGMASK, tid, MASK_BYTES, ctypes.addressof(blocked))


def _await_stop(tid: int) -> None:
    until = time.monotonic() + REPORTED_WITHIN_S
    while time.monotonic() < until:
        try:
            reported, _ = os.waitpid(tid, ALL_THREADS | os.WNOHANG)
        except ChildProcessError:
            raise ProcessGone(f"There is no thread {tid} on this host.") from None
        if reported == tid:
            return
        time.sleep(0.0002)
    raise TimeoutError(f"Thread {tid} did not report its stop.")


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, tid, address, data) == -1:
        code = ctypes.get_errno()
        if code == 3:  # ESRCH: it has ended
            raise ProcessGone(f"There is no thread {tid} on this host.")
        raise OSError(code, os.strerror(code), f"ptrace of thread {tid}")
