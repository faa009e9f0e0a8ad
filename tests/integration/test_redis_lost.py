"""Redis goes away while a step runs: the work and the journal go on without it."""

from __future__ import annotations

from typing import Any

from sojourn.model import Role
from sojourn.state.message import Outcome
from tests.conftest import eventually
from tests.integration.conftest import Cluster
from tests.integration.steps import let_go, zeroth


def test_a_step_does_not_need_redis(cluster: Cluster) -> None:
    """The step succeeds in the journal, the lost ledger is a warning, and the worker lives on."""
    message = cluster.message(zeroth="wait")
    cluster.send(zeroth, message, "alpha")
    eventually(lambda: cluster.acts(message))
    cluster.redis.stop()
    let_go(cluster.place, message.id)
    journal = cluster.journal("alpha")
    entry = journal.entry(message.id, Role.SOURCE)
    assert entry is not None
    facts: Any = {"zeroth_source": "alpha"}
    done = Outcome("zeroth is done", facts)
    eventually(lambda: journal.outcome(entry, "test_zeroth") == done)
    eventually(lambda: "Not recorded in the ledger" in cluster.log("alpha"))
    cluster.redis.start()
    again = cluster.message()
    cluster.send(zeroth, again, "alpha")
    eventually(lambda: cluster.acts(again), within_s=30)
    assert cluster.workers["alpha"].poll() is None
