"""Small files of JSON: whole or not there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sojourn.system import json_file, waits


def test_there_and_back(tmp_path: Path) -> None:
    """A file has what was written last."""
    file = tmp_path / "file.json"
    assert json_file.read(file) is None
    for content in ({"a": [1]}, {"b": None}):
        json_file.write(file, content)
        assert json_file.read(file) == content
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_file_system(tmp_path: Path) -> None:
    """What was there before stays as it was, and nothing else is left."""
    file = tmp_path / "file.json"
    json_file.write(file, [1])
    (tmp_path / "file.json.draft").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        json_file.write(file, [2])
    assert caught.value.errno == errno.ENOSPC
    assert json_file.read(file) == [1]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff"], ids=["empty", "cut short", "not text"])
def test_a_malformed_file(tmp_path: Path, raw: bytes) -> None:
    """It counts as none: a tree that is to be woken must not wait for it."""
    file = tmp_path / "waits.json"
    file.write_bytes(raw)
    assert json_file.read(file) is None
    assert waits.load(file) == {}
