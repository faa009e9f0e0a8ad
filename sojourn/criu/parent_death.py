"""The parent-death signal of a tree's root, which must not reach it on the destination.

A process can ask the kernel for a signal when its parent ends (PR_SET_PDEATHSIG, prctl(2)); no
file of ``/proc`` shows it, but the images do. CRIU restores it, and with ``--restore-detached`` it
is the root's parent and ends at once: the kernel would end the tree, while every exit code is 0.
The root's real parent stays on the source, so the setting has no meaning any more and is turned off
in the images, before the restore. That of the other processes stays: their parents come along.

If the worker dies in here, the images have the setting or have it not; the next attempt turns off
what is left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sojourn.criu.protobuf import Field, entries, fields
from sojourn.errors import CriuFailed

#: ``pstree_entry.threads`` of images/pstree.proto; the first entry is the root's.
THREADS = 5

#: ``core_entry.thread_core`` and ``thread_core_entry.pdeath_sig`` of images/core.proto.
THREAD_CORE, PDEATH_SIG = 5, 8


def turn_off(images: Path) -> int:
    """Turn the root's parent-death signal off, and return which one it was; 0 if it had none.

    The images keep their sizes, by which they are compared with what the source sent. Safe to
    repeat. Raises CriuFailed if they are malformed.
    """
    cores = (images / f"core-{thread}.img" for thread in _threads_of_root(images))
    found = [_turn_off(core) for core in cores]
    return max(found, default=0)


def _threads_of_root(images: Path) -> Iterator[int]:
    image = (images / "pstree.img").read_bytes()
    for begin, end in entries(image):
        for field in fields(image, begin, end):
            if field.number == THREADS:
                yield from _numbers(field)
        return


def _numbers(field: Field) -> Iterator[int]:
    """Yield the numbers of a repeated field, which may be packed into one."""
    if isinstance(field.value, int):
        yield field.value
        return
    raise CriuFailed("CRIU wrote the thread ids of pstree.img in an unknown way.")


def _turn_off(core: Path) -> int:
    """Write 0 in the place of the signal of one thread; a signal's number is one byte, as is 0."""
    image = core.read_bytes()
    signal = 0
    for field in _signals(image):
        if field.end - field.begin != 1 or not isinstance(field.value, int):
            raise CriuFailed(f"{core.name} has an unknown parent-death signal.")
        signal = field.value
        if signal:
            _overwrite(core, field.begin)
    return signal


def _signals(image: bytes) -> Iterator[Field]:
    for begin, end in entries(image):
        for outer in fields(image, begin, end):
            if outer.number == THREAD_CORE:
                inner = fields(image, outer.begin, outer.end)
                yield from (field for field in inner if field.number == PDEATH_SIG)


def _overwrite(core: Path, place: int) -> None:
    descriptor = os.open(core, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, b"\0", place)
    finally:
        os.close(descriptor)
