"""What is read of sockets in CRIU's images, and what is changed there."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from sojourn.criu import files_image, locks_image
from sojourn.errors import CriuFailed
from tests.images import image, message

REGULAR, INET, UNIX = 1, 4, 5


def _unix(name: bytes, *more: tuple[int, int | bytes]) -> bytes:
    return message((1, UNIX), (2, 7), (16, message((1, 7), (2, 99), (11, name), *more)))


def _write(images: Path, *entries: bytes) -> None:
    (images / "files.img").write_bytes(image(*entries))


def test_paths_of_unix_sockets(tmp_path: Path) -> None:
    """Absolute ones, relative ones, and those that have lost their file; no abstract names."""
    _write(
        tmp_path,
        message((1, REGULAR), (2, 1), (3, b"")),
        _unix(b"/run/a\0"),
        _unix(b"b", (14, b"/srv")),
        _unix(b"/run/lost", (15, 1)),
        _unix(b"/run/a", (15, 1)),
        _unix(b"\0abstract"),
        _unix(b""),
        _unix(b"/run/\xff"),
    )
    assert files_image.unix_paths(tmp_path) == {
        "/run/a": True,
        "/srv/b": True,
        "/run/lost": False,
        "/run/\udcff": True,
    }


def test_another_name(tmp_path: Path) -> None:
    """Only the sockets of that path are changed, and nothing else of the image."""
    other = _unix(b"/run/other", (15, 1))
    _write(tmp_path, _unix(b"/run/a", (15, 1), (16, 3)), other)
    files_image.rename(tmp_path, "/run/a", "/run/b")
    assert files_image.unix_paths(tmp_path) == {"/run/b": True, "/run/other": False}
    expected = image(_unix(b"/run/b\0", (15, 0), (16, 3)), other)
    assert (tmp_path / "files.img").read_bytes() == expected


def test_addresses_that_are_reused(tmp_path: Path) -> None:
    """By the inodes of the sockets."""
    entries = [
        message((1, INET), (2, 1), (4, message((2, inode), (14, options))))
        for inode, options in ((11, message((1, 5), (7, 1))), (12, message((1, 5))))
    ]
    _write(tmp_path, *entries)
    assert files_image.reused_addresses(tmp_path) == {11: True, 12: False}


def test_images_that_are_missing_or_malformed(tmp_path: Path) -> None:
    """A dump that never ran has no sockets; an image that cannot be read is an error."""
    assert files_image.unix_paths(tmp_path) == {}
    assert locks_image.leases(tmp_path) == set()
    _write(tmp_path, message((1, UNIX), (2, 7), (3, b"/")))
    with pytest.raises(CriuFailed):
        files_image.unix_paths(tmp_path)


def test_leases_for_writing(tmp_path: Path) -> None:
    """Locks, and leases for reading, are not among them."""
    locks = [
        message((1, kind), (2, mode), (3, pid), (4, 3))
        for kind, mode, pid in (
            (1, fcntl.F_WRLCK, 10),
            (8, fcntl.F_RDLCK, 11),
            (8, fcntl.F_WRLCK, 12),
        )
    ]
    (tmp_path / "filelocks.img").write_bytes(image(*locks))
    assert locks_image.leases(tmp_path) == {(12, 3)}
