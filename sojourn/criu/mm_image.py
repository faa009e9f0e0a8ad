"""What the mappings of a process are, as a dump has them: ``mm-PID.img``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sojourn.criu.protobuf import entries, fields

#: Where arguments and environment begin and end, in images/mm.proto.
ARGUMENTS, ENVIRONMENT = (8, 9), (10, 11)

#: ``vmas`` of images/mm.proto; begin, end and the bits of madvise(2) of images/vma.proto.
MAPPINGS = 14
BEGIN, END, ADVICE = 1, 2, 9

#: ``MADV_WIPEONFORK`` and ``MADV_DONTFORK`` of madvise(2): a child finds zeros there, or nothing.
NOT_INHERITED = 1 << 18 | 1 << 10


def wiped_on_fork(images: Path, pid: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each mapping that a child does not inherit the content of.

    ``pid`` is that of the process in its own PID namespace. Raises CriuFailed for a malformed one.
    """
    image = (images / f"mm-{pid}.img").read_bytes()
    for begin, end in entries(image):
        for field in fields(image, begin, end):
            if field.number == MAPPINGS:
                yield from _wiped(image, field.begin, field.end)


def titles(images: Path, pid: int) -> list[tuple[int, int]]:
    """Return where the arguments of a process and its environment begin and end.

    ``pid`` is that of the process in its own PID namespace. Raises CriuFailed for a malformed one.
    """
    image = (images / f"mm-{pid}.img").read_bytes()
    found: dict[int, int] = {}
    for begin, end in entries(image):
        for field in fields(image, begin, end):
            if isinstance(field.value, int):
                found[field.number] = field.value
    return [(found.get(first, 0), found.get(last, 0)) for first, last in (ARGUMENTS, ENVIRONMENT)]


def _wiped(image: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    found = {field.number: field.value for field in fields(image, begin, end)}
    first, last, advice = found.get(BEGIN), found.get(END), found.get(ADVICE, 0)
    if isinstance(first, int) and isinstance(last, int) and isinstance(advice, int):
        yield from [(first, last)] if advice & NOT_INHERITED else []
