"""Flower as programs use it: metrics for Prometheus, and who may intervene. No browser needed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import pytest

from sojourn.cluster.audit import Trail
from sojourn.model import Phase, Role, State
from sojourn.state.message import Message
from sojourn.system.process import identity
from tests.conftest import eventually
from tests.integration.conftest import PLAN, Cluster, Redis
from tests.integration.door import Answer, Flower

pytest.importorskip("flower")


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster in which alpha is up and beta does not answer."""
    made = Cluster(redis, tmp_path_factory.mktemp("cluster"), hosts=("alpha",))
    try:
        made.start()
        made.announce("alpha")
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def flower(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Return a Flower with a login."""
    yield from _started(Flower(cluster.redis, tmp_path_factory.mktemp("flower")))


@pytest.fixture(scope="module")
def open_flower(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Return a Flower without a login."""
    yield from _started(Flower(cluster.redis, tmp_path_factory.mktemp("open"), login=""))


def _started(flower: Flower) -> Iterator[Flower]:
    try:
        flower.start()
        yield flower
    finally:
        flower.stop()


def test_metrics_show_migrations_and_need_no_login(flower: Flower, open_flower: Flower) -> None:
    """As documented, and as with Flower's own; the other pages ask for the login first."""
    flower.fill(3)
    for server in (flower, open_flower):
        answer = server.door.ask("/metrics", login=False)
        assert answer.code == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'sojourn_migrations_open{state="queued"} 3.0' in answer.text
        assert 'sojourn_host_up{host="alpha"} 1.0' in answer.text
        assert "flower_worker_online" in answer.text, "Flower's own are there too"
    assert flower.door.ask("/tasks", login=False).code == 401


@pytest.mark.parametrize("path", ["/", "/tasks", "/broker", "/metrics", "/migrations", "/nowhere"])
def test_without_a_login_only_localhost_is_answered(
    flower: Flower, open_flower: Flower, path: str
) -> None:
    """Another site may point its name at this machine, so that a browser here reads for it."""
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:5555"):
        assert open_flower.door.ask(path, headers={"Host": host}).code == 403
    assert flower.door.ask(path, headers={"Host": "flower.example"}).code != 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:5555", "[::1]:5555", "LOCALHOST:1"])
def test_localhost_has_several_names(open_flower: Flower, host: str) -> None:
    """With a port and without."""
    assert open_flower.door.ask("/tasks", headers={"Host": host}).code == 200


def test_metrics_of_a_redis_that_hangs_keep_no_page_waiting(flower: Flower) -> None:
    """They report it once that is known; pages that need no Redis are answered meanwhile."""
    assert flower.redis.child
    answers: list[Answer] = []
    scrape = threading.Thread(target=lambda: answers.append(flower.door.ask("/metrics")))
    os.kill(flower.redis.child.pid, signal.SIGSTOP)
    try:
        scrape.start()
        meanwhile = [flower.door.ask("/migrations/static/live.js").code for _ in range(3)]
        assert scrape.is_alive(), "the pages waited for it"
    finally:
        os.kill(flower.redis.child.pid, signal.SIGCONT)
        scrape.join()
    assert meanwhile == [200, 200, 200]
    assert answers[0].code == 200
    assert "sojourn_redis_up" in answers[0].text


@dataclass(frozen=True)
class Doubt:
    """A migration of which alpha has released the images, and beta does not answer."""

    cluster: Cluster
    flower: Flower
    message: Message

    def press(
        self, fields: dict[str, str], headers: dict[str, str], *, login: bool = True
    ) -> Answer:
        """Declare beta dead, as the button of the page does."""
        return self.flower.door.ask(
            f"/migrations/migration/{self.message.id}/resolve", fields, login=login, headers=headers
        )

    def assert_untouched(self) -> None:
        """Check that no decision was taken."""
        assert self.cluster.ledger.resolution(self.message.id) == {}
        assert self.cluster.phase(self.message, "alpha") == Phase.RELEASED


@pytest.fixture
def doubt(cluster: Cluster, flower: Flower) -> Doubt:
    """Return a migration in doubt, whose process is this one."""
    message, journal = cluster.message(), cluster.journal("alpha")
    entry = journal.open(message.id, Role.SOURCE, PLAN)
    entry = journal.learn(entry, {"root": asdict(identity(os.getpid()))})
    for phase in (Phase.FREEZING, Phase.FROZEN, Phase.RELEASED):
        entry = journal.advance(entry, phase)
    cluster.ledger.open(message.id, message.plan)
    cluster.ledger.record_doubt(message.id)
    return Doubt(cluster, flower, message)


CONFIRMED = {"gone": "destination", "typed": "beta"}


def test_a_decision_by_post_is_acted_on(doubt: Doubt) -> None:
    """With our token and the host's name: the source resumes, and the operator is recorded."""
    answer = doubt.press(CONFIRMED, doubt.flower.door.token())
    assert answer.code == 200, answer.text
    assert "The process runs on alpha." in json.loads(answer.text)["sentence"]
    assert doubt.cluster.state(doubt.message) is State.ROLLED_BACK
    assert doubt.cluster.phase(doubt.message, "alpha") == Phase.RESUMED
    assert doubt.cluster.ledger.resolution(doubt.message.id)["resolved_by"] == "ann in Flower"
    trail = Trail(doubt.cluster.store, doubt.cluster.settings("alpha").audit, "alpha")
    (asked,) = (entry for entry in trail.own() if entry.subject == doubt.message.id)
    assert (asked.action, str(asked.caller)) == ("resolve", "ann in Flower")
    assert asked.what == "pid 4242 from alpha to beta: the destination is dead"
    headers = doubt.flower.door.token()
    assert doubt.flower.door.ask("/migrations/host/alpha/cordon", {}, headers=headers).code == 200
    eventually(lambda: "cordon" in {entry.action for entry in trail.own()})
    (asked,) = (entry for entry in trail.own() if entry.action == "cordon")
    assert (asked.subject, str(asked.caller)) == ("alpha", "ann in Flower")
    doubt.cluster.registry.uncordon("alpha")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({**CONFIRMED, "typed": ""}, "type the name of the host, beta"),
        ({**CONFIRMED, "typed": "alpha"}, "type the name of the host, beta"),
        ({"gone": "source", "typed": "beta"}, "type the name of the host, alpha"),
        ({"typed": "beta"}, "Name the dead host"),
        ({"gone": "both", "typed": "beta"}, "Name the dead host"),
    ],
    ids=str,
)
def test_a_decision_without_confirmation_is_refused(
    doubt: Doubt, fields: dict[str, str], why: str
) -> None:
    """A wrong click or half a form does nothing; the answer names what is missing."""
    answer = doubt.press(fields, doubt.flower.door.token())
    assert answer.code == 409
    assert why in json.loads(answer.text)["sentence"]
    doubt.assert_untouched()


