"""userfaultfd(2): pages put into the memory of another process, and what happens to that memory.

A mapping that is registered with such a descriptor has pages that are missing. A thread that
touches one waits until it is put into place; a fork, and a change of the mappings, waits until its
message has been read. Once the last copy of the descriptor is closed, the kernel puts zeros where a
page is missing, and tells nobody (ioctl_userfaultfd(2)).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum

#: Requests of include/uapi/linux/userfaultfd.h, with the structures that they take.
COPY, ZEROPAGE, WAKE, CONTINUE = 0xC028AA03, 0xC020AA04, 0x8010AA02, 0xC020AA07

#: ``struct uffd_msg``: the event, and three numbers whose meaning depends on it.
MESSAGE = struct.Struct("=B7x3Q")

#: Between these is every address that a process can have mapped: above what is never mapped
#: (``vm.mmap_min_addr``), and in the lower half of an address space of 47 bits.
LOWEST, HIGHEST = 0x10000, 2**47 - 4096

#: What the kernel answers once the process has ended or runs another program.
GONE = {errno.ESRCH, errno.ENOSPC, errno.EBADF}


class Event(IntEnum):
    """What a message reports: ``UFFD_EVENT_*``."""

    FAULT = 0x12
    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


@dataclass(frozen=True)
class Message:
    """One message. A fault has flags and the address; a fork the descriptor of the child.

    A remap has the old address, the new one and the length; what is removed or unmapped has its
    begin and its end.
    """

    event: Event
    first: int
    second: int
    third: int

    @classmethod
    def parse(cls, raw: bytes | memoryview) -> Message:
        """Read a message of 32 bytes. Raises ValueError for an event that we did not ask for."""
        event, first, second, third = MESSAGE.unpack(raw)
        # Of a fork the kernel fills in 32 bits only.
        return cls(
            Event(event), first & 0xFFFFFFFF if event == Event.FORK else first, second, third
        )


def copy(descriptor: int, target: int, source: int, length: int) -> int:
    """Put pages into place and wake who waits for them; return how many bytes that were.

    ``source`` is an address in this process. Fewer than asked for are put where a page in the way
    is there already, or the mapping ends. Raises OSError if there was none: EEXIST if the first one
    is there already, ENOENT if not all of this is one registered mapping, EAGAIN if the mappings
    are changing (a message waits to be read), ESRCH if the process is gone.
    """
    arguments = bytearray(struct.pack("=4Qq", target, source, length, 0, 0))
    return _placed(descriptor, COPY, arguments, 32, length)


def zero(descriptor: int, target: int, length: int) -> int:
    """Put zeros into place, as ``copy`` does with pages."""
    arguments = bytearray(struct.pack("=3Qq", target, length, 0, 0))
    return _placed(descriptor, ZEROPAGE, arguments, 24, length)


def wake(descriptor: int, start: int, length: int) -> None:
    """Have the threads that wait for a page here look again; each that is missing is reported."""
    fcntl.ioctl(descriptor, WAKE, struct.pack("=2Q", start, length))


def is_gone(descriptor: int) -> bool:
    """Return whether the process has ended, or runs another program. Changes nothing.

    It asks for something that memory like ours cannot have (``UFFDIO_CONTINUE``, Linux 5.13), and
    the kernel looks first whether there is any memory. An older kernel never answers that.
    """
    request = bytearray(struct.pack("=3Qq", LOWEST, mmap.PAGESIZE, 0, 0))
    try:
        fcntl.ioctl(descriptor, CONTINUE, request)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


def _placed(descriptor: int, request: int, arguments: bytearray, at: int, length: int) -> int:
    try:
        fcntl.ioctl(descriptor, request, arguments)
    except OSError:
        # The kernel answers EAGAIN where it stopped on the way, and how far it came.
        (placed,) = struct.unpack_from("=q", arguments, at)
        if placed <= 0:
            raise
        return int(placed)
    return length
