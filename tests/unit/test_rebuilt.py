"""A rebuilt tree is compared with the shape that it had, on real trees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sojourn.criu.pstree import Entry
from sojourn.criu.rebuilt import difference
from sojourn.system import process
from tests.conftest import eventually

PROGRAM = Path(__file__).parents[1] / "lab/adopt.py"


@pytest.fixture
def root() -> Iterator[int]:
    """Start a program with a daemon that it has adopted, and with a child of its own session."""
    argv = [sys.executable, str(PROGRAM), "daemon"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as program:
        assert program.stdout is not None
        program.stdout.readline()
        eventually(lambda: len(process.tree(program.pid)) == 2)
        yield program.pid
        process.kill(process.tree(program.pid))


def _tree(root: int) -> list[Entry]:
    """Return the tree as it should be."""
    stats = [process.stat(member.identity.pid) for member in process.tree(root)]
    return [Entry(stat.pid, stat.parent, stat.group, stat.session) for stat in stats]


def test_the_same(root: int) -> None:
    """Who started the root does not count, nor that its session has another number now."""
    tree = _tree(root)
    assert difference(tree, root) == ""
    tree[0] = Entry(root, 4242, 4243, 4244)
    assert difference(tree, root) == ""


@pytest.mark.parametrize("name", ["parent", "group", "session"])
def test_another_parent_group_or_session(root: int, name: str) -> None:
    """Each of the three is named with what it was and is."""
    tree = _tree(root)
    was, tree[1] = getattr(tree[1], name), replace(tree[1], **{name: 4242})
    found = difference(tree, root)
    assert found.startswith(f"process {tree[1].pid} has parent")
    assert f"{name} 4242" in found.partition("in place of")[2]
    assert f"{name} {was}" in found.partition("in place of")[0]


def test_one_that_is_not_there(root: int) -> None:
    """A process below init is none of the tree any more."""
    found = difference([*_tree(root), Entry(os.getpid(), root, 4242, 4242)], root)
    assert found == f"process {os.getpid()} is not below process {root} any more"


def test_a_tree_that_cannot_be_read() -> None:
    """Nobody may take that for no difference."""
    with pytest.raises(OSError, match="status"):
        difference([Entry(4242, 1, 4242, 4242)], 2**22 + 1)
