"""One step and its deliveries, on real workers: twice, at once, late, temporary, too slow."""

from __future__ import annotations

from typing import Any

import pytest

from sojourn.migration.answers import ANSWERS
from sojourn.model import Role
from sojourn.state.message import Message, Outcome
from tasks.policy import HostStep
from tests.conftest import eventually
from tests.integration.conftest import Cluster
from tests.integration.steps import (
    early,
    first,
    let_go,
    overtaken,
    quick,
    quick_undo,
    second,
    undo_first,
    undo_second,
    zeroth,
)


def _sent(cluster: Cluster, step: HostStep, message: Message, host: str) -> Any:
    """Send a step and wait for its end, whatever it is."""
    answer = cluster.send(step, message, host)
    answer.get(timeout=20, propagate=False)
    return answer


def _outcome(cluster: Cluster, message: Message, role: Role, step: str) -> Outcome | None:
    journal = cluster.journal("alpha" if role is Role.SOURCE else "beta")
    entry = journal.entry(message.id, role)
    return journal.outcome(entry, step) if entry else None


def _failure(cluster: Cluster, message: Message) -> tuple[str, str]:
    account = cluster.ledger.account(message.id)
    assert account is not None
    assert account.failure is not None
    return account.failure.code, account.failure.message


def _said(text: str) -> dict[str, Any]:
    """Return the facts of a message, without what is sealed anew each time."""
    facts = Message.from_text(text).facts
    return {name: fact for name, fact in facts.items() if name not in ANSWERS.values()}


def test_twice(cluster: Cluster) -> None:
    """A step that is delivered twice is done once, and both answers are the same."""
    message = cluster.message()
    answers = [_said(_sent(cluster, zeroth, message, "alpha").result) for _ in range(2)]
    assert answers == [{"zeroth_source": "alpha"}] * 2
    assert cluster.acts(message) == ["zeroth@alpha"]


def test_an_outcome_that_does_not_last(cluster: Cluster) -> None:
    """That memory was still on its way is no answer to a later delivery, which looks again."""
    message = cluster.message()
    assert _sent(cluster, zeroth, message, "alpha").successful()
    for _ in range(2):
        assert _sent(cluster, early, message, "alpha").successful()
    assert cluster.acts(message).count("early@alpha") == 2


def test_two_at_once(cluster: Cluster) -> None:
    """Two deliveries at once are kept apart; the second is answered with the first's outcome."""
    message = cluster.message(zeroth="wait")
    answers = [cluster.send(zeroth, message, "alpha") for _ in range(2)]
    eventually(lambda: {answer.id for answer in answers} <= cluster.under_way())
    assert cluster.acts(message) == ["zeroth@alpha"]
    let_go(cluster.place, message.id)
    assert _said(answers[0].get(timeout=10)) == _said(answers[1].get(timeout=10))
    assert cluster.acts(message) == ["zeroth@alpha"]


def test_two_migrations_at_once(cluster: Cluster) -> None:
    """Migrations do not wait for each other."""
    waiting, other = cluster.message(zeroth="wait"), cluster.message()
    answer = cluster.send(zeroth, waiting, "alpha")
    eventually(lambda: cluster.acts(waiting))
    assert _sent(cluster, zeroth, other, "alpha").successful()
    let_go(cluster.place, waiting.id)
    answer.get(timeout=10)


def test_a_failed_step_may_be_tried_again(cluster: Cluster) -> None:
    """A failure is not an outcome: a later delivery does the work."""
    message = cluster.message(zeroth="temporary 1")
    assert _sent(cluster, zeroth, message, "alpha").failed()
    assert _sent(cluster, zeroth, message, "alpha").successful()


def test_temporary(cluster: Cluster) -> None:
    """What fails for the moment is tried again with back-off, and succeeds."""
    message = cluster.message(second="temporary 2")
    _sent(cluster, zeroth, message, "beta")
    assert _sent(cluster, second, message, "beta").successful()
    assert cluster.acts(message).count("second@beta") == 3
    outcome = _outcome(cluster, message, Role.DESTINATION, "test_second")
    assert outcome is not None
    assert outcome.sentence == "second is done"


def test_temporary_for_too_long(cluster: Cluster) -> None:
    """After the maximum number of attempts the last failure counts, once."""
    message = cluster.message(second="temporary 99")
    cluster.ledger.open(message.id, message.plan)
    _sent(cluster, zeroth, message, "beta")
    answer = _sent(cluster, second, message, "beta")
    assert answer.failed()
    assert "second has no room on beta" in str(answer.result)
    assert cluster.acts(message).count("second@beta") == 3
    assert _failure(cluster, message) == ("TEMPORARY", "second has no room on beta")
    assert _outcome(cluster, message, Role.DESTINATION, "test_second") is None


