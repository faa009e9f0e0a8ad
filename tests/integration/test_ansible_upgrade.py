"""The Ansible role around an upgrade: its own tasks, with the real command on a real Redis."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sojourn.system.run import run
from tests.integration.conftest import ROOT, Cluster

ROLE = ROOT / "deploy/ansible/roles/sojourn"
BIN = Path(sys.executable).parent


def _part(name: str, host: str, place: Path, **more: Any) -> dict[str, Any]:
    """Return a part of the role, as the playbook of one host includes it."""
    (place / host).mkdir(exist_ok=True)
    variables = {
        "sojourn_program": str(BIN / "sojourn"),
        "sojourn_host": host,
        "sojourn_dist": str(place / host),
        "sojourn_wait_s": 0,
        "sojourn_drain": False,
        "sojourn_drain_options": ["--max-freeze", "5"],
    }
    return {"include_tasks": f"{ROLE}/tasks/{name}_upgrade.yml", "vars": variables | more}


def _playbook(place: Path) -> Path:
    """Write one that upgrades alpha with a drain, and beta, where something is under way."""
    tasks = [
        _part("before", "alpha", place, sojourn_drain=True),
        {"command": f"{BIN}/sojourn hosts --json", "register": "meanwhile"},
        {"copy": {"content": "{{ meanwhile.stdout }}", "dest": f"{place}/meanwhile.json"}},
        _part("after", "alpha", place),
        {
            "block": [_part("before", "beta", place)],
            "rescue": [_part("after", "beta", place)],
        },
    ]
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        "tasks": tasks,
    }
    path = place / "play.yml"
    path.write_text(json.dumps([play]))
    return path


def test_a_host_is_cordoned_for_the_upgrade_only(cluster: Cluster, tmp_path: Path) -> None:
    """It is drained first and uncordoned afterwards; a cordon of an operator stays.

    What is under way keeps the upgrade from beginning.
    """
    if not (BIN / "ansible-playbook").exists():
        pytest.skip("ansible-playbook is not installed: pip install -e '.[dev]'")
    cluster.announce("alpha")
    cluster.announce("beta", running=1)
    cluster.registry.cordon("beta")
    done = run(
        [BIN / "ansible-playbook", "-i", "localhost,", _playbook(tmp_path)],
        deadline_s=240,
        check=False,
        env=cluster.environment("tester") | {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert "failed=0" in done.stdout, done.stdout + done.stderr
    assert "rescued=1" in done.stdout, done.stdout
    assert json.loads((tmp_path / "meanwhile.json").read_text())["alpha"]["cordoned"]
    assert not cluster.registry.is_cordoned("alpha")
    assert cluster.registry.is_cordoned("beta")
