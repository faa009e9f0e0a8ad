"""Who asks: the login behind su(1) and sudo(8), what a claim may hold, and in whose name."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator

import pytest

from sojourn.system import caller
from sojourn.system.caller import LONGEST, UNKNOWN, Caller


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Find out anew who asks, in each test and after it."""
    caller._here.cache_clear()
    yield
    caller._here.cache_clear()


def test_the_login_counts_behind_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the kernel before that of sudo, which anybody can set; without both, the user."""
    monkeypatch.setattr(caller, "_login_uid", lambda: None)
    monkeypatch.delenv("SUDO_USER", raising=False)
    here = caller.current()
    assert (here.user, here.uid) == (pwd.getpwuid(os.geteuid()).pw_name, os.geteuid())
    assert here.host == os.uname().nodename
    assert here.via
    caller._here.cache_clear()
    monkeypatch.setenv("SUDO_USER", "alice")
    assert (caller.current().user == "alice") is (os.geteuid() == 0)
    caller._here.cache_clear()
    monkeypatch.setattr(caller, "_login_uid", lambda: 2**31)
    assert caller.current().user == str(2**31)


def test_a_web_server_asks_in_the_name_of_its_users() -> None:
    """And in its own again afterwards."""
    ours = caller.current()
    with caller.acting_for(Caller.named("ann in Flower")):
        assert str(caller.current()) == "ann in Flower"
        assert caller.current().via == "Flower"
    assert caller.current() == ours


@pytest.mark.parametrize("name", ["alice@ops1", "ann in Flower", "nobody", "a@b@ops1"])
def test_a_name_that_is_read_back(name: str) -> None:
    """As journals have it."""
    assert str(Caller.named(name)) == name


def test_a_claim_that_travels() -> None:
    """It comes back as it was."""
    made = Caller("alice", 0, "ops1", "sojourn")
    assert Caller.of(made.to_json()) == made


@pytest.mark.parametrize(
    "claim", [None, "alice", [], {}, {"user": 1}, {"user": ""}, {"user": {"name": "alice"}}]
)
def test_what_is_no_claim(claim: object) -> None:
    """An older version, or another program with the key, names nobody."""
    assert Caller.of(claim) == UNKNOWN


def test_what_a_claim_may_hold() -> None:
    """No line of its own, no control character, and not without end."""
    found = Caller.of(
        {"user": "al\nice\x1b[2J", "uid": True, "host": "h" * 5000, "via": 7, "more": "x"}
    )
    assert found == Caller(r"al\nice\x1b[2J", None, "h" * LONGEST, "")
