"""The mappings of a process, from an image as CRIU writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.criu import mm_image
from sojourn.errors import CriuFailed
from tests.images import image, message

WIPED, ABSENT, OTHER = 1 << 18, 1 << 10, 1 << 14


def mapping(begin: int, end: int, advice: int | None) -> tuple[int, bytes]:
    """Return a mapping as a field; one that was never advised has no such field."""
    fields = [(1, begin), (2, end), (3, 0), (7, 0x201)]
    return 14, message(*fields, *([(9, advice)] if advice is not None else []))


def test_what_children_find_zero(tmp_path: Path) -> None:
    """Only mappings with that advice, whatever else they were advised."""
    mappings = (
        *(mapping(0x1000, 0x3000, None), mapping(0x5000, 0x6000, WIPED)),
        *(mapping(0x7000, 0x8000, OTHER), mapping(0x9000, 0xA000, WIPED | OTHER)),
        mapping(0xB000, 0xC000, ABSENT),
    )
    (tmp_path / "mm-42.img").write_bytes(image(message((1, 0x400000), (13, 6), *mappings)))
    found = list(mm_image.wiped_on_fork(tmp_path, 42))
    assert found == [(0x5000, 0x6000), (0x9000, 0xA000), (0xB000, 0xC000)]


def test_arguments_and_environment(tmp_path: Path) -> None:
    """Where the process has them."""
    places = ((8, 0x7F10), (9, 0x7F20), (10, 0x7F20), (11, 0x7FF0))
    (tmp_path / "mm-42.img").write_bytes(image(message((1, 0x400000), *places)))
    assert mm_image.titles(tmp_path, 42) == [(0x7F10, 0x7F20), (0x7F20, 0x7FF0)]


def test_a_malformed_image(tmp_path: Path) -> None:
    """Nothing is guessed from it."""
    whole = image(message(mapping(0x5000, 0x6000, WIPED)))
    (tmp_path / "mm-42.img").write_bytes(whole[:-3])
    with pytest.raises(CriuFailed):
        list(mm_image.wiped_on_fork(tmp_path, 42))
