"""The Ansible role: its syntax, and that example, defaults and tasks use the same variables."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sojourn.environment import environment
from sojourn.system.run import Completed, run

PLACE = Path(__file__).parents[2] / "deploy/ansible"
ROLE = PLACE / "roles/sojourn"


def ansible(program: str, *arguments: str) -> Completed:
    """Run one of Ansible's programs of this environment in the playbook's directory."""
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        pytest.skip(f"{program} is not installed: pip install -e '.[dev]'")
    return run([path, *arguments], deadline_s=120, check=False, cwd=PLACE, env=environment())


def test_syntax() -> None:
    """Ansible can read the playbook, the role and the example of an inventory."""
    done = ansible("ansible-playbook", "-i", "inventory.example.yml", "--syntax-check", "site.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr


def test_every_variable_has_a_default() -> None:
    """What tasks and templates use is set in defaults, or registered by a task."""
    defaults = set(
        re.findall(r"^(sojourn_\w+):", (ROLE / "defaults/main.yml").read_text(), re.MULTILINE)
    )
    texts = [
        path.read_text()
        for name in ("tasks", "templates", "handlers")
        for path in (ROLE / name).iterdir()
    ]
    registered = {name for text in texts for name in re.findall(r"register: (sojourn_\w+)", text)}
    used = {name for text in texts for name in re.findall(r"\bsojourn_\w+", text)} - {
        "sojourn_doctor.stdout_lines"
    }
    assert used <= defaults | registered
    assert defaults <= used
    example = set(
        re.findall(
            r"^\s+(sojourn_\w+):", (PLACE / "inventory.example.yml").read_text(), re.MULTILINE
        )
    )
    assert example <= defaults


def test_files_of_the_checkout_that_the_role_takes() -> None:
    """Paths that begin at the role lead to files; the wheel is there once it is built."""
    texts = [(ROLE / name / "main.yml").read_text() for name in ("tasks", "defaults")]
    paths = [path for text in texts for path in re.findall(r"role_path }}/([\w./-]+)", text)]
    assert len(paths) >= 2
    assert [path for path in paths if not (ROLE / path).resolve().exists()] == []
