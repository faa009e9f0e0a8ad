"""A program that waits in every kind of system call at once, each in a thread of its own.

``python3 waiting.py SECONDS [KIND]`` prints one JSON object per wait when that has ended: its kind,
what the call returned, its error, and how many seconds it took. With a kind it waits in this only.

``python3 waiting.py SECONDS handler`` waits in poll without limit until SIGUSR2 has been handled,
and then lives on.

``python3 waiting.py SECONDS i386 FILE`` writes a 32-bit program that sleeps for so long and prints
``on time``, or ends with the number of an error.
"""

from __future__ import annotations

import ctypes
import json
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)

#: Numbers of system calls on x86_64.
POLL, NANOSLEEP, TIMEDWAIT, FUTEX, CLOCK_NANOSLEEP, EPOLL_WAIT, EPOLL_CREATE = (
    *(7, 35, 128, 202),
    *(230, 232, 291),
)

#: Operations of futex(2).
WAIT, WAIT_BITSET = 0, 9


class Timespec(ctypes.Structure):
    """``struct timespec``."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def of(seconds: float) -> Timespec:
    """Return the time as the kernel reads it."""
    return Timespec(int(seconds), int(seconds % 1 * 1e9))


def _futex(operation: int, until: float) -> int:
    word, limit = ctypes.c_uint32(0), ctypes.byref(of(until))
    return libc.syscall(FUTEX, ctypes.byref(word), operation, 0, limit, None, -1)


def _epoll(milliseconds: int) -> int:
    events = ctypes.create_string_buffer(16)
    return libc.syscall(EPOLL_WAIT, libc.syscall(EPOLL_CREATE, 0), events, 1, milliseconds)


def _sleep(call: tuple[int, ...], seconds: float) -> int:
    """Sleep without asking for what remains."""
    return libc.syscall(*call, ctypes.byref(of(seconds)), None)


def _sleep_on(call: tuple[int, ...], seconds: float) -> int:
    """Sleep, and ask for what remains."""
    return libc.syscall(*call, ctypes.byref(of(seconds)), ctypes.byref(of(0)))


def _timed_wait(limit: Timespec | None) -> int:
    usr1 = ctypes.c_uint64(1 << signal.SIGUSR1 - 1)
    where = ctypes.byref(limit) if limit else None
    return libc.syscall(TIMEDWAIT, ctypes.byref(usr1), None, where, 8)


#: Each wait, by its name; it takes so many seconds.
WAITS: dict[str, Callable[[float], int]] = {
    "poll": lambda seconds: libc.syscall(POLL, None, 0, int(seconds * 1000)),
    "poll without limit": lambda _: libc.syscall(POLL, None, 0, -1),
    "epoll_wait": lambda seconds: _epoll(int(seconds * 1000)),
    "epoll_wait without limit": lambda _: _epoll(-1),
    "nanosleep": lambda seconds: _sleep((NANOSLEEP,), seconds),
    "nanosleep with remainder": lambda seconds: _sleep_on((NANOSLEEP,), seconds),
    "clock_nanosleep": lambda seconds: _sleep((CLOCK_NANOSLEEP, 1, 0), seconds),
    "clock_nanosleep with remainder": lambda seconds: _sleep_on((CLOCK_NANOSLEEP, 1, 0), seconds),
    "futex": lambda seconds: _futex(WAIT, seconds),
    "futex until": lambda seconds: _futex(WAIT_BITSET, time.monotonic() + seconds),
    "sigtimedwait": lambda seconds: _timed_wait(of(seconds)),
    "sigwaitinfo": lambda _: _timed_wait(None),
    "sleep": lambda seconds: subprocess.call(["sleep", str(seconds)]),
}

#: Where a 32-bit program is loaded; its file begins with two headers of so many bytes.
LOADED_AT, HEADERS = 0x08048000, 52 + 32


def wait(name: str, seconds: float) -> None:
    """Wait once and report it."""
    began = time.monotonic()
    result = WAITS[name](seconds)
    error = ctypes.get_errno() if result < 0 else 0
    took = round(time.monotonic() - began, 3)
    line = json.dumps({"kind": name, "result": result, "error": error, "seconds": took})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def sleeper_32(seconds: int) -> bytes:
    """Return a 32-bit program (elf(5)): nanosleep and write, by ``int $0x80``."""
    text = b"on time\n"
    data = LOADED_AT + HEADERS + 65  # behind the code
    code = b"".join(
        (
            *(b"\xb8", struct.pack("<I", 162)),  # mov $nanosleep, %eax
            *(b"\xbb", struct.pack("<I", data)),  # mov $request, %ebx
            *(b"\x31\xc9", b"\xcd\x80"),  # xor %ecx, %ecx; int $0x80
            *(b"\x89\xc3", b"\xf7\xdb", b"\x75\x20"),  # mov %eax, %ebx; neg %ebx; jnz exit
            *(b"\xb8", struct.pack("<I", 4)),  # mov $write, %eax
            *(b"\xbb", struct.pack("<I", 1)),  # mov $1, %ebx
            *(b"\xb9", struct.pack("<I", data + 8)),  # mov $text, %ecx
            *(b"\xba", struct.pack("<I", len(text))),  # mov $length, %edx
            *(b"\xcd\x80", b"\x31\xdb"),  # int $0x80; xor %ebx, %ebx
            b"\x90" * 8,
            *(b"\xb8", struct.pack("<I", 1)),  # exit: mov $exit, %eax
            b"\xcd\x80",
        )
    )
    code = code.ljust(65, b"\x90")
    content = code + struct.pack("<ii", seconds, 0) + text
    size = HEADERS + len(content)
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    entry = LOADED_AT + HEADERS
    header = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<8I", 1, 0, LOADED_AT, LOADED_AT, size, size, 7, 0x1000)
    return identity + header + segment + content


def main() -> None:
    """Start all waits and live on."""
    seconds, *wanted = sys.argv[1:]
    if wanted[:1] == ["i386"]:
        Path(wanted[1]).write_bytes(sleeper_32(int(seconds)))
        Path(wanted[1]).chmod(0o755)
        return
    if wanted == ["handler"]:
        signal.signal(signal.SIGUSR2, lambda *_: None)
        wait("poll without limit", 0)
        signal.pause()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for name in wanted or WAITS:
        threading.Thread(target=wait, args=(name, float(seconds)), daemon=True).start()
    while True:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
