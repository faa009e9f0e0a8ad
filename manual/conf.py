"""How Sphinx makes HTML of the Markdown pages of the checkout: ``make docs``."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from sojourn import __version__

project = "Sojourn"
release = __version__
extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md"]
html_theme = "furo"
html_title = f"Sojourn {release}"
html_theme_options = {
    "navigation_with_keys": True,
    # There is no public repository that a button could lead to.
    "top_of_page_buttons": [],
    "light_css_variables": {"color-brand-primary": "#1d5fa8", "color-brand-content": "#1d5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7ab7ff", "color-brand-content": "#7ab7ff"},
}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False

# What is pasted is the command, without the prompt in front of it.
copybutton_prompt_text = "$ "

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
    """Return a hidden table of contents of the pages that begin a row, by the titles there."""
    rows = re.findall(r"^\| \[([^]]*)\]\(([\w./-]+)\.md", text, re.MULTILINE)
    if not rows:
        return ""
    # Sphinx requires that a page is listed once.
    titles = {page: title.replace("`", "") for title, page in reversed(rows)}
    entries = "\n".join(f"{titles[page]} <{page}>" for page in dict.fromkeys(p for _, p in rows))
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"
