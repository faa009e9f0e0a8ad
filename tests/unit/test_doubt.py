"""What there is to know of a migration in doubt, by who is silent."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from sojourn.cluster.doubt import HOW_TO, Contact, Doubt, sentence
from sojourn.model import Json, Plan

ID = "bc14c1d9-4380-43c8-b5dc-15f44498902a"
HERE, GONE = Contact(answers=True, heard=2000.0), Contact(answers=False, heard=1500.0)
UNHEARD = Contact(answers=False)


def described(alpha: Contact, beta: Contact) -> Json:
    """Return the help of a migration from alpha to beta, frozen since 1000."""
    doubt = Doubt(ID, Plan(4242, "alpha", "beta"), 1000.0)
    return doubt.describe({"alpha": alpha, "beta": beta})


def commands(doubt: Json) -> list[str]:
    """Return the command of each way out."""
    return [command for way in doubt["you_may"] for command in re.findall(r"`(.*?)`", way["do"])]


@pytest.mark.parametrize(
    ("alpha", "beta", "silent", "since", "ways"),
    [
        (HERE, GONE, "beta", 1500.0, ["watch", "abort", "--destination-is-dead"]),
        (GONE, HERE, "alpha", 1500.0, ["watch", "--source-is-dead"]),
        (GONE, UNHEARD, "beta", 1000.0, ["watch"]),
        (HERE, HERE, None, 1000.0, ["--destination-is-dead --force", "--source-is-dead --force"]),
    ],
)
def test_the_help_depends_on_who_is_silent(
    alpha: Contact, beta: Contact, silent: str | None, since: float, ways: list[str]
) -> None:
    """Each way names its command with the whole id, and its risk; the time has its zone."""
    found = described(alpha, beta)
    assert found["silent"] == silent
    assert datetime.fromisoformat(found["since"]).timestamp() == since
    assert datetime.fromisoformat(found["since"]).tzinfo is not None
    for command, way in zip(commands(found), ways, strict=True):
        assert command.startswith("sojourn ")
        assert ID in command
        assert way in command
    assert all(way["risk"] for way in found["you_may"])
    assert (silent or "Both hosts answer") in sentence(found)


@pytest.mark.parametrize("heard", [1e18, -1e18, 1e12])
def test_an_instant_that_no_calendar_has(heard: float) -> None:
    """A damaged record makes no command fail."""
    assert described(HERE, Contact(answers=False, heard=heard))["since"]


def test_the_guide_is_there() -> None:
    """The link is a path of the documentation."""
    assert (Path(__file__).parents[2] / HOW_TO).exists()
    assert described(HERE, GONE)["how_to"] == HOW_TO
