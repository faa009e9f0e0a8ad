"""How Sphinx makes HTML of the Markdown pages of the checkout: ``make docs``."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from sojourn import __version__

project = "Sojourn"
release = __version__
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Moves running Linux processes between hosts",
    "page_width": "1100px",
}
html_show_copyright = False

# Headings are found by the anchors that GitHub gives them, so that one link works in both places.
myst_heading_anchors = 4

highlight_language = "none"


def setup(app: Sphinx) -> None:
    """Make the navigation out of the index: a caption for a heading, a page for a link."""
    app.connect("source-read", _add_contents)


def _add_contents(_: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        parts = re.split(r"^## (.*)$", source[0], flags=re.MULTILINE)[1:]
        source[0] += "".join(map(_contents, parts[::2], parts[1::2]))


def _contents(caption: str, text: str) -> str:
    """Return a hidden table of contents, with a page once, as Sphinx requires."""
    links = dict.fromkeys(re.findall(r"\]\(([\w./-]+)\.md\)", text))
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(links) + "\n```\n"
