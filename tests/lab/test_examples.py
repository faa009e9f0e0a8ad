"""The examples, run as their first lines describe."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sojourn.system.run import Completed, run
from tests.lab.site import MIGRATION_S, Site

pytestmark = pytest.mark.lab

CHECKOUT = Path(__file__).parents[2]


def example(site: Site, *arguments: str) -> Completed:
    """Run the example from the checkout."""
    command = [sys.executable, "examples/migrate.py", *arguments]
    env = {"SOJOURN_CONFIG": str(site.lab.config), "PYTHONPATH": str(CHECKOUT)}
    return run(command, deadline_s=MIGRATION_S, check=False, cwd=CHECKOUT, env=env)


def test_the_example_migrates_and_reports_a_refusal(site: Site) -> None:
    """It arrives; a second time there is nothing left to migrate on the source."""
    pid = str(site.host("alpha").launch(["sleep", "1000"]))
    site.host("beta")
    done = example(site, pid, "alpha", "beta")
    assert done.stdout.startswith("beta runs it; the downtime was "), done.stderr
    again = example(site, pid, "alpha", "beta")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("refused: "), again.stderr
    site.host("beta").run(["kill", pid])
