"""What a step is handed through the broker: one message, or one from each side of a ``Both``."""

from __future__ import annotations

import pytest

from sojourn.errors import UsageError
from sojourn.model import Plan
from sojourn.state.facts import Facts
from sojourn.state.message import Message

PLAN = Plan(4242, "alpha", "beta")
ID, OTHER = "0123abcd", "4567cdef"


def _text(migration: str = ID, **facts: object) -> str:
    return Message(migration, PLAN, Facts(**facts)).to_text()  # type: ignore[typeddict-item]


def test_one_text_is_one_message() -> None:
    """A step behind another step is handed what that one returned."""
    handed = Message.handed(_text(page_port=5))
    assert handed == Message(ID, PLAN, {"page_port": 5})


def test_a_list_of_one_text_is_one_message() -> None:
    """Celery hands a list to the body of a chord, also when its header has one task."""
    assert Message.handed([_text(page_port=5)]) == Message.handed(_text(page_port=5))


def test_two_texts_are_merged() -> None:
    """A step behind a ``Both`` has the facts of both sides; of two values the later one counts."""
    handed = Message.handed([_text(page_port=5, processes=1), _text(tree_bytes=7, processes=2)])
    assert handed == Message(ID, PLAN, {"page_port": 5, "processes": 2, "tree_bytes": 7})


def test_what_is_pending_adds_up_once() -> None:
    """No side's sentences are lost, and one that came along on both sides stands there once."""
    sides = [_text(pending=["before", "alpha"]), _text(pending=["before", "beta"])]
    assert Message.handed(sides).facts == {"pending": ["before", "alpha", "beta"]}


def test_nothing_pending_leaves_no_key() -> None:
    """An empty list would travel in every later message."""
    assert Message.handed([_text(), _text()]).facts == {}


def test_texts_of_two_migrations_are_refused() -> None:
    """Their facts must never be mixed."""
    with pytest.raises(UsageError, match="must be of one migration"):
        Message.handed([_text(), _text(OTHER)])


def test_no_text_at_all_is_refused() -> None:
    """An empty list names no migration."""
    with pytest.raises(UsageError, match="must be of one migration"):
        Message.handed([])


@pytest.mark.parametrize("malformed", ["", "{", "[]", "null", '{"id": "0123abcd"}'])
def test_a_malformed_text_is_refused(malformed: str) -> None:
    """Alone, and as one side of two."""
    for handed in (malformed, [malformed], [_text(), malformed]):
        with pytest.raises(UsageError, match="malformed"):
            Message.handed(handed)


def test_with_facts_changes_nothing_in_place() -> None:
    """A message may be kept while a copy of it travels on."""
    message = Message(ID, PLAN, {"pending": ["alpha"]})
    later = message.with_facts({"pending": ["beta"], "page_port": 5})
    assert message.facts == {"pending": ["alpha"]}
    assert later.facts == {"pending": ["alpha", "beta"], "page_port": 5}
