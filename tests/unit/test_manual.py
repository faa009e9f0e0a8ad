"""What is generated into the documents is what the program knows now; HTML is made of them without a warning."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from manual.__main__ import filled, pages
from manual.commands import Command, commands
from manual.tables import command, table
from sojourn.run import run
from sojourn.settings import environment

CHECKOUT = Path(__file__).parents[2]
SPHINX = Path(sys.executable).parent / "sphinx-build"

PAGES = pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    """If not, ``make docs`` writes it."""
    assert path.read_text() == PAGES[path], "out of date: run make docs, and look at what it changed"


def test_a_page_without_the_part_is_told() -> None:
    """A new command needs its place in the page."""
    with pytest.raises(ValueError, match="has no part 'fly'"):
        filled(CHECKOUT / "docs/reference/cli.md", "## `sojourn fly`\n", "fly", "text")


def test_a_bar_does_not_end_a_cell() -> None:
    """Choices are written with bars."""
    assert table(("word",), [("`show|abort`",)]) == "| word |\n|---|\n| `show\\|abort` |"


@pytest.mark.parametrize("told", list(commands()), ids=lambda told: told.name)
def test_every_command_says_what_it_does_and_how_it_ends(told: Command) -> None:
    """A sentence, the exit status, and what each option and argument means."""
    assert told.summary.endswith(".")
    assert told.status.endswith("."), told.status
    assert [option.names for option in told.options if not option.meaning.endswith(".")] == []
    assert f"Exit status: {told.status[:40]}" in command(told)


def test_html_is_made_without_a_warning(tmp_path: Path) -> None:
    """Sphinx follows every link and every anchor."""
    if not SPHINX.exists():
        pytest.skip("Sphinx is not installed: pip install -e '.[docs]'")
    argv: list[str | Path] = [SPHINX, "--fail-on-warning", "--keep-going", "--quiet", "-c", "manual", ".", tmp_path]
    done = run(argv, deadline_s=240, check=False, cwd=CHECKOUT, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Migrate it" in (tmp_path / "docs/tutorial.html").read_text()
