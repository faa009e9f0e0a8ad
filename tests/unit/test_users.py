"""The users of Redis in deploy/docker may run every command that Sojourn calls."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ACL = (CHECKOUT / "deploy/docker/users.acl").read_text()


def rules(user: str) -> str:
    """Return the rules of a user as one line."""
    joined = re.sub(r"\\\n\s*", "", ACL)
    return next(line for line in joined.splitlines() if line.startswith(f"user {user} "))


#: How Python calls commands: as methods of a client or a block, by their names, as lists.
CALLS = r"""\b(?:client|_redis|block)\.([a-z]+)\(|\b_read\(.+?, "([a-z]+)"|\["([A-Z]+)","""

#: Methods of a client that are no commands, and the command that has another name as a method.
NO_COMMANDS, RENAMED = {"pipeline", "execute"}, {"delete": "del"}

#: The modules that talk to Redis as each user; only workers have a transport of their own.
DOORS = {"worker": ["sojourn/cluster", "workflows"], "flower": ["sojourn/cluster"]}


def called() -> set[str]:
    """Return the commands that the scripts call, in lower case."""
    sources = [path.read_text() for path in (CHECKOUT / "sojourn").rglob("*.lua")]
    return {name.lower() for text in sources for name in re.findall(r"\bcall\('([A-Z]+)'", text)}


def called_by_python(user: str) -> set[str]:
    """Return the commands that modules call as a user, in lower case."""
    paths = [path for door in DOORS[user] for path in (CHECKOUT / door).rglob("*.py")]
    found = {
        "".join(names).lower() for path in paths for names in re.findall(CALLS, path.read_text())
    }
    return {RENAMED.get(name, name) for name in found - NO_COMMANDS}


def allowed(user: str) -> set[str]:
    """Return the commands that a user may run on the keys that are its own."""
    return set(re.findall(r"\+(\w+)", rules(user)))


@pytest.mark.parametrize("user", ["worker", "flower"])
def test_scripts_may_call_their_commands(user: str) -> None:
    """Redis refuses a command that is new in a script until the user is allowed to run it."""
    assert len(called()) > 20
    assert called() - allowed(user) == set()


@pytest.mark.parametrize("user", ["worker", "flower"])
def test_modules_may_call_their_commands(user: str) -> None:
    """So it does with one that is new in a module; most tests use a Redis without users."""
    assert len(called_by_python(user)) > 20
    assert called_by_python(user) - allowed(user) == set()


@pytest.mark.parametrize("user", ["worker", "flower"])
def test_users_have_no_more_than_they_need(user: str) -> None:
    """Users begin with nothing, and get commands by name, never a whole category."""
    granted = rules(user).split()
    assert "-@all" in granted
    assert [rule for rule in granted if rule.startswith("+@")] == []
    assert not {"+config", "+acl", "+keys", "+flushall", "+monitor", "+shutdown", "+debug"} & set(
        granted
    )
