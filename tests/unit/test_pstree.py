"""Shapes of trees: which of them CRIU cannot rebuild, and how they are read from its images."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.criu import pstree
from sojourn.criu.pstree import Entry
from sojourn.errors import CriuFailed
from tests.images import image, message

#: By name: the tree as PID, parent, group and session, and the PIDs that would be torn off. All of
#: them were moved by CRIU 4.2 to see.
SHAPES = {
    "alone": ([(10, 1, 10, 10)], []),
    "children of a leader": ([(10, 1, 10, 10), (11, 10, 10, 10), (12, 11, 11, 10)], []),
    "an adopted child of its session": ([(10, 1, 10, 10), (12, 10, 10, 10)], []),
    "an adopted leader": ([(10, 1, 10, 10), (12, 10, 12, 12)], []),
    "an adopted daemon": ([(10, 1, 10, 10), (12, 10, 11, 11)], [12]),
    "two of them": ([(10, 1, 10, 10), (12, 10, 11, 11), (14, 10, 13, 13)], [12, 14]),
    "its leader lives": ([(10, 1, 10, 10), (11, 10, 11, 11), (13, 10, 11, 11)], [13]),
    "adopted further down": ([(10, 1, 10, 10), (11, 10, 10, 10), (13, 11, 12, 12)], [13]),
    "leader further down": (
        [(10, 1, 10, 10), (11, 10, 10, 10), (12, 11, 12, 12), (14, 11, 12, 12)],
        [14],
    ),
    "born before setsid": ([(10, 1, 10, 10), (11, 10, 11, 11), (12, 11, 10, 10)], []),
    "born before and after": (
        [(10, 1, 10, 10), (11, 10, 11, 11), (12, 11, 10, 10), (13, 11, 11, 11)],
        [],
    ),
    "born into another leader's": (
        [(10, 1, 10, 10), (11, 10, 11, 11), (12, 11, 12, 12), (13, 12, 11, 11)],
        [],
    ),
    "a group without its leader": ([(10, 1, 10, 10), (12, 10, 11, 10)], []),
    "in a shell's session": ([(10, 9, 10, 5), (11, 10, 10, 5)], []),
    "before setsid in a shell's": ([(10, 9, 10, 5), (11, 10, 11, 11), (12, 11, 10, 5)], [12]),
    "init adopts": ([(1, 0, 1, 1), (3, 1, 2, 2)], []),
    "below init": ([(1, 0, 1, 1), (3, 1, 1, 1), (5, 3, 4, 4)], [5]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_would_be_torn(name: str) -> None:
    """Those that CRIU moves pass, those that it moves wrong are named."""
    rows, expected = SHAPES[name]
    assert [entry.pid for entry in pstree.torn(Entry(*row) for row in rows)] == expected


def test_two_births_of_one_parent() -> None:
    """Its parent would have to be born into two sessions."""
    tree = [
        *(Entry(10, 1, 10, 10), Entry(11, 10, 11, 11), Entry(12, 11, 12, 12)),
        *(Entry(13, 12, 11, 11), Entry(14, 12, 10, 10)),
    ]
    assert [entry.pid for entry in pstree.torn(tree)] == [14]


def test_reading(tmp_path: Path) -> None:
    """All fields of all processes, the root first, whatever else there is."""
    root = message((1, 10), (2, 0), (3, 10), (4, 10), (5, 10), (5, 11))
    child = message((1, 12), (2, 10), (3, 300), (4, 70_000), (5, 12))
    (tmp_path / "pstree.img").write_bytes(image(root, child))
    assert pstree.read(tmp_path) == [Entry(10, 0, 10, 10), Entry(12, 10, 300, 70_000)]


def test_an_unknown_form(tmp_path: Path) -> None:
    """A process without a session, or with one that is no number, is an error."""
    for broken in (message((1, 10), (2, 0), (3, 10)), message((1, 10), (2, 0), (3, 10), (4, b"x"))):
        (tmp_path / "pstree.img").write_bytes(image(broken))
        with pytest.raises(CriuFailed, match=r"pstree\.img"):
            pstree.read(tmp_path)