@pytest.mark.parametrize(
    "headers",
    [
        {"X-XSRFToken": ""},
        {"X-XSRFToken": "wrong"},
        {"Cookie": ""},
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_a_decision_from_another_site_is_refused(doubt: Doubt, headers: dict[str, str]) -> None:
    """The password alone is not enough, since a browser sends it by itself."""
    assert doubt.press(CONFIRMED, doubt.flower.door.token() | headers).code == 403
    doubt.assert_untouched()


def test_a_decision_without_a_login_is_refused(doubt: Doubt, open_flower: Flower) -> None:
    """Without the password; and by anybody where Flower has no login, though it shows the page."""
    token = doubt.flower.door.token()
    assert doubt.press(CONFIRMED, token, login=False).code == 401
    there = replace(doubt, flower=open_flower)
    assert open_flower.door.ask(f"/migrations/migration/{doubt.message.id}").code == 200
    assert there.press(CONFIRMED, open_flower.door.token()).code == 403
    doubt.assert_untouched()


MIGRATE = "/migrations/host/alpha/migrate"
WANTED = {"pid": "4242", "to": "beta", "mode": "post-copy"}


def test_a_migration_is_requested_by_our_own_page_only(cluster: Cluster, flower: Flower) -> None:
    """As any other button; a request that cannot be granted leaves no migration either."""
    before = cluster.ledger.ids(100)
    token = flower.door.token()
    for odd in ({"X-XSRFToken": ""}, {"Origin": "http://evil.example"}, {"Cookie": ""}):
        assert flower.door.ask(MIGRATE, WANTED, headers=token | odd).code == 403
    assert flower.door.ask(MIGRATE, WANTED, headers=token, login=False).code == 401
    for fields, why in (
        (WANTED, "There is no host beta."),
        (WANTED | {"pid": "self"}, "A PID is a whole number"),
        (WANTED | {"mode": "teleport"}, "There is no mode 'teleport'."),
        (WANTED | {"to": "alpha"}, "Source and destination are the same host"),
        (WANTED | {"bandwidth_mbit": "fast"}, "bandwidth_mbit is a number"),
    ):
        answer = flower.door.ask(MIGRATE, fields, headers=token)
        assert (answer.code, why in answer.text) == (409, True), answer.text
    assert cluster.ledger.ids(100) == before


def test_a_drain_with_an_odd_option_changes_nothing(cluster: Cluster, flower: Flower) -> None:
    """The host is not cordoned for a request that is refused."""
    fields = {"typed": "alpha", "mode": "teleport"}
    answer = flower.door.ask("/migrations/host/alpha/drain", fields, headers=flower.door.token())
    assert (answer.code, "There is no mode" in answer.text) == (409, True), answer.text
    assert not cluster.registry.is_cordoned("alpha")


def test_a_host_that_does_not_answer_lists_no_processes(
    cluster: Cluster, flower: Flower, open_flower: Flower
) -> None:
    """The page shows why; nobody without the password is answered, and no odd PID is asked for."""
    cluster.announce("gamma")
    cluster.registry.withdraw("gamma")
    for path in ("processes", "check?pid=4242&to=alpha"):
        answer = flower.door.ask(f"/migrations/host/gamma/{path}")
        assert answer.code in {409, 502}
        assert "The worker of host gamma does not answer." in answer.text
        assert flower.door.ask(f"/migrations/host/gamma/{path}", login=False).code == 401
        elsewhere = {"Sec-Fetch-Site": "cross-site"}
        assert flower.door.ask(f"/migrations/host/gamma/{path}", headers=elsewhere).code == 403
    odd = open_flower.door.ask("/migrations/host/alpha/check?pid=%3Cb%3E&to=gamma")
    assert (odd.code, "whole number" in odd.text) == (409, True)
