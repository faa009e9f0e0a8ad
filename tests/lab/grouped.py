"""Put a control group around itself, as systemd does: ``python3 grouped.py NAME WHAT``.

WHAT is ``filtered``, with a BPF program that denies all devices but those of memory, or ``plain``.
Needs the standard library only. Prints ``ready``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

#: For a program of type CGROUP_DEVICE: major number 1 is permitted, others are not.
PERMIT_MEMORY = (
    (0x61, 0x12, 4, 0),  # register 2 = context.major
    (0xB7, 0, 0, 1),
    (0x15, 2, 1, 1),
    (0xB7, 0, 0, 0),
    (0x95, 0, 0, 0),
)


def bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    answer = int(_libc.syscall(321, command, buffer, 128))
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def filtered(group: Path) -> None:
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("=BBhi", *instruction) for instruction in PERMIT_MEMORY)
    )
    licence = ctypes.create_string_buffer(b"GPL")
    places = ctypes.addressof(code), ctypes.addressof(licence)
    program = bpf(5, struct.pack("=IIQQ", 15, len(PERMIT_MEMORY), *places))
    directory = os.open(group, os.O_RDONLY)
    bpf(8, struct.pack("=IIII", directory, program, 6, 0))
    os.close(program)
    os.close(directory)


def plain(group: Path) -> None:
    pass


def main(name: str, what: str) -> None:
    group = Path("/sys/fs/cgroup", name)
    group.mkdir(exist_ok=True)
    (group / "cgroup.procs").write_text("0")
    {"filtered": filtered, "plain": plain}[what](group)
    print("ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
