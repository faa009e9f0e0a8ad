"""A program that restrains itself in every way that ``sojourn.system.restraints`` looks for.

The kernel's records of it show which of their bits mean what. It stands still in between: it prints
a line of JSON when it has done nothing yet, waits for SIGUSR1, restrains itself, and prints another
line, with what this kernel and processor have. It ends by itself if nobody ends it. It needs the
standard library only, and is run as a file.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
from collections.abc import Callable

#: Numbers of prctl(2).
SET_NO_NEW_PRIVS, SET_SYSCALL_USER_DISPATCH, SET_MDWE = 38, 59, 65

#: Numbers of system calls: from Linux 5 on they are the same on all architectures.
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, MSEAL = 444, 446, 462
PKEY_MPROTECT, PKEY_ALLOC = {"x86_64": (329, 330), "aarch64": (288, 289)}.get(
    os.uname().machine, (-1, -1)
)

#: Longer than it takes to look at it; SIGALRM ends it then.
ENDS_AFTER_S = 10

READ_WRITE, PRIVATE_ANONYMOUS = 3, 0x22

#: An area is larger than its part that is used, so that the kernel does not merge two of them.
PAGE = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = (ctypes.c_long,) * 6


def area() -> int:
    """Return the address of a page of its own between two that cannot be used."""
    begin = _libc.mmap(
        None,
        ctypes.c_size_t(3 * PAGE),
        0,
        PRIVATE_ANONYMOUS,
        -1,
        ctypes.c_long(0),
    )
    page = int(begin) + PAGE
    _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), READ_WRITE)
    return page


def enter_landlock() -> bool:
    """Enter a domain of Landlock; False if the kernel has none."""
    rights = ctypes.create_string_buffer(struct.pack("=Q", 1))  # to execute files
    ruleset = _call(LANDLOCK_CREATE_RULESET, ctypes.addressof(rights), 8)
    _libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return ruleset >= 0 and _call(LANDLOCK_RESTRICT_SELF, ruleset) == 0


def deny_executable() -> bool:
    """Deny itself memory that is both writable and executable."""
    return bool(_libc.prctl(SET_MDWE, 1, 0, 0, 0) == 0)


def intercept() -> bool:
    """Have its system calls intercepted, but for all addresses that there are."""
    everywhere, selector = ctypes.c_ulong(2**47 - 1), ctypes.create_string_buffer(1)
    KEPT.append(selector)
    answer = _libc.prctl(SET_SYSCALL_USER_DISPATCH, 1, ctypes.c_ulong(0), everywhere, selector)
    return bool(answer == 0)


def seal(page: int) -> bool:
    """Seal a page."""
    return _call(MSEAL, page, PAGE) == 0


def protect(pages: list[int]) -> int:
    """Give each page a key of its own, as far as there are any; return how many got one."""
    for number, page in enumerate(pages):
        key = _call(PKEY_ALLOC)
        if key < 0 or _call(PKEY_MPROTECT, page, PAGE, READ_WRITE, key) < 0:
            return number
    return len(pages)


#: What must stay in memory.
KEPT: list[object] = []


def _call(number: int, *arguments: int) -> int:
    padded = (*arguments, 0, 0, 0, 0, 0)[:5]
    return int(_libc.syscall(number, *padded))


def _report(**fields: object) -> None:
    os.write(1, json.dumps(fields).encode() + b"\n")


def main() -> None:
    """Show itself without restraints, and then with all of them."""
    signal.alarm(ENDS_AFTER_S)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    plain, sealed, *keyed = (area() for _ in range(17))
    _report(plain=plain, sealed=sealed, keyed=keyed)
    signal.sigwait({signal.SIGUSR1})
    steps: dict[str, Callable[[], bool | int]] = {
        "landlock": enter_landlock,
        "denies_executable": deny_executable,
        "intercepts": intercept,
        "seals": lambda: seal(sealed),
        "keys": lambda: protect(keyed),
    }
    _report(**{name: step() for name, step in steps.items()})
    signal.pause()


if __name__ == "__main__":
    main()
