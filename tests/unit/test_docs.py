"""The pages describe what the program has: settings, commands, options, links, paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from sojourn.cli.program import app
from sojourn.model import State
from sojourn.preflight.finding import CHECKS
from sojourn.settings import Settings, load

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])
REFERENCE = CHECKOUT / "docs/reference"

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

#: The longest line of a page, and the most sentences of a paragraph or of an item of a list.
COLUMNS, SENTENCES = 100, 4

#: What begins an item of a list, and what is not prose: rows of tables, headings, comments.
ITEM = re.compile(r"\s*([-*]|\d+\.) ")
NOT_PROSE = ("|", "#", "<!--")

#: The end of a sentence: what follows begins with a capital, with code, a link or emphasis.
END = re.compile(r"""[.!?][)"*_”]*(?= [A-Z`*\[“0-9]|$)""")


def commands(
    command: Any = None, path: tuple[str, ...] = ("sojourn",)
) -> Iterator[tuple[str, Any]]:
    """Yield every command of the command line with its full name."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, subcommand in command.commands.items():
        yield from commands(subcommand, (*path, name))


def sections(page: Path) -> dict[str, str]:
    """Return the text below every second-level heading, by the heading without backquotes."""
    parts = re.split(r"^## (.*)$", page.read_text(), flags=re.MULTILINE)
    return {
        heading.strip("`"): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(text: str) -> set[str]:
    """Return the first cell's code of every row of the tables of a text."""
    return set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))


def test_every_setting_is_documented_and_no_other() -> None:
    """The first table has the settings; the variables of the second are not settings."""
    table = (REFERENCE / "settings.md").read_text().split("Variables of the environment")[0]
    assert rows(table) == set(Settings.model_fields)


def test_the_example_configuration_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users copy this file first."""
    monkeypatch.setenv("SOJOURN_CONFIG", str(CHECKOUT / "examples/sojourn.toml"))
    load.cache_clear()
    assert load().host == "alpha"
    load.cache_clear()


def test_every_command_has_its_section_and_every_section_its_command() -> None:
    """The headings are the commands of the parser."""
    documented = {name for name in sections(REFERENCE / "cli.md") if name.startswith("sojourn ")}
    assert documented == {name for name, _ in commands()}


@pytest.mark.parametrize(
    ("name", "command"),
    list(commands()),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_option_is_documented_and_no_other(name: str, command: Any) -> None:
    """Options are compared by all their names; ``--help`` is described only once."""
    section = sections(REFERENCE / "cli.md")[name]
    table = "\n".join(
        line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `-")
    )
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    names = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    assert set(re.findall(r"`(--?[a-z][a-z-]*)", table)) == names - {"-h", "--help"}


def test_every_exit_code_of_a_migration_is_documented() -> None:
    """The table of exit codes has that of every final state."""
    table = (REFERENCE / "cli.md").read_text()
    for state in State:
        if state.final:
            assert f"\n| {state.exit_code} | " in table, state


def test_every_check_is_documented_and_no_other() -> None:
    """The table shows what every code requires, and of which host."""
    table = (REFERENCE / "checks.md").read_text()
    assert rows(table) == set(CHECKS)
    for code, check in CHECKS.items():
        assert f"| `{code}` | {check.on} | {check.asks} |" in table


def test_every_state_is_documented() -> None:
    """Programs compare the state with these texts."""
    page = (REFERENCE / "json.md").read_text()
    for state in State:
        assert f"`{state}`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_relative_link_has_a_target(page: Path) -> None:
    """The file exists, and so does the heading."""
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        target, _, anchor = link.partition("#")
        if not target.startswith(("http://", "https://")):
            there = (page.parent / target).resolve() if target else page
            assert there.exists(), link
            assert not anchor or anchor in anchors(there), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    """Users paste these."""
    targets = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_every_path_of_the_checkout_that_is_named_exists(page: Path) -> None:
    """Paths that begin with a directory of the checkout are compared with it."""
    roots = "|".join(
        path.name for path in CHECKOUT.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    for path in re.findall(rf"(?:`|python )((?:{roots})/[\w./-]*)", page.read_text()):
        assert (CHECKOUT / path).exists(), path


def test_no_line_of_a_page_ends_in_blanks() -> None:
    """Markdown turns them into line breaks."""
    assert not [page for page in PAGES if re.search(r"[ \t]$", page.read_text(), re.MULTILINE)]


def _paragraphs(page: Path) -> Iterator[str]:
    """Yield each paragraph, and each item of a list, in one line without what is code."""
    for block in re.split(r"\n\s*\n", INDENTED.sub("\n\n", page.read_text())):
        lines: list[str] = []
        for line in block.splitlines():
            if ITEM.match(line) and lines:
                yield _prose(lines)
                lines = []
            lines.append(line)
        yield _prose(lines)


def _prose(lines: list[str]) -> str:
    return re.sub(r"`[^`]*`", "`code`", " ".join(" ".join(lines).split()))


#: Blocks of code, also those in items of lists.
INDENTED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_no_paragraph_has_more_than_four_sentences(page: Path) -> None:
    """More than that is a list, a table or two paragraphs."""
    prose = [text for text in _paragraphs(page) if not text.startswith(NOT_PROSE)]
    assert [text for text in prose if len(END.findall(text)) > SENTENCES] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_no_line_is_too_long(page: Path) -> None:
    """Only a row of a table cannot be wrapped."""
    lines = enumerate(page.read_text().splitlines(), start=1)
    assert [
        number for number, line in lines if len(line) > COLUMNS and not line.startswith("|")
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_the_text_of_a_link_is_a_title(page: Path) -> None:
    """It says what is there, in words: not a path, an address or a name in code alone."""
    text = INDENTED.sub("", page.read_text())
    titles = re.findall(r"(?<!\!)\[([^\]]*)\]\([^)\s]+\)", text)
    bare = re.compile(r"`?(https?://\S+|[\w.-]+(/[\w.-]*)+|[\w-]+\.[a-z]{2,5})`?|`[^`]*`")
    assert [title for title in titles if bare.fullmatch(title)] == []
