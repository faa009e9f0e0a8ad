"""CRIU's images: protocol buffers behind magic numbers (https://criu.org/Images).

An image is two magic numbers and then entries, each a size of four bytes and a message of that
size. Only the wire format is known here (https://protobuf.dev/programming-guides/encoding/), not
the meaning of a field: callers name fields by the numbers of CRIU's ``images/*.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from sojourn.errors import CriuFailed

#: Two magic numbers of four bytes each stand before the first entry.
HEADER_BYTES = 8

#: Wire types: a varint, eight bytes, a length and so many bytes, four bytes.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True)
class Field:
    """One field: its number, its value, and where in the image the value begins and ends."""

    number: int
    value: int | bytes
    begin: int
    end: int


def entries(image: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each entry of an image begins and ends. Raises CriuFailed for one cut short."""
    at = HEADER_BYTES
    while at < len(image):
        if at + 4 > len(image):
            raise _cut_short()
        (size,) = struct.unpack_from("<I", image, at)
        begin, at = at + 4, at + 4 + size
        if at > len(image):
            raise _cut_short()
        yield begin, at


def fields(image: bytes, begin: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between two places. Raises CriuFailed for a malformed one."""
    at = begin
    while at < end:
        key, at = _varint(image, at, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, after = _varint(image, at, end)
            yield Field(number, value, at, after)
        elif wire == BYTES:
            length, at = _varint(image, at, end)
            after = _within(at + length, end)
            yield Field(number, image[at:after], at, after)
        elif wire in FIXED_BYTES:
            after = _within(at + FIXED_BYTES[wire], end)
            yield Field(number, image[at:after], at, after)
        else:
            raise CriuFailed(f"An image of CRIU has a field of the unknown wire type {wire}.")
        at = after


def replaced(message: bytes, number: int, value: int | bytes) -> bytes:
    """Return a message in which the first field of a number has another value.

    Raises CriuFailed if there is none.
    """
    at = 0
    for field in fields(message, 0, len(message)):
        if field.number == number:
            return message[:at] + encoded(number, value) + message[field.end :]
        at = field.end
    raise CriuFailed(f"An image of CRIU has no field {number} where one belongs.")


def encoded(number: int, value: int | bytes) -> bytes:
    """Return a field as it stands in a message."""
    if isinstance(value, int):
        return _encoded_varint(number << 3 | VARINT) + _encoded_varint(value)
    return _encoded_varint(number << 3 | BYTES) + _encoded_varint(len(value)) + value


def _encoded_varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _varint(image: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a varint and the place behind it."""
    number = shift = 0
    for place in range(at, end):
        number |= (image[place] & 0x7F) << shift
        if image[place] < 0x80:
            return number, place + 1
        shift += 7
    raise _cut_short()


def _within(place: int, end: int) -> int:
    if place > end:
        raise _cut_short()
    return place


def _cut_short() -> CriuFailed:
    return CriuFailed("An image of CRIU is cut short.")
