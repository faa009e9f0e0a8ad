"""The units of systemd: valid for systemd itself, and such that no restored process dies."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from sojourn.cli import serve
from sojourn.system.run import run
from workers.supervisor import PATIENCE_S

UNITS = sorted((Path(__file__).parents[2] / "deploy/systemd").glob("*.service"))
WORKER = next(path for path in UNITS if path.stem == "sojourn-worker")


def directives(path: Path) -> dict[str, list[str]]:
    """Return what a unit sets, by key."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", path.read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_a_unit(path: Path, tmp_path: Path) -> None:
    """An unknown key or value would be reported; the program need not be installed for that."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed: Debian's package systemd has it")
    unit = tmp_path / path.name
    unit.write_text(
        path.read_text().replace("ExecStart=/usr/local/bin/sojourn", "ExecStart=/bin/true")
    )
    done = run(["systemd-analyze", "verify", "--man=no", unit], deadline_s=60, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_an_existing_command(path: Path) -> None:
    """At the path of docs/install.md, and it is started again whatever happens."""
    found = directives(path)
    (start,) = found["ExecStart"]
    program, command = start.split()
    assert (program, callable(getattr(serve, command))) == ("/usr/local/bin/sojourn", True)
    assert (found["Restart"], found["StartLimitIntervalSec"]) == (["always"], ["0"])
    assert all(value.startswith("-") for value in found["EnvironmentFile"])


def test_restored_processes_outlive_the_worker() -> None:
    """They are in the unit's control group: nothing that ends the worker may end them."""
    found = directives(WORKER)
    assert found["Type"] == ["notify"]
    assert (found["KillMode"], found["OOMPolicy"], found["TasksMax"]) == (
        ["process"],
        ["continue"],
        ["infinity"],
    )
    assert int(found["TimeoutStopSec"][0]) >= 2 * PATIENCE_S


def test_the_worker_has_no_mounts_of_its_own() -> None:
    """Restored processes would share its mount namespace; a runtime directory goes with it."""
    apart = (
        "Private",
        "Protect",
        "RootDirectory",
        "ReadOnly",
        "Inaccessible",
        "TemporaryFileSystem",
        "DynamicUser",
    )
    limits = (
        "Memory",
        "RuntimeDirectory",
        "User",
        "CapabilityBoundingSet",
        "NoNewPrivileges",
        "SystemCallFilter",
    )
    assert [key for key in directives(WORKER) if key.startswith((*apart, *limits))] == []


def test_flower_runs_without_privileges() -> None:
    """It needs the cluster's key, but neither root nor a file that others than root can read."""
    found = directives(next(path for path in UNITS if path.stem == "sojourn-flower"))
    assert (found["DynamicUser"], found["CapabilityBoundingSet"]) == (["yes"], [""])
    assert found["LoadCredential"] == ["sojourn.toml:/etc/sojourn/sojourn.toml"]
    assert "SOJOURN_CONFIG=%d/sojourn.toml" in found["Environment"]
