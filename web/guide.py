"""Pages of the documentation as HTML, for whoever needs them while something is wrong.

They come with Sojourn: of a checkout from its ``docs``, else from ``share/sojourn/docs`` of the
environment in which it is installed. HTML inside of them is shown as text.
"""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

CHECKOUT = Path(__file__).parents[1] / "docs"
INSTALLED = Path(sys.prefix) / "share/sojourn/docs"


def place() -> Path:
    """Return the directory of the documentation."""
    return CHECKOUT if CHECKOUT.is_dir() else INSTALLED


def page(path: str) -> str | None:
    """Return a page, by its path below the directory, as HTML; None if there is none."""
    root = place().resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        return None
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(file.read_text())
    for token, inside in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(inside.content))
    made: str = reader.renderer.render(tokens, reader.options, {})
    return made


def anchor(heading: str) -> str:
    """Return by what a link names a heading, as on GitHub."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
