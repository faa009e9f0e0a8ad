"""The tutorial, followed to the letter: docs/tutorial.md's blocks in their order, in one shell."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from sojourn.settings import environment
from sojourn.system.run import Completed, run

pytestmark = pytest.mark.lab

CHECKOUT = Path(__file__).parents[2]
TUTORIAL = CHECKOUT / "docs/tutorial.md"
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)

#: The shell prints this before every block, so that the output can be split by blocks.
MARK = "=== block"

DEADLINE_S = 240


@pytest.fixture(scope="module")
def printed(suitable: None) -> Iterator[list[str]]:
    """Run all blocks as a reader does who pastes them, and return their outputs."""
    Lab("tutorial").down()
    try:
        done = _followed(COMMANDS.findall(TUTORIAL.read_text()))
        assert done.returncode == 0, done.stdout[-4000:]
        yield done.stdout.split(MARK)[1:]
    finally:
        Lab("tutorial").down()


def _followed(blocks: list[str]) -> Completed:
    script = "exec 2>&1\n" + "".join(f"echo '{MARK}'\n{block}" for block in blocks)
    path = f"{Path(sys.executable).parent}:{environment().get('PATH', '')}"
    kept = {**environment(), "PATH": path, "COLUMNS": "120"}
    kept.pop("SOJOURN_CONFIG", None)
    return run(
        ["bash", "-eu", "-c", script], deadline_s=DEADLINE_S, check=False, cwd=CHECKOUT, env=kept
    )


def test_every_block_does_what_the_tutorial_shows(printed: list[str]) -> None:
    """One pass through the page: hosts, process, check, migration, history, and a refusal."""
    _, hosts, started, checked, migrated, arrived, watched, looked, refused, removed = printed
    assert "alpha" in hosts
    assert "beta" in hosts
    assert "counter" in started
    assert "nothing speaks against it" in checked
    assert "from alpha to beta: completed. Downtime" in migrated
    assert "'host': 'beta'" in arrived
    assert "completed" in watched
    assert "dump.log" in looked
    assert re.search(r"alpha.*beta", looked)
    assert "/usr/local/bin/only-here" in refused
    assert "exit status 10" in refused
    assert "removed tutorial" in removed
