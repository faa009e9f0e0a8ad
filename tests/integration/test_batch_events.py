"""The events that followers of a batch get, and that they read nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from sojourn.cli import overview
from sojourn.cluster.account import Event
from sojourn.cluster.batches import Batches, BatchState, Part, Record
from sojourn.cluster.ledger import Ledger
from sojourn.cluster.store import Store
from tests.integration.conftest import PLAN, Redis

END = {"state": "completed", "pid": 4242, "source": "alpha", "destination": "beta", "failure": None}


@pytest.fixture
def store(redis: Redis) -> Store:
    """Give out a connection."""
    return Store(redis.url)


@pytest.fixture
def batches(store: Store) -> Batches:
    """Give out the batches."""
    return Batches(store, 60)


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """Give out the ledger, whose stream the events are in."""
    return Ledger(store, 60)


def _part() -> Part:
    return Part(1, PLAN.to_json(), str(uuid4()))


def _events(ledger: Ledger, bookmark: str) -> list[Event]:
    """Return the events behind a bookmark."""
    return list(itertools.takewhile(bool, ledger.follow(bookmark)))  # type: ignore[arg-type]


def test_each_change_of_a_batch_is_an_event(batches: Batches, ledger: Ledger) -> None:
    """Under the batch's id; what changes nothing announces nothing."""
    batch, bookmark = str(uuid4()), ledger.bookmark()
    acts: list[Any] = [
        lambda: batches.plan(batch, "plan", {}, "me"),
        lambda: batches.open(batch, [_part()], []),
        lambda: batches.turn(batch, BatchState.PAUSED, BatchState.RUNNING),
        lambda: batches.end(batch, 1, END),
    ]
    for number, act in enumerate(acts, 1):
        act()
        events = _events(ledger, bookmark)
        assert [(event.migration, event.kind) for event in events] == [(batch, "batch")] * number
    assert not batches.turn(batch, BatchState.PAUSED, BatchState.RUNNING)
    assert batches.end(batch, 1, END) is None
    assert len(_events(ledger, bookmark)) == len(acts)


def test_a_change_of_state_has_the_state(batches: Batches, ledger: Ledger) -> None:
    """A follower of a batch learns its end without reading it after every change."""
    batch = str(uuid4())
    batches.plan(batch, "plan", {}, "me")
    batches.open(batch, [_part()], [])
    bookmark = ledger.bookmark()
    batches.turn(batch, BatchState.PAUSED, BatchState.RUNNING)
    batches.rest(batch)
    batches.end(batch, 1, END)
    batches.rest(batch)
    batches.rest(batch)
    assert [event.data for event in _events(ledger, bookmark)] == [
        {"state": "paused"},
        {},
        {"state": "finished"},
    ]


def test_an_end_is_shown_at_once(batches: Batches, ledger: Ledger) -> None:
    """However recently the batch was read."""
    batch, part = str(uuid4()), _part()
    batches.plan(batch, "plan", {}, "me")
    batches.open(batch, [part], [])

    def follow(after: str) -> Iterator[Event | None]:
        """Announce the end; no event follows."""
        yield Event(part.migration, "step", {"name": "dump"})
        batches.end(batch, 1, END)
        yield Event(batch, "batch", {})
        batches.rest(batch)
        yield Event(batch, "batch", {"state": "finished"})
        pytest.fail("it waits for more")

    cluster: Any = SimpleNamespace(batches=batches, ledger=SimpleNamespace(follow=follow))
    assert list(overview._steps(overview.Overview(cluster, batch), ledger.bookmark())) == [(1, END)]


@dataclass
class Counting:
    """Batches that count how often they are read."""

    batches: Batches
    reads: int = field(default=0)

    def record(self, batch: str) -> Record | None:
        """Return a batch."""
        self.reads += 1
        return self.batches.record(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)


def test_a_batch_is_read_when_it_has_changed(batches: Batches, ledger: Ledger) -> None:
    """Once at the beginning and once per burst of events, however long the wait in between."""
    batch, bookmark = str(uuid4()), ledger.bookmark()
    part = _part()
    batches.plan(batch, "plan", {}, "me")
    batches.open(batch, [part], [])
    counting = Counting(batches)

    def follow(after: str) -> Iterator[Event | None]:
        """Yield nothing for a while, then let the batch end, as its last event announces."""
        yield from [None] * 5
        assert counting.reads == 1
        yield Event(part.migration, "step", {"name": "dump"})
        assert counting.reads == 1
        batches.end(batch, 1, END)
        batches.turn(batch, BatchState.FINISHED, BatchState.RUNNING)
        yield Event(batch, "batch", {})
        yield None

    cluster: Any = SimpleNamespace(batches=counting, ledger=SimpleNamespace(follow=follow))
    assert list(overview._steps(overview.Overview(cluster, batch), bookmark)) == [(1, END)]
    assert counting.reads == 2
