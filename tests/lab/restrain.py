"""Restrain itself in one way, then write down again and again whether that is still in force.

``python3 restrain.py LOG WHAT [FILE]``: with LOG ``-``, standard output. With FILE, it restrains
itself only when that exists. Needs the standard library only. A line is the name of the host and
what was tried; the first one is ``cannot WHAT`` if this kernel does not have it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

#: Tries what the restraint denies, and returns what came of it.
Attempt = Callable[[], str]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


def call(answer: int) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def syscall(number: int, *arguments: int) -> int:
    return call(int(_libc.syscall(number, *(ctypes.c_long(one) for one in arguments))))


def outcome(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as error:
        return os.strerror(error.errno)
    return "done"


def landlock(files: int, network: int, scope: int) -> None:
    rights = ctypes.create_string_buffer(struct.pack("=QQQ", files, network, scope))
    size = 24 if scope else 16 if network else 8
    ruleset = syscall(444, ctypes.addressof(rights), size, 0)
    call(_libc.prctl(38, 1, 0, 0, 0))
    syscall(446, ruleset, 0)
    os.close(ruleset)


def landlock_files() -> Attempt:
    landlock(1 << 8, 0, 0)  # to make files
    name = f"/var/tmp/made-by-{os.getpid()}"
    return lambda: outcome(lambda: Path(name).touch())


def landlock_network() -> Attempt:
    landlock(0, 1, 0)  # to bind TCP ports
    return lambda: outcome(lambda: socket.socket().bind(("127.0.0.1", 0)))


def landlock_thread() -> Attempt:
    return in_thread(landlock_files)


def denies_executable() -> Attempt:
    call(_libc.prctl(65, 1, 0, 0, 0))
    return lambda: outcome(lambda: mmap.mmap(-1, 4096, prot=7))


def intercepts() -> Attempt:
    selector = ctypes.create_string_buffer(1)
    call(_libc.prctl(59, 1, ctypes.c_ulong(0), ctypes.c_ulong(2**47 - 1), selector))
    KEPT.append(selector)
    return lambda: "done"


def page() -> int:
    """Return a page of its own, between two that cannot be used."""
    begin = _libc.mmap(None, ctypes.c_size_t(3 * 4096), 0, 0x22, -1, ctypes.c_long(0)) + 4096
    call(_libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(4096), 3))
    return int(begin)


def sealed() -> Attempt:
    begin = page()
    syscall(462, begin, 4096, 0)
    return lambda: outcome(
        lambda: call(_libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(4096), 1))
    )


def keyed() -> Attempt:
    syscall(329, page(), 4096, 3, syscall(330, 0, 0))
    return lambda: "done"


def secret() -> Attempt:
    memory = syscall(447, 0)
    os.ftruncate(memory, 4096)
    KEPT.append(mmap.mmap(memory, 4096))
    return lambda: "done"


def own_descriptors() -> Attempt:
    shared = os.open("/etc/passwd", os.O_RDONLY)

    def close() -> Attempt:
        call(_libc.unshare(0x400))
        os.close(shared)
        return lambda: outcome(lambda: os.fstat(shared))

    return in_thread(close)


def own_directory() -> Attempt:
    def leave() -> Attempt:
        call(_libc.unshare(0x200))
        os.chdir("/usr")
        return os.getcwd

    return in_thread(leave)


def own_network() -> Attempt:
    def leave() -> Attempt:
        call(_libc.unshare(0x40000000))
        return lambda: str(len(socket.if_nameindex()))

    return in_thread(leave)


def own_children() -> Attempt:
    call(_libc.unshare(0x20000000))
    return lambda: "done"


def filtered_thread() -> Attempt:
    """A thread of another user, without new privileges, which may not ask for its resources."""

    def enter() -> Attempt:
        call(_libc.prctl(38, 1, 0, 0, 0))
        instructions = [
            (0x20, 0, 0, 0),
            (0x15, 0, 1, 98),
            (6, 0, 0, 0x5000D),
            (6, 0, 0, 0x7FFF0000),
        ]
        code = ctypes.create_string_buffer(
            b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
        )
        program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", 4, ctypes.addressof(code)))
        call(_libc.prctl(22, 2, program))
        syscall(117, 65534, 65534, 65534)
        return lambda: outcome(lambda: syscall(98, 0, ctypes.addressof(code)))

    return in_thread(enter)


def nothing() -> Attempt:
    return lambda: "done"


def in_thread(enter: Callable[[], Attempt]) -> Attempt:
    """Restrain a thread of its own, and return what came of its last attempt."""
    last, begun = [""], threading.Event()

    def run() -> None:
        attempt = enter()
        while True:
            last[0] = attempt()
            begun.set()
            time.sleep(0.05)

    threading.Thread(target=run, daemon=True).start()
    begun.wait(5)
    return lambda: last[0]


#: What must stay in memory.
KEPT: list[object] = []


def main(log: str, what: str, file: str = "") -> None:
    out = 1 if log == "-" else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    home = os.uname().nodename
    attempt: Attempt = nothing()
    os.write(out, f"{home} waits\n".encode() * bool(file))
    while file and not Path(file).exists():
        time.sleep(0.01)
    try:
        attempt = globals()[what]()
    except OSError as error:
        os.write(out, f"cannot {what}: {error}\n".encode())
    while True:
        os.write(out, f"{os.uname().nodename} {attempt()}\n".encode())
        time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
