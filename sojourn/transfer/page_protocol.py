"""What crosses between the pager and the sender: questions for pages, and the pages.

The pager asks and the sender answers, in the order of the questions; several may be on their way.
Numbers are in network byte order.

========  ==========================================================================================
question  PID in its own namespace (4 bytes), number of pages (4), address (8)
answer    the same three; 0 pages mean that the original is gone. Then a map with one bit per page,
          the lowest first: 1 where the page follows, 0 where it is zero. Then the pages.
========  ==========================================================================================

Each question stands for itself. So nothing has to be agreed on again after a connection has broken:
the pager connects, and asks for what it still misses.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sojourn.criu.pagemap import PAGE
from sojourn.errors import ChannelFailed

HEAD = struct.Struct("!IIQ")

#: How many bytes may be asked for at once.
MOST = 2**20

#: The shares of the two connections in a limit of the bandwidth: neither may wait for the other.
SHARES = {"rest": 0.8, "urgent": 0.2}


@dataclass(frozen=True)
class Question:
    """Pages side by side in the memory of one process, by their address and length in bytes."""

    pid: int
    address: int
    length: int

    def to_bytes(self) -> bytes:
        """Return the question as it is sent, which is also how its answer begins."""
        return HEAD.pack(self.pid, self.length // PAGE, self.address)

    @classmethod
    def parse(cls, raw: bytes) -> Question:
        """Read a question. Raises ChannelFailed for one that no pager asks."""
        pid, pages, address = HEAD.unpack(raw)
        if not 0 < pages * PAGE <= MOST or address % PAGE:
            raise ChannelFailed("The other host asked for pages in a malformed way.")
        return cls(pid, address, pages * PAGE)

    @property
    def map_bytes(self) -> int:
        """How long the map of the answer is."""
        return -(-self.length // PAGE // 8)


def gone(question: Question) -> bytes:
    """Return the answer that the original is gone."""
    return HEAD.pack(question.pid, 0, question.address)


def map_of(pages: list[bool]) -> bytes:
    """Return the map of an answer; ``pages`` tells which of them follow."""
    number = sum(1 << index for index, follows in enumerate(pages) if follows)
    return number.to_bytes(-(-len(pages) // 8), "little")


def follow(raw: bytes, pages: int) -> list[bool]:
    """Read a map: return which of the pages follow."""
    number = int.from_bytes(raw, "little")
    return [bool(number >> index & 1) for index in range(pages)]


def runs(pages: list[bool]) -> Iterator[tuple[bool, int, int]]:
    """Yield runs of pages that follow, or do not: which of the two, begin and end in bytes."""
    begin = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or pages[index] is not pages[begin]:
            yield pages[begin], begin * PAGE, index * PAGE
            begin = index
