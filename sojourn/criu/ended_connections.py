"""Connections that have ended, in CRIU's images: made plain sockets where their address is missing.

CRIU restores a socket whose connection has ended, and that its program has not closed yet, as a
connection that it then resets, and for that needs its address, which may belong to the source. A
plain socket, shut down for reading, answers the same to all that such a program does with it, but
for what it has not read yet; where there is something unread the image is left as it is.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.criu.files_image import INET, INET_KIND
from sojourn.criu.protobuf import Field, encoded, entries, fields

#: ``inet_sk_entry`` of images/sk-inet.proto, and the values that are looked for.
INODE, FAMILY, PROTOCOL, STATE, PORT, PEER_PORT, ADDRESS = 2, 3, 5, 6, 7, 8, 11
TCP, CLOSED = 6, 7
IN_STATE_CLOSED = encoded(STATE, CLOSED)

#: ``tcp_stream_entry.inq_len`` of images/tcp-stream.proto: how many bytes were not read.
UNREAD = 1


@dataclass(frozen=True)
class Ended:
    """A connection that has ended: its own address, and where the image has its ports."""

    inode: int
    address: str
    ports: tuple[Field, ...]


def make_plain(images: Path, is_here: Callable[[str], bool]) -> int:
    """Have those become plain sockets whose address is not here; return how many.

    The images keep their sizes, by which they are compared with what the source sent. Safe to
    repeat. Raises CriuFailed if they are malformed.
    """
    wanted = [one for one in _ended(images) if not is_here(one.address)]
    plain = [one for one in wanted if not _unread(images, one.inode)]
    for one in plain:
        for port in one.ports:
            _overwrite(images / "files.img", port)
    return len(plain)


def _ended(images: Path) -> Iterator[Ended]:
    image = (images / "files.img").read_bytes()
    for begin, end in entries(image) if IN_STATE_CLOSED in image else ():
        if image.startswith(INET_KIND, begin) and image.find(IN_STATE_CLOSED, begin, end) >= 0:
            for outer in fields(image, begin, end):
                if outer.number == INET:
                    yield from _of(list(fields(image, outer.begin, outer.end)))


def _of(entry: list[Field]) -> Iterator[Ended]:
    found = {field.number: field for field in entry}
    values = {number: field.value for number, field in found.items()}
    if (values.get(PROTOCOL), values.get(STATE)) == (TCP, CLOSED) and values.get(PEER_PORT):
        words = [field.value for field in entry if field.number == ADDRESS]
        raw = b"".join(struct.pack("=I", word) for word in words if isinstance(word, int))
        family = socket.AF_INET if values.get(FAMILY) == socket.AF_INET else socket.AF_INET6
        address = socket.inet_ntop(family, raw[: 4 if family == socket.AF_INET else 16])
        yield Ended(int(values.get(INODE, 0)), address, (found[PORT], found[PEER_PORT]))


def _unread(images: Path, inode: int) -> bool:
    try:
        image = (images / f"tcp-stream-{inode:x}.img").read_bytes()
    except FileNotFoundError:
        return False
    begin, end = next(entries(image), (0, 0))
    return any(field.number == UNREAD and field.value for field in fields(image, begin, end))


def _overwrite(file: Path, field: Field) -> None:
    """Write 0 in the place of a number, with as many bytes."""
    zero = b"\x80" * (field.end - field.begin - 1) + b"\0"
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, zero, field.begin)
    finally:
        os.close(descriptor)
