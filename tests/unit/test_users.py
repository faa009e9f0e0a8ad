"""The users of Redis in deploy/docker: what Sojourn's scripts call is allowed to all who run them."""

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


def called() -> set[str]:
    """Return the commands that stand in the scripts, in small letters."""
    sources = [path.read_text() for path in (CHECKOUT / "sojourn").glob("*.py")]
    return {name.lower() for text in sources for name in re.findall(r"\bcall\('([A-Z]+)'", text)}


@pytest.mark.parametrize("user", ["worker", "flower"])
def test_scripts_may_do_what_they_do(user: str) -> None:
    """A command that is new in a script is refused in the cluster of docker-compose.yml until the user may use it."""
    assert len(called()) > 20
    assert called() - set(re.findall(r"\+(\w+)", rules(user))) == set()


@pytest.mark.parametrize("user", ["worker", "flower"])
def test_nobody_may_do_what_nobody_does(user: str) -> None:
    """Users begin with nothing, and are given commands by their names, never a whole category."""
    words = rules(user).split()
    assert "-@all" in words
    assert [word for word in words if word.startswith("+@")] == []
    assert not {"+config", "+acl", "+keys", "+flushall", "+monitor", "+shutdown", "+debug"} & set(words)
