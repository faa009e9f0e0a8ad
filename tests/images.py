"""Images as CRIU writes them, for tests that read them (https://criu.org/Images)."""

from __future__ import annotations

import struct

#: The first is common to all images, the second one is of each kind; neither is read by Sojourn.
MAGICS = (0x54564319, 0x50273030)


def varint(number: int) -> bytes:
    """Write a number of the wire format."""
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def message(*values: tuple[int, int | bytes]) -> bytes:
    """Write a protobuf message of fields and their values."""
    parts = []
    for number, value in values:
        if isinstance(value, bytes):
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
        else:
            parts.append(varint(number << 3) + varint(value))
    return b"".join(parts)


def image(*messages: bytes) -> bytes:
    """Write an image of some entries."""
    body = b"".join(struct.pack("<I", len(one)) + one for one in messages)
    return struct.pack("<II", *MAGICS) + body
