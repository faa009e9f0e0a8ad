"""Templates: ours first, then Flower's, whose navigation gets one tab more."""

from __future__ import annotations

from pathlib import Path

import flower
from tornado.template import BaseLoader, Template

OURS = Path(__file__).parent / "templates"
FLOWERS = Path(flower.__file__).parent / "templates"

NAVIGATION = "navbar.html"

#: The place of the tab: in front of Flower's own.
FIRST = '<ul class="app-nav navbar-nav">'
TAB = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'migrations' %} active{% end %}"
            href="{{ reverse_url('migrations') }}"
            {% if active_tab == 'migrations' %}aria-current="page"{% end %}>Migrations</a>
        </li>"""


class Templates(BaseLoader):
    """Finds a template by its name; all templates escape what they show."""

    def __init__(self) -> None:
        # Not only for our handlers: Flower's render our page of errors too.
        super().__init__(namespace={"asset": asset})

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:  # noqa: ARG002
        """Return the name: all templates are in one directory. The signature is Tornado's."""
        return name

    def _create_template(self, name: str) -> Template:
        return Template(source(name), name=name, loader=self)


def asset(name: str) -> str:
    """Return the path of a static file of ours."""
    return f"/migrations/static/{name}"


def source(name: str) -> str:
    """Return the text of a template."""
    ours = OURS / name
    text = (ours if ours.is_file() else FLOWERS / name).read_text()
    return text.replace(FIRST, FIRST + TAB, 1) if name == NAVIGATION else text
