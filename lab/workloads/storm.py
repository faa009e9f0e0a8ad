"""Touches all of its memory at once when it wakes on another host: what post-copy has to bear.

It holds ``--mb`` of random bytes. Once it finds itself on another host, its ``--threads`` read each
page of them, in an order of their own, as fast as they come; together they read each page once. The
status shows how many pages were read, how many reads found something else than before, and how
long the slowest thread took.

The kernel reads the pages, into a file in memory, so no thread waits with Python's lock in hand.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import threading
import time
from array import array
from pathlib import Path

# A host's own Python runs this file by its name, without the checkout on its path.
sys.path.insert(0, str(Path(__file__).parents[2]))

from lab.workloads.beating import Beat, arguments

FILL_BYTES = 2**20

#: How much of a page is read.
MARK_BYTES = 8

#: How many pages one call of the kernel reads, one after another.
PAGES_A_CALL = 256

#: How often a thread looks whether it is on another host.
LOOK_S = 0.001


class Storm:
    """Memory, and the threads that will read it."""

    def __init__(self, size_bytes: int, threads: int) -> None:
        # Shared memory, which is what Python makes, never comes later.
        self.memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for _ in range(0, size_bytes, FILL_BYTES):
            self.memory.write(os.urandom(FILL_BYTES))
        self.view = memoryview(self.memory)
        # What the threads need is small and in one place: else Python itself would wait for it.
        self.order = array("I", range(size_bytes // mmap.PAGESIZE))
        random.shuffle(self.order)
        self.marks = b"".join(self._mark(page) for page in self.order)
        self.home = os.uname().nodename
        self.read, self.damaged, self.took_ms = [0] * threads, [0] * threads, [0.0] * threads
        for number in range(threads):
            threading.Thread(target=self._rage, args=(number,), daemon=True).start()

    def status(self) -> dict[str, object]:
        """Return what the threads have done so far."""
        return {
            "memory_pages": len(self.order),
            "pages": sum(self.read),
            "damaged": sum(self.damaged),
            "storm_ms": max(self.took_ms, default=0.0),
        }

    def _rage(self, number: int) -> None:
        while os.uname().nodename == self.home:
            time.sleep(LOOK_S)
        begun = time.time()
        # Not before: the file would be one more thing to migrate.
        file = os.memfd_create("storm")
        stride = PAGES_A_CALL * len(self.read)
        for first in range(number * PAGES_A_CALL, len(self.order), stride):
            self._read(number, file, slice(first, first + PAGES_A_CALL))
        self.took_ms[number] = round((time.time() - begun) * 1000, 3)
        os.close(file)

    def _read(self, number: int, file: int, part: slice) -> None:
        size = os.pwritev(file, [self._mark(page) for page in self.order[part]], 0)
        expected = self.marks[part.start * MARK_BYTES : part.stop * MARK_BYTES]
        self.damaged[number] += os.pread(file, size, 0) != expected
        self.read[number] += size // MARK_BYTES

    def _mark(self, page: int) -> memoryview:
        at = page * mmap.PAGESIZE
        return self.view[at : at + MARK_BYTES]


def main() -> None:
    """Fill the memory, then beat until killed."""
    parser = arguments(__doc__)
    parser.add_argument("--mb", type=int, default=64, help="how much memory to fill")
    parser.add_argument("--threads", type=int, default=4, help="how many read it; 0 for a calm")
    options = parser.parse_args()
    storm = Storm(options.mb * 2**20, options.threads)
    beat = Beat(options)
    while True:
        beat(storm.status())


if __name__ == "__main__":
    main()
