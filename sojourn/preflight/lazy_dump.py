"""What a dump in post-copy takes on the source: descriptors for pipes, and room for images.

CRIU puts all memory of a process into pipes, by reference, although nothing is read from them
(``page_pipe`` in its page-pipe.c): two descriptors for each pipe, which holds up to 4 MB. A root
without CAP_SYS_RESOURCE, as containers have it, gets pipes of ``fs.pipe-max-size`` at most
(pipe(7)), 1 MB by default, and no more descriptors than the worker's hard limit (setrlimit(2)).
What can never come later goes into the tmpfs, as no other mode has it on this host.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass

from sojourn import units
from sojourn.preflight import limits
from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import Tree
from sojourn.system import memory
from sojourn.transfer.image_directory import size_for

#: The largest pipe that CRIU makes.
PIPE_BYTES = 4 * 2**20

#: Pipes of each process beyond those that are full, and descriptors that CRIU has open anyway.
MORE_PIPES, OTHERS = 3, 256


@dataclass(frozen=True)
class Allowed:
    """What CRIU may have on this host."""

    open_files: int
    pipe_bytes: int


def allowed() -> Allowed:
    """Return what CRIU may have: with the capability it raises its own limit as far as it goes."""
    here = limits.here()
    if here.pipe_bytes == limits.NO_LIMIT:
        return Allowed(here.open_files, PIPE_BYTES)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The kernel gives pipes whose size is a power of two.
    return Allowed(most, min(PIPE_BYTES, 1 << (here.pipe_bytes.bit_length() - 1)))


def check(tree: Tree, images_bytes: int, here: Allowed) -> Iterator[Finding]:
    """Yield what a dump in post-copy lacks; ``images_bytes`` is what goes into the tmpfs."""
    needed = open_files(tree, here.pipe_bytes)
    if needed > here.open_files:
        yield blocks(
            "OPEN_FILES",
            f"CRIU holds the memory in pipes, for which it must have {needed} files open; it may "
            f"have {here.open_files}.",
            _way_out(needed, here),
        )
    size, free = size_for(images_bytes), memory.free_bytes()
    if size > free:
        yield blocks(
            "NO_ROOM",
            f"{units.size(free)} of memory are free; what can never come later needs "
            f"{units.size(size)} here.",
            "Free memory there, or choose the mode stop-and-copy.",
        )


def open_files(tree: Tree, pipe_bytes: int) -> int:
    """Return how many descriptors the dump takes."""
    own = (task.memory_bytes["RssAnon"] + task.memory_bytes["VmSwap"] for task in tree.tasks)
    return OTHERS + sum(2 * (size // pipe_bytes + MORE_PIPES) for size in own)


def _way_out(needed: int, here: Allowed) -> str:
    larger = (
        f", or larger pipes (`sysctl fs.pipe-max-size={PIPE_BYTES}`)"
        if here.pipe_bytes < PIPE_BYTES
        else ""
    )
    return (
        f"Give the worker there CAP_SYS_RESOURCE, or a hard limit of {needed} open files "
        f"(`LimitNOFILE=` in its unit){larger}; or choose the mode stop-and-copy."
    )
