"""What CRIU dumped of sockets, as it stands in ``files.img`` (https://criu.org/Images).

A tree may have ten thousand files, and is frozen while this is read: entries of other kinds are
passed over by their first bytes, and Unix sockets without a path by their lack of a slash.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from sojourn.criu.protobuf import Field, encoded, entries, fields, replaced
from sojourn.errors import CriuFailed

#: ``file_entry`` of images/fdinfo.proto: its first field is its kind, and further ones hold what
#: there is of each kind.
KIND, INET, UNIX = 1, 4, 16
INET_KIND, UNIX_KIND = encoded(KIND, 4), encoded(KIND, 5)

#: ``unix_sk_entry`` of images/sk-unix.proto.
NAME, DIRECTORY, DELETED = 11, 14, 15

#: ``inet_sk_entry`` of images/sk-inet.proto, and ``sk_opts_entry`` within it.
INODE, OPTIONS, REUSE_ADDRESS = 2, 14, 7

#: What stands before each entry.
SIZE = struct.Struct("<I")

#: The fields of a message by their numbers.
Message = dict[int, Field]


def unix_paths(images: Path) -> dict[str, bool]:
    """Return the paths to which Unix sockets are bound, and whether each is still the socket's own.

    Raises CriuFailed for a malformed image.
    """
    found: dict[str, bool] = {}
    for entry in _entries(_read(images), UNIX_KIND, UNIX, b"/"):
        path = _path(entry)
        if path:
            found[path] = found.get(path, False) or not _number(entry, DELETED)
    return found


def rename(images: Path, path: str, now: str) -> None:
    """Have the restore bind the sockets of one path to another path, for good.

    Raises CriuFailed for a malformed image. Whoever dies in here leaves images of a tree that is
    resumed.
    """
    image = _read(images)
    parts, at = [], 0
    for begin, end in entries(image):
        if image.startswith(UNIX_KIND, begin):
            entry = _renamed(image[begin:end], path, now)
            parts += [image[at : begin - SIZE.size], SIZE.pack(len(entry)), entry]
            at = end
    (images / "files.img").write_bytes(b"".join([*parts, image[at:]]))


def _renamed(entry: bytes, path: str, now: str) -> bytes:
    """Return an entry of a Unix socket, with another path if it has that one."""
    found = {field.number: field for field in fields(entry, 0, len(entry))}
    socket = _message(entry, found[UNIX])
    if _path(socket) != path:
        return entry
    content = entry[found[UNIX].begin : found[UNIX].end]
    content = replaced(content, NAME, os.fsencode(now) + b"\0")
    if DELETED in socket:
        content = replaced(content, DELETED, 0)
    return replaced(entry, UNIX, content)


def reused_addresses(images: Path) -> dict[int, bool]:
    """Return the inodes of TCP and UDP sockets, and whether each has SO_REUSEADDR set.

    Raises CriuFailed for a malformed image.
    """
    image = _read(images)
    found = {}
    for entry in _entries(image, INET_KIND, INET):
        if OPTIONS in entry:
            options = _message(image, entry[OPTIONS])
            found[_number(entry, INODE)] = bool(_number(options, REUSE_ADDRESS))
    return found


def _read(images: Path) -> bytes:
    try:
        return (images / "files.img").read_bytes()
    except FileNotFoundError:  # before a dump, or when its images are given back
        return b""


def _entries(image: bytes, kind: bytes, number: int, containing: bytes = b"") -> Iterator[Message]:
    """Yield what there is of one kind; not of entries that do not contain some bytes."""
    for begin, end in entries(image) if kind in image else ():
        if image.startswith(kind, begin) and image.find(containing, begin, end) >= 0:
            found = {field.number: field for field in fields(image, begin, end)}
            if number not in found:
                raise CriuFailed("CRIU wrote a socket of files.img in an unknown way.")
            yield _message(image, found[number])


def _message(image: bytes, within: Field) -> Message:
    return {field.number: field for field in fields(image, within.begin, within.end)}


def _path(socket: Message) -> str:
    """Return the path of a Unix socket; empty if it has none, or an abstract name."""
    # The name is as the program has given it, perhaps with zeros at its end.
    name = _text(socket, NAME)
    if not name or name.startswith("\0"):
        return ""
    path = name if name.startswith("/") else f"{_text(socket, DIRECTORY)}/{name}"
    return path.partition("\0")[0]


def _text(message: Message, number: int) -> str:
    value = message[number].value if number in message else b""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else ""


def _number(message: Message, number: int) -> int:
    value = message[number].value if number in message else 0
    return value if isinstance(value, int) else 0
