"""The wire format of CRIU's images: what is written is read, and what is malformed is an error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from sojourn.criu.protobuf import entries, fields
from sojourn.errors import CriuFailed
from tests.images import image, message

VALUES = some.tuples(some.integers(1, 2**20), some.integers(0, 2**64) | some.binary(max_size=300))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(VALUES))
def test_fields(values: list[tuple[int, int | bytes]]) -> None:
    """Numbers of any size and bytes of any kind are read as they were written, in their order."""
    text = message(*values)
    found = [*fields(text, 0, len(text))]
    assert [(field.number, field.value) for field in found] == values


def test_a_field_knows_its_place() -> None:
    """Where a value stands is where it can be overwritten."""
    text = message((1, 300), (2, b"abc"))
    number, word = fields(text, 0, len(text))
    assert text[number.begin : number.end] == b"\xac\x02"
    assert text[word.begin : word.end] == b"abc"


def test_fixed_sizes() -> None:
    """Values of four and eight bytes are skipped as a whole."""
    text = b"\x09" + struct.pack("<d", 1.5) + b"\x15" + struct.pack("<f", 0.5) + message((3, 7))
    assert [field.number for field in fields(text, 0, len(text))] == [1, 2, 3]


@pytest.mark.parametrize("text", [b"\x08\xff", b"\x12\x05ab", b"\x09abc", b"\x08"])
def test_a_message_cut_short(text: bytes) -> None:
    """A value without an end is an error, not a small value."""
    with pytest.raises(CriuFailed, match="cut short"):
        list(fields(text, 0, len(text)))


def test_an_unknown_wire_type() -> None:
    """Groups, which CRIU does not use, are an error."""
    with pytest.raises(CriuFailed, match="wire type 3"):
        list(fields(b"\x0b", 0, 1))


def test_entries() -> None:
    """Each entry is found behind its size; an image without one has none."""
    text = image(b"one", b"", b"three")
    assert [text[begin:end] for begin, end in entries(text)] == [b"one", b"", b"three"]
    assert list(entries(image())) == []


@pytest.mark.parametrize("rest", [b"\x01", b"\x05\0\0\0ab"])
def test_an_image_cut_short(rest: bytes) -> None:
    """Half a size, or less than it says, is an error."""
    with pytest.raises(CriuFailed, match="cut short"):
        list(entries(image(b"one") + rest))
