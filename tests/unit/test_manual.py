"""The generated parts of the documents are up to date; HTML is made without a warning."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from manual.__main__ import filled, pages
from manual.commands import Command, commands
from manual.tables import command, table
from sojourn.settings import environment
from sojourn.system.run import run

CHECKOUT = Path(__file__).parents[2]
SPHINX = Path(sys.executable).parent / "sphinx-build"

PAGES = pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_generated_parts_are_up_to_date(path: Path) -> None:
    """If not, ``make docs`` writes them."""
    assert path.read_text() == PAGES[path], (
        "out of date: run make docs, and look at what it changed"
    )


def test_a_page_without_the_part_is_an_error() -> None:
    """A new command needs its place in the page."""
    with pytest.raises(ValueError, match="has no part 'fly'"):
        filled(CHECKOUT / "docs/reference/cli.md", "## `sojourn fly`\n", "fly", "text")


def test_a_bar_does_not_end_a_cell() -> None:
    """Choices are written with bars."""
    assert table(("word",), [("`show|abort`",)]) == "| word |\n|---|\n| `show\\|abort` |"


@pytest.mark.parametrize("described", list(commands()), ids=lambda described: described.name)
def test_every_command_is_described(described: Command) -> None:
    """By a sentence, its exit status, and the meaning of its options."""
    assert described.summary.endswith(".")
    assert described.status.endswith("."), described.status
    assert [option.names for option in described.options if not option.meaning.endswith(".")] == []
    assert f"Exit status: {described.status[:40]}" in command(described)


def test_html_is_made_without_a_warning(tmp_path: Path) -> None:
    """Sphinx follows every link and every anchor."""
    if not SPHINX.exists():
        pytest.skip("Sphinx is not installed: pip install -e '.[docs]'")
    argv: list[str | Path] = [
        SPHINX,
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        "-c",
        "manual",
        ".",
        tmp_path,
    ]
    done = run(argv, deadline_s=240, check=False, cwd=CHECKOUT, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    tutorial = (tmp_path / "docs/tutorial.html").read_text()
    for expected in ("Migrate it", "copybutton.js", "site.css", "data-theme"):
        assert expected in tutorial
    assert 'id="sojournindoubt"' in (tmp_path / "docs/alerts.html").read_text()
