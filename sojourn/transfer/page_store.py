"""The page store: the memory that has arrived, as CRIU's image with the pages, in the tmpfs."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

#: ``MADV_POPULATE_READ`` of madvise(2), since Linux 5.14: map the pages now, all at once.
POPULATE_READ = 22


class PageStore:
    """One image with pages, mapped into this process. It gives its memory back page by page.

    A hole is a page that was given back, so it is in place where it belongs: by the holes a
    successor knows what a dead pager has done.
    """

    def __init__(self, path: Path) -> None:
        """Map the image."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        # An empty image cannot be mapped, and nothing will be read from it.
        size = max(os.fstat(self._descriptor).st_size, mmap.PAGESIZE)
        self._memory = mmap.mmap(self._descriptor, size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def address(self, offset: int, length: int) -> int:
        """Return where in this process a part of the image is mapped."""
        with contextlib.suppress(OSError):  # an older kernel maps the pages one by one
            self._memory.madvise(POPULATE_READ, offset, length)
        return self._address + offset

    def held(self, offset: int, length: int) -> tuple[int, int]:
        """Return how many bytes from here on were given back, and how many behind those are there.

        Both are cut at ``length``.
        """
        try:
            data = os.lseek(self._descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: there is nothing up to the end
            return length, 0
        gone = min(data - offset, length)
        if gone == length:
            return length, 0
        hole = os.lseek(self._descriptor, data, os.SEEK_HOLE)
        return gone, min(hole - offset, length) - gone

    def give_back(self, offset: int, length: int) -> None:
        """Free the memory of a part of the image: it is in place."""
        self._memory.madvise(mmap.MADV_REMOVE, offset, length)
