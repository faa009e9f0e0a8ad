"""The man pages: the formatter accepts them, and they are complete."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from manual.commands import Command, commands
from sojourn.settings import Settings
from sojourn.system.run import run

MAN = Path(__file__).parents[2] / "docs/man"
PAGES = sorted(MAN.glob("*.[15]"))

#: The pages have no date, so that they change with the program only.
EXPECTED = 'missing date, using ""'


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_accepts_a_page(page: Path) -> None:
    """Every macro and every escape is a known one."""
    if not shutil.which("mandoc"):
        pytest.skip("mandoc is not installed: apt-get install mandoc")
    warnings = run(
        ["mandoc", "-T", "lint", "-W", "warning", page], deadline_s=20, check=False
    ).stdout.splitlines()
    assert [line for line in warnings if EXPECTED not in line] == []


@pytest.mark.parametrize("command", list(commands()), ids=lambda command: command.name)
def test_every_command_is_in_the_page(command: Command) -> None:
    """With all its options as they are typed: roff would turn dashes into hyphens."""
    page = (MAN / "sojourn.1").read_text()
    section = page.split(
        f"\n.SS {command.usage.removeprefix('sojourn ').replace('-', chr(92) + '-')}\n"
    )[1]
    section = section.split("\n.SS ")[0].replace("\\-", "-")
    for option in command.options:
        for name in option.names:
            assert f"\\fB{name}\\fR" in section


def test_every_setting_is_in_the_page() -> None:
    """With its default."""
    page = (MAN / "sojourn.toml.5").read_text()
    for name in Settings.model_fields:
        assert f"\\fB{name}\\fR (" in page
    assert "default: \\fB127.0.0.1\\fR)" in page
