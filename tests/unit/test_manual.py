"""The generated parts of the documents are up to date; HTML is made without a warning."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from manual import recording
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


def test_the_recording_is_what_the_demo_printed() -> None:
    """It begins and ends where it should; long lines and waits are cut."""
    printed = [
        recording.Line(0, "== A lab"),
        recording.Line(5, "== A process with 1 MB & more"),
        recording.Line(50, "x" * 200),
        recording.Line(51, "What is left on the source"),
        recording.Line(52, "PID"),
        recording.Line(53, "✓ same PID: 5"),
        recording.Line(54, "✓ the pause is reported: 5 ms"),
        recording.Line(55, "== Migrate it back"),
    ]
    shown = list(recording.hurried(recording.shown(printed)))
    assert [line.text[:5] for line in shown] == ["== A ", "xxxxx", "[…]", "✓ sam", "✓ the"]
    assert [line.at_s for line in shown] == [0, 2, 3, 5, 6]
    assert len(shown[1].text) == recording.COLUMNS
    picture = recording.drawn(shown)
    texts = [node.text for node in ElementTree.fromstring(picture) if node.tag.endswith("}text")]
    assert texts == [line.text for line in shown]


def test_the_picture_of_the_demo_is_a_recording() -> None:
    """It is a real run to its end, drawn as ``make record`` draws it, with no promise broken."""
    picture = recording.PICTURE.read_text()
    assert picture.startswith(recording.HEAD.format(width=845, height=0).split(" viewBox")[0])
    assert "completed. Downtime" in picture
    assert "✓ the pause is reported" in picture
    assert 'class="broken"' not in picture


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
