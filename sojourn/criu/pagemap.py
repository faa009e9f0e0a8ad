"""Which memory of a process a dump holds, and where: ``pagemap-PID.img`` and ``pages-N.img``.

The map has an entry for each run of pages, in the order of their addresses; the pages themselves
stand in that order in the other image, without anything between them
(https://criu.org/Memory_dumps, images/pagemap.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.criu.protobuf import entries, fields
from sojourn.errors import CriuFailed

PAGE = 4096

#: Fields of ``pagemap_head`` and ``pagemap_entry``. Before CRIU 4.2 the number of pages was the
#: second field, of 32 bits.
PAGES_ID = 1
ADDRESS, OLD_COUNT, FLAGS, COUNT = 1, 2, 4, 5

#: Flags of an entry: the pages may be put into place after the process runs; they are in the image.
LAZY, PRESENT = 2, 4


@dataclass(frozen=True)
class Run:
    """Pages side by side: their address, how many bytes they are, and where they come from.

    ``offset`` is their place in the image with the pages, or their address in the original.
    """

    address: int
    length: int
    offset: int


def pages_image(images: Path, pid: int) -> Path:
    """Return the image with the pages of a process. Raises CriuFailed for a malformed map."""
    image = _map(images, pid).read_bytes()
    begin, end = next(iter(entries(image)), (0, 0))
    for field in fields(image, begin, end):
        if field.number == PAGES_ID and isinstance(field.value, int):
            return images / f"pages-{field.value}.img"
    raise CriuFailed(f"{_map(images, pid).name} does not name the image with the pages.")


def lazy_runs(images: Path, pid: int) -> list[Run]:
    """Return what ``criu restore --lazy-pages`` leaves out, by ascending address.

    ``pid`` is that of the process in its own PID namespace. Raises CriuFailed for a malformed map,
    or if the image with the pages is not as long as the map says.
    """
    runs, offset = [], 0
    for address, length, flags in _entries(images, pid):
        if not flags & PRESENT:
            continue
        if flags & LAZY:
            runs.append(Run(address, length, offset))
        offset += length
    if pages_image(images, pid).stat().st_size < offset:
        raise CriuFailed(f"The pages of process {pid} are not all here.")
    return runs


def absent_runs(images: Path, pid: int) -> list[Run]:
    """Return what ``criu dump --lazy-pages`` has left in the original, by ascending address.

    The offset is the address in the original. Raises CriuFailed for a malformed map, and where a
    page that the restore leaves out is in the image all the same.
    """
    runs = []
    for address, length, flags in _entries(images, pid):
        if flags & LAZY and flags & PRESENT:
            raise CriuFailed("CRIU dumped pages that were to stay in the original.")
        if flags & LAZY:
            runs.append(Run(address, length, address))
    return runs


def _map(images: Path, pid: int) -> Path:
    return images / f"pagemap-{pid}.img"


def _entries(images: Path, pid: int) -> Iterator[tuple[int, int, int]]:
    """Yield what ``_entry`` reads of each entry of a map."""
    image = _map(images, pid).read_bytes()
    for begin, end in list(entries(image))[1:]:
        yield _entry(image, begin, end)


def _entry(image: bytes, begin: int, end: int) -> tuple[int, int, int]:
    """Return the address, the length in bytes and the flags of an entry."""
    found = {field.number: field.value for field in fields(image, begin, end)}
    address, flags = found.get(ADDRESS), found.get(FLAGS, 0)
    count = found.get(COUNT, found.get(OLD_COUNT))
    if not (isinstance(address, int) and isinstance(count, int) and isinstance(flags, int)):
        raise CriuFailed("CRIU wrote an entry of a page map in an unknown way.")
    return address, count * PAGE, flags
