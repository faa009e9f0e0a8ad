"""How Sphinx makes HTML of the Markdown pages, as they lie in the checkout: ``make docs``."""

from __future__ import annotations

from sojourn import __version__

project = "Sojourn"
release = __version__
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md"]
html_theme = "alabaster"
html_theme_options = {"description": "Moves running Linux processes between hosts", "page_width": "1100px"}
html_show_copyright = False

# Headings are found by the anchors that GitHub gives them, so that one link works in both places.
myst_heading_anchors = 4

# The index is made of tables, so no page stands in a tree of contents. A code block need not say its language.
suppress_warnings = ["toc.not_included"]
highlight_language = "none"