def test_temporary_for_too_long_names_the_step(cluster: Cluster) -> None:
    """A failure has its step and host after retries too: whether it is a refusal depends on it."""
    message = cluster.message(second="temporary 99")
    cluster.ledger.open(message.id, message.plan)
    _sent(cluster, zeroth, message, "beta")
    _sent(cluster, second, message, "beta")
    account = cluster.ledger.account(message.id)
    assert account is not None
    assert account.failure is not None
    assert (account.failure.step, account.failure.host) == ("test_second", "beta")


def test_too_slow(cluster: Cluster) -> None:
    """A step that takes longer than it may is stopped and recorded, and its worker goes on."""
    message = cluster.message(quick="slow")
    cluster.ledger.open(message.id, message.plan)
    assert _sent(cluster, quick, message, "alpha").failed()
    assert _failure(cluster, message)[0] == "STEP_TIMED_OUT"
    (record,) = cluster.journal("alpha").steps(message.id)
    assert record.failed
    assert _sent(cluster, zeroth, cluster.message(), "alpha").successful()


def test_what_is_pending_is_not_kept(cluster: Cluster) -> None:
    """What an undo could not do travels on, but no journal keeps it: it may be done next time."""
    message = cluster.message()
    assert _sent(cluster, zeroth, message, "alpha").successful()
    pending = message.with_facts({"pending": ["alpha: full"], "page_port": 1})
    answer = _sent(cluster, undo_first, pending, "alpha").get()
    assert Message.from_text(answer).facts["pending"] == ["alpha: full"]
    entry = cluster.journal("alpha").entry(message.id, Role.SOURCE)
    assert entry is not None
    assert entry.facts == {"page_port": 1}


def test_an_undo_behind_a_step_that_does_not_end(cluster: Cluster) -> None:
    """An undo that cannot have the lock is pending, as after any other failure."""
    message = cluster.message(zeroth="wait")
    forward = cluster.send(zeroth, message, "alpha")
    eventually(lambda: cluster.acts(message))
    try:
        answer = _sent(cluster, quick_undo, message, "alpha").get(timeout=5)
        assert "pending" in Message.from_text(answer).facts
    finally:
        let_go(cluster.place, message.id)
        forward.get(timeout=10)


@pytest.mark.parametrize(
    ("host", "undo", "phase"), [("alpha", undo_first, "resumed"), ("beta", undo_second, "refused")]
)
def test_a_tombstone(cluster: Cluster, host: str, undo: HostStep, phase: str) -> None:
    """An undo on a host without a row of the migration leaves a final one: no late step begins."""
    message = cluster.message()
    assert _sent(cluster, undo, message, host).successful()
    assert cluster.phase(message, host) == phase
    late = _sent(cluster, zeroth, message, host)
    assert late.failed()
    assert f"the migration is {phase} there" in str(late.result)
    assert cluster.acts(message) == [f"{undo.name.removeprefix('test_')}@{host}"]


def test_a_step_in_a_phase_that_is_not_its_own(cluster: Cluster) -> None:
    """A step whose migration has gone on without it is refused before it does anything."""
    message = cluster.message()
    assert _sent(cluster, zeroth, message, "alpha").successful()
    late = _sent(cluster, overtaken, message, "alpha")
    assert late.failed()
    assert "Too late to test_overtaken on alpha: the migration is open there." in str(late.result)
    assert cluster.acts(message) == ["zeroth@alpha"]


def test_a_late_step_does_not_hide_why(cluster: Cluster) -> None:
    """A step that comes after the rollback is refused, and the first failure stays reported."""
    message = cluster.message(**{"zeroth@alpha": "fail"})
    cluster.ledger.open(message.id, message.plan)
    _sent(cluster, zeroth, message, "alpha")
    _sent(cluster, undo_second, message, "beta")
    assert _sent(cluster, zeroth, message, "beta").failed()
    assert _failure(cluster, message) == ("COMMAND_FAILED", "zeroth broke on alpha")


def test_a_step_in_the_middle_of_nothing(cluster: Cluster) -> None:
    """A step that opens no migration is refused where there is none, and leaves no row."""
    message = cluster.message()
    answer = _sent(cluster, first, message, "alpha")
    assert answer.failed()
    assert "has no record of migration" in str(answer.result)
    assert cluster.phase(message, "alpha") is None


def test_a_host_without_a_part(cluster: Cluster) -> None:
    """A message that comes to a host which has no part in the migration does nothing there."""
    message = cluster.message()
    other = Message(message.id, type(message.plan)(5, "gamma", "beta"))
    assert _sent(cluster, zeroth, other, "alpha").failed()
    assert cluster.acts(message) == []
