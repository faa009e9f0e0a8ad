"""The hooks before a commit run what `make lint` runs."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_hooks_are_those_of_make_lint() -> None:
    """Whoever uses the hooks does not see a tool fail only in the tests."""
    target = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target
    lint = re.findall(r"\$\(BIN\)/(.*)", target[1])
    hooks = re.findall(r"entry: \.venv/bin/(.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == lint


def test_nothing_is_fetched() -> None:
    """Every hook is part of this checkout."""
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", text) == ["local"]
