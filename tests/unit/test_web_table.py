"""The table of all migrations without a browser: its cards, its filters and its pages."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sojourn.errors import UsageError
from sojourn.model import Json, State

pytest.importorskip("flower")

from web.rows import CARDS
from web.table import PER_PAGE, Query, view

NOW = 1_700_000_000.0


def line(number: int, **more: Any) -> Json:
    """Return a row of the table, one minute older than that of the number before."""
    state = more.pop("state", State.COMPLETED)
    card = next(name for name, (_, _, states) in CARDS.items() if state in states)
    row: Json = {"id": f"{number:08x}", "pid": 1000 + number, "created": NOW - 60 * number}
    row |= {"state": state, "card": card, "owner": "beta", "batch": None, "why": ""}
    row |= {"source": "alpha", "destination": "beta", "command": "/usr/sbin/nginx"}
    return row | more


def ids(found: Json) -> list[str]:
    """Return the ids of a page's rows."""
    return [row["id"] for row in found["rows"]]


def test_each_state_is_in_one_card_and_they_add_up() -> None:
    """The sum of all cards is what is counted, whatever card is chosen."""
    states = [state for _, _, states in CARDS.values() for state in states]
    assert sorted(states) == sorted(State)
    rows = [line(number, state=state) for number, state in enumerate([*State, *State])]
    for card in ("", "operator"):
        found = view(rows, Query(card=card), NOW)
        assert sum(found["counts"].values()) == found["counted"] == len(rows)
    assert found["shown"] == found["counts"]["operator"] == 6


def test_a_page_has_the_rows_of_one_page() -> None:
    """Newest first; a page behind the last one is the last one."""
    rows = [line(number) for number in range(2 * PER_PAGE + 1)]
    first = view(reversed(rows), Query(), NOW)
    assert ids(first) == [row["id"] for row in rows[:PER_PAGE]]
    assert (first["shown"], first["pages"], first["first"]) == (2 * PER_PAGE + 1, 3, 0)
    last = view(rows, Query(page=9), NOW)
    assert (ids(last), last["page"], last["first"]) == ([rows[-1]["id"]], 3, 2 * PER_PAGE)
    none = view([], Query(page=2), NOW)
    assert (none["rows"], none["page"], none["pages"], none["known"]) == ([], 1, 1, 0)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"text": "NGINX pid 1001"}, [1]),
        ({"text": "nginx redis"}, []),
        ({"text": "too large"}, [2]),
        ({"host": "gamma"}, [3]),
        ({"host": "gamma", "state": "completed"}, [3]),
        ({"state": "refused"}, [2]),
        ({"card": "stayed"}, [2]),
        ({"card": "no such card"}, []),
        ({"batch": "b1"}, [1]),
        ({"range": "hour"}, [0, 1, 2, 3]),
        ({"page": "-1", "host": "gamma"}, [3]),
        ({"page": "\N{ARABIC-INDIC DIGIT ONE}", "host": "gamma"}, [3]),
    ],
    ids=str,
)
def test_filters(fields: dict[str, str], found: list[int]) -> None:
    """Alone and together; the search looks for each word."""
    rows = [
        line(0),
        line(1, batch="b1"),
        line(2, state=State.REFUSED, why="It is too large."),
        line(3, destination="gamma"),
        line(100, destination="delta"),
    ]
    expected = [rows[number]["id"] for number in found]
    assert ids(view(rows, Query.of(fields), NOW)) == expected


def test_a_range_of_time_is_by_this_machines_clock() -> None:
    """Its last minute belongs to it."""
    rows = [line(number) for number in range(10)]

    def minute(number: int) -> str:
        return time.strftime("%Y-%m-%dT%H:%M", time.localtime(NOW - 60 * number))

    found = view(rows, Query.of({"since": minute(5), "until": minute(3)}), NOW)
    assert ids(found) == [rows[number]["id"] for number in (3, 4, 5)]
    assert found["counted"] == 3
    for odd in ("yesterday", "9999999-01-01T00:00", "0001-01-01T00:00"):
        with pytest.raises(UsageError, match="is not a time"):
            Query.of({"since": odd})


def test_filters_offer_what_the_rows_have() -> None:
    """Batches newest first, states and hosts in their order, each once."""
    rows = [line(2, batch="old"), line(1, batch="new", source="zeta"), line(0, batch="new")]
    offers = view(rows, Query(host="zeta"), NOW)["offers"]
    assert offers == {
        "host": ["alpha", "beta", "zeta"],
        "batch": ["new", "old"],
        "state": ["completed"],
    }
