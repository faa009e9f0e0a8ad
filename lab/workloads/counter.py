"""Counts, and checks its memory all the time: proves that nothing is lost, doubled or damaged.

It holds ``--mb`` of random bytes. At each beat it adds one to its counter and hashes one slice of
the memory, so that after a number of beats all of it was hashed. It writes what it found to
``--out``, with the longest gap between two beats: the pause of a migration as the process feels it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

# A host's own Python runs this file by its name, without the checkout on its path.
sys.path.insert(0, str(Path(__file__).parents[2]))

from lab.workloads.beating import Beat, arguments

SLICE_BYTES = 256 * 1024


class Memory:
    """Random bytes with the hash that each slice had at the start."""

    def __init__(self, size_bytes: int) -> None:
        slices = max(1, size_bytes // SLICE_BYTES)
        self.content = [bytearray(os.urandom(SLICE_BYTES)) for _ in range(slices)]
        self.hashes = [_hash(content) for content in self.content]
        self.sha256 = hashlib.sha256("".join(self.hashes).encode()).hexdigest()
        self.checked = 0
        self.damaged = 0

    def check_next(self) -> None:
        """Hash one slice and compare it with what it was."""
        index = self.checked % len(self.content)
        self.damaged += _hash(self.content[index]) != self.hashes[index]
        self.checked += 1

    def status(self) -> dict[str, object]:
        """Return what the checks have found so far."""
        return {
            "sha256": self.sha256,
            "memory_bytes": len(self.content) * SLICE_BYTES,
            "passes": self.checked // len(self.content),
            "damaged_slices": self.damaged,
        }


def _hash(content: bytearray) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Fill the memory, then beat until killed."""
    parser = arguments(__doc__)
    parser.add_argument("--mb", type=int, default=64, help="how much memory to fill")
    options = parser.parse_args()
    memory = Memory(options.mb * 2**20)
    beat = Beat(options)
    while True:
        memory.check_next()
        beat(memory.status())


if __name__ == "__main__":
    main()
