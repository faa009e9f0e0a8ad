"""Layers of the hosts' roots: one builder at a time, whose progress reaches those that wait."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from lab import layer
from lab.layer import Layer, Report
from sojourn.system.run import run

CHECKOUT = Path(__file__).parents[2]


def test_the_base_needs_no_library() -> None:
    """bin/setup builds it while pip installs the libraries: -S hides those that are there."""
    run([sys.executable, "-S", "-c", "import lab.base"], deadline_s=20, cwd=CHECKOUT)


def test_who_waits_sees_the_progress_of_the_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second builder of the same layer waits, repeats what the first reports, and builds none."""
    monkeypatch.setattr(layer, "CACHE", tmp_path)
    monkeypatch.setattr(layer, "WAIT_S", 0.01)
    filled, seen, begun, finish = [], [], threading.Event(), threading.Event()

    def fill(root: Path, report: Report) -> None:
        filled.append(root)
        report("half of it")
        begun.set()
        assert finish.wait(10)

    def watch(line: str) -> None:
        seen.append(line)
        finish.set()

    tree = Layer("tree", "recipe", fill)
    builder = threading.Thread(target=tree.ready, args=[lambda _: None])
    builder.start()
    assert begun.wait(10)
    assert tree.ready(watch) == tree.path
    builder.join()
    assert seen[0] == "half of it"
    assert len(filled) == 1
    assert tree.path.is_dir()
