"""The parent-death signal of a tree's root, in images."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.criu import parent_death
from sojourn.errors import CriuFailed
from tests.images import image, message

ROOT, THREAD, CHILD = 10, 11, 12


def _core(path: Path, thread: int, signal: int | None) -> Path:
    """Write the core image of a thread: the signal, and fields before and behind it."""
    setting = [] if signal is None else [(8, signal)]
    thread_core = message((1, 2**40), *setting, (13, b"name"))
    core = path / f"core-{thread}.img"
    core.write_bytes(image(message((1, 1), (5, thread_core), (3, b"tc"))))
    return core


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write the images of a root with two threads and one child."""
    root = message((1, ROOT), (2, 0), (3, ROOT), (4, ROOT), (5, ROOT), (5, THREAD))
    child = message((1, CHILD), (2, ROOT), (3, ROOT), (4, ROOT), (5, CHILD))
    (tmp_path / "pstree.img").write_bytes(image(root, child))
    for thread in (ROOT, THREAD, CHILD):
        _core(tmp_path, thread, None)
    return tmp_path


def test_none(images: Path) -> None:
    """Images without one stay as they are."""
    before = {file.name: file.read_bytes() for file in images.iterdir()}
    assert parent_death.turn_off(images) == 0
    assert {file.name: file.read_bytes() for file in images.iterdir()} == before


def test_the_root_and_its_threads(images: Path) -> None:
    """The kernel looks at each thread of the process, and so is each of them changed."""
    cores = [_core(images, ROOT, None), _core(images, THREAD, 15)]
    sizes = [core.stat().st_size for core in cores]
    assert parent_death.turn_off(images) == 15
    assert cores[1].read_bytes() == _core(images, THREAD, 0).read_bytes()
    assert [core.stat().st_size for core in cores] == sizes


def test_twice(images: Path) -> None:
    """A second restore from the same images finds none."""
    _core(images, ROOT, 9)
    assert [parent_death.turn_off(images), parent_death.turn_off(images)] == [9, 0]


def test_children_keep_theirs(images: Path) -> None:
    """Their parents come along."""
    child = _core(images, CHILD, 9)
    before = child.read_bytes()
    assert parent_death.turn_off(images) == 0
    assert child.read_bytes() == before


def test_a_signal_that_is_none(images: Path) -> None:
    """What does not fit into one byte is no signal, and nothing is overwritten."""
    core = _core(images, ROOT, 300)
    before = core.read_bytes()
    with pytest.raises(CriuFailed, match="parent-death signal"):
        parent_death.turn_off(images)
    assert core.read_bytes() == before


def test_packed_threads(images: Path) -> None:
    """A form that CRIU does not write is an error, not an empty list."""
    (images / "pstree.img").write_bytes(image(message((1, ROOT), (5, b"\x0a"))))
    with pytest.raises(CriuFailed, match="thread ids"):
        parent_death.turn_off(images)
