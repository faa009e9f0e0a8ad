"""A program whose every page is known, and which changes its mappings all the time.

``scrambling.py MB`` has so much anonymous memory and writes a number of its own into each page.
Then it goes on for ever: pages are read and compared, written, given back (madvise(2)), moved
(mremap(2)), unmapped and mapped again, and children are forked that look at what they have. Four
threads read beside it.

At SIGUSR1 it compares every page and writes a line: how many are right, how many are not, how many
children have seen what is not right, and how many rounds it has done.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time

PAGE = mmap.PAGESIZE
PIECE = 16

#: What is noted differs from what must be there: if both became zero, that would look right.
MASK = 0x5A5A5A5A5A5A5A5A

#: mremap(2), mmap(2) and madvise(2), whose constants Python does not have.
MAYMOVE_FIXED = 3
PRIVATE_ANONYMOUS_FIXED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
FAILED = ctypes.c_void_p(-1).value

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mremap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Memory:
    """The pages, in pieces of 16 that can move, and what each page must have."""

    def __init__(self, pieces: int) -> None:
        self.at = [self.mapped() for _ in range(pieces)]
        self.wanted = array.array("Q", [MASK]) * (pieces * PIECE)
        self.lock = threading.Lock()
        self.damaged = 0
        for page in range(len(self.wanted)):
            self.write(page, page + 1)

    @staticmethod
    def mapped(address: int = 0) -> int:
        """Map a piece anew, at an address or anywhere."""
        flags = PRIVATE_ANONYMOUS_FIXED if address else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        found = libc.mmap(address or None, PIECE * PAGE, 3, flags, -1, 0)
        assert found not in {None, FAILED}
        return int(found)

    def address(self, page: int) -> int:
        """Return where a page is now."""
        return self.at[page // PIECE] + page % PIECE * PAGE

    def write(self, page: int, value: int) -> None:
        """Write a number into a page, at its begin and at its end."""
        raw = struct.pack("=Q", value)
        ctypes.memmove(self.address(page), raw, 8)
        ctypes.memmove(self.address(page) + PAGE - 8, raw, 8)
        self.wanted[page] = value ^ MASK

    def is_right(self, page: int) -> bool:
        """Return whether a page has what it must have."""
        place, raw = self.address(page), struct.pack("=Q", self.wanted[page] ^ MASK)
        return ctypes.string_at(place, 8) == raw == ctypes.string_at(place + PAGE - 8, 8)

    def count_wrong(self, pages: range | list[int]) -> int:
        """Return how many of these pages are not right."""
        return sum(not self.is_right(page) for page in pages)

    def give_back(self, page: int) -> None:
        """Have the kernel forget a page."""
        assert libc.madvise(self.address(page), PAGE, mmap.MADV_DONTNEED) == 0
        self.wanted[page] = MASK

    def move(self, piece: int) -> None:
        """Move a piece to another place."""
        target = self.mapped()
        found = libc.mremap(self.at[piece], PIECE * PAGE, PIECE * PAGE, MAYMOVE_FIXED, target)
        assert found == target
        self.at[piece] = target

    def renew(self, piece: int) -> None:
        """Unmap a piece, and map another one there."""
        place = self.at[piece]
        assert libc.munmap(place, PIECE * PAGE) == 0
        assert self.mapped(place) == place
        for page in range(piece * PIECE, (piece + 1) * PIECE):
            self.wanted[page] = MASK


def child_sees(memory: Memory) -> bool:
    """Fork, and return whether the child sees what it must."""
    pages = [random.randrange(len(memory.wanted)) for _ in range(20)]
    child = os.fork()
    if child == 0:
        os._exit(memory.count_wrong(pages) > 0)
    return os.waitpid(child, 0)[1] == 0


def scramble(memory: Memory, pages: int) -> None:
    """Change something at random."""
    kind, page = random.randrange(40), random.randrange(pages)
    if kind == 0:
        memory.move(page // PIECE)
    elif kind == 1:
        memory.renew(page // PIECE)
    elif kind == 2:
        memory.damaged += not child_sees(memory)
    elif kind < 6:
        memory.give_back(page)
    elif kind < 16:
        memory.write(page, random.getrandbits(64))
    else:
        memory.damaged += not memory.is_right(page)


def read_beside(memory: Memory) -> None:
    """Read pages for ever, in a thread."""
    while True:
        with memory.lock:
            memory.damaged += not memory.is_right(random.randrange(len(memory.wanted)))
        time.sleep(0.001)


def main() -> None:
    """Go on until a signal ends it."""
    memory = Memory(int(sys.argv[1]) * 2**20 // PAGE // PIECE)
    asked = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: asked.set())
    for _ in range(4):
        threading.Thread(target=read_beside, args=(memory,), daemon=True).start()
    rounds, pages = 0, len(memory.wanted)
    print("ready", flush=True)  # noqa: T201
    while True:
        with memory.lock:
            scramble(memory, pages)
            if asked.is_set():
                asked.clear()
                wrong = memory.count_wrong(range(pages))
                print(pages - wrong, wrong, memory.damaged, rounds, flush=True)  # noqa: T201
        rounds += 1
        time.sleep(0.0005)


if __name__ == "__main__":
    main()
