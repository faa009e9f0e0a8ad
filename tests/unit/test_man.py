"""The man pages: the formatter has nothing to say, and what there is can be looked up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from manual.commands import Command, commands
from sojourn.run import run
from sojourn.settings import Settings

MAN = Path(__file__).parents[2] / "docs/man"
PAGES = sorted(MAN.glob("*.[15]"))

#: The pages have no date, so that they change with the program only.
HARMLESS = 'missing date, using ""'


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_has_nothing_to_say(page: Path) -> None:
    """Every macro and every escape is a known one."""
    if not shutil.which("mandoc"):
        pytest.skip("mandoc is not installed: apt-get install mandoc")
    said = run(["mandoc", "-T", "lint", "-W", "warning", page], deadline_s=20, check=False).stdout.splitlines()
    assert [line for line in said if HARMLESS not in line] == []


@pytest.mark.parametrize("told", list(commands()), ids=lambda told: told.name)
def test_every_command_is_in_the_page(told: Command) -> None:
    """With each of its options, as they are typed: roff would make other dashes of them."""
    page = (MAN / "sojourn.1").read_text()
    section = page.split(f"\n.SS {told.usage.removeprefix('sojourn ').replace('-', chr(92) + '-')}\n")[1]
    section = section.split("\n.SS ")[0].replace("\\-", "-")
    for option in told.options:
        for name in option.names:
            assert f"\\fB{name}\\fR" in section


def test_every_setting_is_in_the_page() -> None:
    """With its default."""
    page = (MAN / "sojourn.toml.5").read_text()
    for name in Settings.model_fields:
        assert f"\\fB{name}\\fR (" in page
    assert "default: \\fB127.0.0.1\\fR)" in page
