"""What a host's settings permit to leave it, and to come to it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sojourn.cluster.selector import Process
from sojourn.errors import Refused
from sojourn.migration.context import Host, Migration
from sojourn.model import Plan
from sojourn.preflight import policy
from sojourn.settings import Settings
from tasks.dump import dump
from tasks.policy import BEFORE_THE_FREEZE, HostStep
from tasks.reserve import reserve
from tasks.restore import restore

PLAN = Plan(4242, "alpha", "beta")
WEB = Process(4242, "nginx", 33, "www-data", "/system.slice/web-1.service")
NAMELESS = Process(4243, "worker", 12345, "", "/user.slice/session-3.scope")


def settings(**given: Any) -> Settings:
    """Return settings with these permissions."""
    return Settings.model_validate(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"leave_users": "postgres www-data"},
        {"leave_users": "www-*"},
        {"leave_units": "web-*.service"},
        {"leave_units": "system.slice"},
        {"allowed_modes": "post-copy stop-and-copy"},
        {"leave_users": "www-data", "leave_units": "web-1.service", "come_from": "nobody"},
    ],
)
def test_what_may_leave(given: dict[str, str]) -> None:
    """Without a setting everything; else what it names, by patterns too."""
    assert list(policy.may_leave(PLAN, [WEB], settings(**given))) == []


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"leave_users": "root"}, "leave_users"),
        ({"leave_users": "www"}, "leave_users"),
        ({"leave_units": "web-2.service"}, "leave_units"),
        ({"leave_units": "web-1"}, "leave_units"),
        ({"allowed_modes": "post-copy"}, "allowed_modes"),
    ],
)
def test_what_may_not_leave(given: dict[str, str], setting: str) -> None:
    """The hint names the setting and the host whose administrator can permit it."""
    (found,) = policy.may_leave(PLAN, [WEB], settings(**given))
    assert (found.code, found.stops) == ("MAY_NOT_LEAVE", True)
    assert "alpha" in found.sentence
    assert f"`{setting}` in sojourn.toml" in found.hint


def test_every_process_of_the_tree_counts() -> None:
    """One of a user without a name, too: it is named by its number."""
    both = [WEB, NAMELESS]
    (found,) = policy.may_leave(PLAN, both, settings(leave_users="www-data"))
    assert "Processes of 12345 may not leave alpha." in found.sentence
    (found,) = policy.may_leave(PLAN, both, settings(leave_units="web-*.service"))
    assert "Process 4243 is in no unit" in found.sentence
    assert list(policy.may_leave(PLAN, both, settings(leave_users="www-data 12345"))) == []


def migration_on(name: str, place: Path, pid: int, **given: Any) -> Migration:
    """Return a migration of a process of this machine as it stands on a host that permits this."""
    places = {"state_dir": place, "runtime_dir": place / "run", "host": name, "key": "k" * 32}
    host = Host(settings(**places | {"redis_url": "redis://127.0.0.1:1"} | given))
    plan = replace(PLAN, pid=pid)
    return Migration(host, host.journal.open("11111111", plan.role_of(name), plan))


@pytest.mark.parametrize(
    ("step", "name", "given", "sentence"),
    [
        (reserve, "alpha", {"leave_users": "nobody"}, "may not leave alpha"),
        (dump, "alpha", {"leave_users": "nobody"}, "may not leave alpha"),
        (dump, "alpha", {"leave_units": "none.service"}, "no unit whose processes may leave alpha"),
        (dump, "alpha", {"allowed_modes": "post-copy"}, "alpha does not permit stop-and-copy"),
        (reserve, "beta", {"come_from": "gamma"}, "Processes of alpha may not come to beta"),
        (restore, "beta", {"come_from": "gamma"}, "Processes of alpha may not come to beta"),
        (restore, "beta", {"allowed_modes": "post-copy"}, "beta does not permit stop-and-copy"),
    ],
)
def test_they_are_asked_again(
    step: HostStep, name: str, given: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    """Where a message comes that no ``examine`` or ``preflight`` was before, nothing is touched."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        migration = migration_on(name, tmp_path, child.pid, **given)
        try:
            with pytest.raises(Refused, match=f"On {name}: .*{sentence}"):
                step.work(migration)
        finally:
            child.kill()
    migration.refresh()
    assert migration.phase in BEFORE_THE_FREEZE
    assert migration.host.journal.all_held() == {}


@pytest.mark.parametrize(
    ("given", "permitted"),
    [
        ({}, True),
        ({"come_from": "gamma alpha"}, True),
        ({"come_from": "gamma"}, False),
        ({"allowed_modes": "post-copy"}, False),
        ({"leave_users": "nobody"}, True),
    ],
)
def test_what_may_come(given: dict[str, str], permitted: bool) -> None:
    """By its host and by the mode."""
    found = list(policy.may_come(PLAN, settings(**given)))
    assert bool(found) is not permitted
    assert {each.code for each in found} <= {"MAY_NOT_COME"}
