"""What somebody writes into Redis who has no key: nothing is done by it, and the rest goes on.

Real workers with their reconcilers, which look several times a second. Each forged record is as
good as it can be without the key.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, cast

import pytest
from celery.exceptions import TimeoutError as NoAnswer
from celery.signals import before_task_publish
from redis import Redis as Client

from sojourn.client import migrate
from sojourn.cluster.batches import Batches, Part
from sojourn.cluster.queue import SCRIPTS, Counts, Entry
from sojourn.errors import MigrationError
from sojourn.messaging.client import the_client
from sojourn.messaging.names import DRAIN
from sojourn.model import Json, Phase, Role, State, Verdict
from sojourn.security.seal import Seal
from sojourn.state.facts import Facts
from sojourn.state.message import Message
from sojourn.system.process import identity
from tasks.dump import resume
from tests.conftest import eventually
from tests.integration.conftest import KEY, Cluster, Redis
from tests.integration.steps import let_go, marker
from tests.integration.test_signing import meant_for
from workflows.batch import abort_batch, resume_batch
from workflows.recover import abort

#: How long a test watches that nothing is done: about seven looks of each reconciler.
WATCHED_S = 2.0


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give out hosts whose reconcilers look often."""
    made = Cluster(
        redis,
        tmp_path_factory.mktemp("cluster"),
        reconcile=True,
        lease_s=2,
        reconcile_s=0.3,
        stall_s=0.5,
    )
    with made.called_by_programs():
        made.start()
        made.announce(max_outgoing=4)
        yield made


@pytest.fixture
def attacker(cluster: Cluster) -> Any:
    """Give out a way to Redis, and no key."""
    return Client.from_url(cluster.redis.url, decode_responses=True)


def refused(cluster: Cluster, kind: str) -> float:
    """Return how many records of a kind the cluster has refused."""
    return cluster.ledger.counted().get(("refused", kind), 0.0)


def queue_up(attacker: Any, message: Message, plan: str) -> None:
    """Queue a migration by the script that hosts use."""
    fields = {"id": message.id, "batch": message.id, "priority": 0, "delay": 0, "plan": plan}
    hosts = {"source": message.plan.source, "destination": message.plan.destination}
    attacker.eval(SCRIPTS["put"], 0, json.dumps([fields | hosts]))


def untouched(cluster: Cluster, message: Message) -> bool:
    """Watch a migration for a while; return whether no host has done anything for it."""
    time.sleep(WATCHED_S)
    return cluster.acts(message) == [] and cluster.phase(message, "alpha") is None


def test_an_entry_of_the_queue(cluster: Cluster, attacker: Any) -> None:
    """No process moves; what was queued behind it does."""
    forged, ours = cluster.migration(1001), cluster.migration(1002)
    queue_up(attacker, forged, json.dumps(forged.plan.to_json()))
    cluster.queue.put([Entry(ours.id, ours.id, ours.plan.to_json())])
    reported(cluster, f"The queue entry of {forged.id} carries no seal")
    eventually(lambda: cluster.state(ours) is State.COMPLETED, within_s=60)
    assert untouched(cluster, forged)
    assert refused(cluster, "queue entry") == 1
    eventually(lambda: cluster.queue.counts() == Counts(0, 0, 0, 0))


def test_a_good_entry_under_another_id(cluster: Cluster, attacker: Any) -> None:
    """A seal is for one migration: copied, it moves nothing a second time."""
    ours, forged = cluster.migration(1003), cluster.migration(1003)
    cluster.queue.pause(ours.id)
    cluster.queue.put([Entry(ours.id, ours.id, ours.plan.to_json())])
    plan = attacker.hget(f"sojourn:queue:entry:{ours.id}", "plan")
    queue_up(attacker, forged, plan)
    reported(cluster, f"The seal on the queue entry of {forged.id} is wrong")
    assert untouched(cluster, forged)
    cluster.queue.resume(ours.id)
    eventually(lambda: cluster.state(ours) is State.COMPLETED, within_s=60)


def reported(cluster: Cluster, sentence: str) -> None:
    """Wait until one of the hosts has logged why it refuses something."""
    eventually(lambda: sentence in cluster.log("alpha") + cluster.log("beta"), within_s=60)


def forge_batch(attacker: Any, batch: str, *parts: str, **fields: str) -> None:
    """Write a batch that is under way, and waits for nothing, as its hash and its parts."""
    asked = {"kind": '"plan"', "asked": '{"lines": 1}', "by": '"ann"', "created": str(time.time())}
    known = {"total": str(len(parts)), "state": "running", "stays": "[]"}
    attacker.zadd("sojourn:batches", {batch: time.time()})
    attacker.hset(f"sojourn:batch:{batch}", mapping=asked | known | fields)
    for number, part in enumerate(parts, 1):
        attacker.hset(f"sojourn:batch:{batch}:parts", str(number), part)


def part_of(message: Message) -> Part:
    """Return a migration as the first part of a batch."""
    return Part(1, message.plan.to_json(), message.id)


def test_a_batch(cluster: Cluster, attacker: Any) -> None:
    """No process moves, however its record and its parts look."""
    forged = cluster.migration(1101)
    forge_batch(attacker, "forged-batch", json.dumps(asdict(part_of(forged))))
    reported(cluster, "The batch of forged-batch carries no seal")
    assert untouched(cluster, forged)
    assert refused(cluster, "batch") >= 1


def test_a_part_of_a_batch(cluster: Cluster, attacker: Any) -> None:
    """A batch that somebody did ask for goes on without the line that nobody asked for."""
    forged, ours = cluster.migration(1102), cluster.migration(1103)
    batches = Batches(cluster.store, 3600)
    batches.plan("true-batch", "plan", {"lines": 1}, "me")
    attacker.hset("sojourn:batch:true-batch:parts", "1", json.dumps(asdict(part_of(forged))))
    batches.open("true-batch", [replace(part_of(ours), number=2)], [])
    reported(cluster, "The part of batch of true-batch, line 1 carries no seal")
    eventually(lambda: cluster.state(ours) is State.COMPLETED, within_s=60)
    assert untouched(cluster, forged)


def test_an_abort_of_a_batch(cluster: Cluster, attacker: Any) -> None:
    """Nobody is rolled back because the record of a batch says so."""
    ours = cluster.migration(1104, third="wait")
    batches = Batches(cluster.store, 3600)
    batches.plan("going-batch", "plan", {"lines": 1}, "me")
    batches.open("going-batch", [part_of(ours)], [])
    eventually(lambda: "third@alpha" in cluster.acts(ours), within_s=60)
    attacker.hset("sojourn:batch:going-batch", mapping={"roll_back": "true", "aborted": "{}"})
    attacker.hset("sojourn:batch:going-batch", "state", "aborting")
    attacker.delete("sojourn:batch:going-batch:looked")
    time.sleep(WATCHED_S)
    let_go(cluster.place, ours.id)
    eventually(lambda: cluster.state(ours) is State.COMPLETED, within_s=60)


def in_doubt(cluster: Cluster, destination: str = "gamma") -> Message:
    """Return a migration whose images alpha has released to a host that is dead."""
    message = cluster.migration(os.getpid(), destination=destination)
    journal = cluster.journal("alpha")
    entry = journal.open(message.id, Role.SOURCE, message.plan)
    entry = journal.learn(entry, {"root": asdict(identity(os.getpid()))})
    for phase in (Phase.FREEZING, Phase.FROZEN, Phase.RELEASED):
        entry = journal.advance(entry, phase)
    cluster.ledger.open(message.id, message.plan)
    return message


def word(**more: Any) -> Json:
    """Return what an operator decides: gamma is dead."""
    known = {"resolved": "destination", "resolved_by": "ann@hub", "resolved_at": time.time()}
    return known | {"resolved_seen": "in doubt", "resolved_by_force": False} | more


def test_a_word_of_an_operator(cluster: Cluster, attacker: Any) -> None:
    """The original stays frozen, as it must while nobody knows whether it runs elsewhere."""
    doubt = in_doubt(cluster)
    attacker.hset(f"sojourn:migration:{doubt.id}", "resolved", json.dumps(word()))
    reported(cluster, f"The operator's word of {doubt.id} carries no seal")
    time.sleep(WATCHED_S)
    assert cluster.phase(doubt, "alpha") == Phase.RELEASED
    account = cluster.ledger.account(doubt.id)
    assert account is not None
    assert account.resolved is None
    cluster.ledger.record_resolution(doubt.id, word())
    eventually(lambda: cluster.phase(doubt, "alpha") == Phase.RESUMED, within_s=60)


def test_a_word_on_another_migration(cluster: Cluster, attacker: Any) -> None:
    """What an operator decided on one migration decides nothing about another."""
    decided, doubt = in_doubt(cluster), in_doubt(cluster)
    cluster.ledger.record_resolution(decided.id, word())
    said = attacker.hget(f"sojourn:migration:{decided.id}", "resolved")
    attacker.hset(f"sojourn:migration:{doubt.id}", "resolved", said)
    reported(cluster, f"The seal on the operator's word of {doubt.id} is wrong")
    time.sleep(WATCHED_S)
    assert cluster.phase(doubt, "alpha") == Phase.RELEASED


def test_a_word_on_a_host_that_lives(cluster: Cluster) -> None:
    """The host that would act does not, while the other announces itself; unless it is forced."""
    cluster.announce("gamma")
    try:
        doubt = in_doubt(cluster)
        cluster.ledger.record_resolution(doubt.id, word())
        reported(cluster, "ann@hub declared gamma dead, but that host announces itself")
        time.sleep(WATCHED_S)
        assert cluster.phase(doubt, "alpha") == Phase.RELEASED
        cluster.ledger.record_resolution(doubt.id, word(resolved_by_force=True))
        eventually(lambda: cluster.phase(doubt, "alpha") == Phase.RESUMED, within_s=60)
    finally:
        cluster.registry.withdraw("gamma")


def asked_to_resume(cluster: Cluster, message: Message, **facts: Any) -> None:
    """Send alpha a message, signed with the key, and wait until that was taken."""
    told = Message(message.id, message.plan, cast("Facts", facts))
    cluster.send(resume, told, "alpha.frozen").get(timeout=60, propagate=False)


def answer(host: str, message: Message, verdict: Verdict) -> str:
    """Return the answer of a host about a migration, with the key that this host has."""
    return Seal(KEY, host).close("answer", message.id, {"verdict": verdict})


def test_a_verdict_of_another_host(cluster: Cluster) -> None:
    """Only the host that the plan in our own journal names gives the verdict, for its migration."""
    doubt, other = in_doubt(cluster, "delta"), in_doubt(cluster, "delta")
    for verdict in Verdict:
        forged: dict[str, Json] = {
            "nobody's": {},
            "a third host's": {"destination_answer": answer("beta", doubt, verdict)},
            "its own": {"destination_answer": answer("alpha", doubt, verdict)},
            "another's": {"destination_answer": answer("delta", other, verdict)},
            "no text": {"destination_answer": {"verdict": verdict}},
        }
        for said in forged.values():
            asked_to_resume(cluster, doubt, verdict=verdict, unsettled=False, **said)
            assert cluster.phase(doubt, "alpha") == Phase.RELEASED, said
    assert f"The answer of {doubt.id} was sealed by beta, not by delta." in cluster.log("alpha")
    assert "of delta without an answer that delta has sealed" in cluster.log("alpha")
    assert refused(cluster, "answer") >= 5
    genuine = answer("delta", doubt, Verdict.REFUSED)
    # What stands beside the answer does not count.
    asked_to_resume(cluster, doubt, verdict=Verdict.RESTORED, destination_answer=genuine)
    assert cluster.phase(doubt, "alpha") == Phase.RESUMED


def test_a_word_on_a_host_that_answered(cluster: Cluster) -> None:
    """It is not dead, whatever an operator was shown: that word counts never, another one may."""
    doubt, other = in_doubt(cluster, "epsilon"), in_doubt(cluster, "epsilon")
    said = Seal(KEY, "epsilon").close("answer", other.id, {"phase": "reserved"})
    asked_to_resume(cluster, other, destination_answer=said)
    decided = word()
    cluster.ledger.record_resolution(doubt.id, decided)
    reported(cluster, "ann@hub declared epsilon dead, but that host answered")
    asked_to_resume(cluster, doubt, **decided)
    assert cluster.phase(doubt, "alpha") == Phase.RELEASED
    account = cluster.ledger.account(doubt.id)
    assert account is not None
    assert [(step.name, step.failed) for step in account.steps] == [("resolve", True)]
    cluster.ledger.record_resolution(doubt.id, word(resolved_by_force=True))
    eventually(lambda: cluster.phase(doubt, "alpha") == Phase.RESUMED, within_s=60)


def test_the_plan_in_the_ledger(cluster: Cluster, attacker: Any) -> None:
    """An abort that goes to another destination brings its verdict, which decides nothing."""
    doubt = in_doubt(cluster)
    changed = doubt.plan.to_json() | {"destination": "beta"}
    attacker.hset(f"sojourn:migration:{doubt.id}", "plan", json.dumps(changed))
    account = cluster.ledger.account(doubt.id)
    assert account is not None
    abort(Message(account.id, account.plan))
    reported(cluster, f"alpha has migration {doubt.id} with another plan")
    time.sleep(WATCHED_S)
    assert cluster.phase(doubt, "alpha") == Phase.RELEASED


def entry_of(attacker: Any, message: Message) -> Any:
    """Return a migration's entry of the queue, as anybody can read it."""
    return attacker.hgetall(f"sojourn:queue:entry:{message.id}")


def give_up(attacker: Any, message: Message, entry: Any) -> None:
    """Make the queue show a migration as one that was handed out too often and never began."""
    given_up = entry | {"state": "given-up", "tries": "3", "why": "alpha fell silent"}
    attacker.hset(f"sojourn:queue:entry:{message.id}", mapping=given_up)
    attacker.zadd("sojourn:queue:given-up", {message.id: 1})


def without_steps(attacker: Any, message: Message) -> None:
    """Remove from the ledger all that shows that a migration has begun."""
    key = f"sojourn:migration:{message.id}"
    steps = [name for name in attacker.hkeys(key) if name.startswith("step:")]
    attacker.hdel(key, "none", *steps)


def test_given_up_though_it_has_begun(cluster: Cluster, attacker: Any) -> None:
    """The source knows better than the queue and the ledger: it goes on."""
    ours = cluster.migration(1105, third="wait")
    migrate.apply_async(kwargs=ours.plan.to_json(), task_id=ours.id)
    eventually(lambda: "third@alpha" in cluster.acts(ours), within_s=60)
    entry = entry_of(attacker, ours)

    def is_asked() -> bool:
        # Again and again, since the reconcilers write anew what the ledger lacks.
        without_steps(attacker, ours)
        give_up(attacker, ours, entry)
        return "nothing was done: it has begun, and is open on alpha" in cluster.log("alpha")

    eventually(is_asked, within_s=12)
    let_go(cluster.place, ours.id)
    eventually(lambda: cluster.state(ours) is State.COMPLETED, within_s=60)


def test_given_up_unbegun(cluster: Cluster, attacker: Any) -> None:
    """It has an end, and the source begins it no more."""
    ours = cluster.migration(1106)
    cluster.ledger.open(ours.id, ours.plan)
    cluster.queue.pause(ours.id)
    cluster.queue.put([Entry(ours.id, ours.id, ours.plan.to_json())])
    give_up(attacker, ours, entry_of(attacker, ours))
    eventually(lambda: cluster.state(ours) is State.ROLLED_BACK, within_s=60)
    account = cluster.ledger.account(ours.id)
    assert account is not None
    assert account.failure is not None
    assert account.failure.message.endswith("never began it: alpha fell silent.")
    assert cluster.phase(ours, "alpha") == Phase.RESUMED


def test_what_was_withdrawn_is_put_back(cluster: Cluster, attacker: Any) -> None:
    """Its entry is as good as it was, and the ledger has forgotten it; the source has not."""
    ours = cluster.migration(1107)
    cluster.queue.pause(ours.id)
    cluster.ledger.open(ours.id, ours.plan)
    cluster.queue.put([Entry(ours.id, ours.id, ours.plan.to_json())])
    plan = entry_of(attacker, ours)["plan"]
    abort(ours, waits=True)
    eventually(lambda: cluster.phase(ours, "alpha") == Phase.RESUMED, within_s=60)
    attacker.delete(f"sojourn:migration:{ours.id}")
    cluster.queue.resume(ours.id)
    queue_up(attacker, ours, plan)
    reported(cluster, "Too late to test_zeroth on alpha: the migration is resumed there")
    assert [act for act in cluster.acts(ours) if not act.startswith("undo")] == []


def test_an_end_in_the_ledger(cluster: Cluster, attacker: Any) -> None:
    """A destination that waits for the memory waits on, whatever the ledger shows of its end."""
    ours = cluster.migration(1108)
    cluster.ledger.open(ours.id, ours.plan)
    journal = cluster.journal("beta")
    journal.open(ours.id, Role.DESTINATION, ours.plan)
    end = {"state": "completed", "owner": "beta", "failure": None, "id": ours.id}
    forged = {"state": '"completed"', "result": json.dumps(end)}
    attacker.hset(f"sojourn:migration:{ours.id}", mapping=forged)
    reported(cluster, f"The end of a migration of {ours.id} carries no seal")
    time.sleep(WATCHED_S)
    assert cluster.phase(ours, "beta") == Phase.RESERVED
    cluster.ledger.close(ours.id, end)
    eventually(lambda: cluster.phase(ours, "beta") == Phase.REFUSED, within_s=60)


def test_a_recorded_request_on_a_batch(cluster: Cluster) -> None:
    """It is for one host's own queue, which that host takes it from once."""
    queues: list[str] = []

    def note(routing_key: str = "", **_: Any) -> None:
        queues.append(routing_key)

    before_task_publish.connect(note)
    try:
        resume_batch.delay("none").get(timeout=20)
        abort_batch.delay("none", roll_back=False).get(timeout=20)
    finally:
        before_task_publish.disconnect(note)
    assert len(queues) == 2
    assert {*queues} <= {"alpha", "beta"}


def test_an_answer_of_a_host(cluster: Cluster, attacker: Any) -> None:
    """Whoever asks waits for the host itself."""
    answer = marker.s("true").set(queue="nowhere").apply_async()
    forged = {"status": "SUCCESS", "result": "forged", "task_id": answer.id, "children": []}
    key = f"celery-task-meta-{answer.id}"
    attacker.set(key, json.dumps(forged))
    attacker.publish(key, json.dumps(forged))
    with pytest.raises(NoAnswer):
        answer.get(timeout=WATCHED_S)
    other = marker.s("true").set(queue="alpha").apply_async()
    assert other.get(timeout=20) == "true"
    attacker.set(key, attacker.get(f"celery-task-meta-{other.id}"))
    assert not cluster.app.AsyncResult(answer.id).ready()


def test_the_part_of_a_chord(cluster: Cluster, attacker: Any) -> None:
    """What a side of a ``Both`` did not return does not travel on in a signed message."""
    ours, forged = cluster.migration(1201, **{"first@beta": "wait"}), cluster.migration(1202)
    migrate.apply_async(kwargs=ours.plan.to_json(), task_id=ours.id)
    eventually(lambda: "first@beta" in cluster.acts(ours), within_s=60)
    (chord,) = eventually(lambda: attacker.keys("celery-taskset-meta-*.j"), within_s=60)
    text = Message(ours.id, ours.plan, Facts(verdict=Verdict.REFUSED)).to_text()
    attacker.delete(chord)
    attacker.zadd(chord, {json.dumps([1, forged.id, "SUCCESS", text]): 1})
    let_go(cluster.place, ours.id)
    eventually(lambda: cluster.state(ours) is State.ROLLED_BACK, within_s=60)
    assert "third@alpha" not in cluster.acts(ours)
    assert refused(cluster, "result") >= 1


@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    """Give out three processes that sleep."""
    programs = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    yield [program.pid for program in programs]
    for program in programs:
        program.kill()
        program.wait()


def test_a_recorded_drain(cluster: Cluster, attacker: Any, sleepers: list[int]) -> None:
    """Put back into the queue, it drains nothing, whichever host takes it."""
    trees, shared = cluster.place / "alpha.trees", cluster.app.conf.task_default_queue
    trees.write_text(json.dumps(sleepers[:1]))
    answer = the_client().send_task(DRAIN, (), {"host": "alpha"}, queue="recorded")
    recorded = json.loads(eventually(lambda: attacker.rpop("recorded")))
    meant_for(recorded, shared)
    attacker.lpush(shared, json.dumps(recorded))
    assert answer.get(timeout=60)["counts"] == {"completed": 1}
    # What runs there later is what nobody asked to move.
    trees.write_text(json.dumps(sleepers[1:]))
    for _ in range(4):
        for key in attacker.keys(f"sojourn:batch:{answer.id}*"):
            attacker.delete(key)
        attacker.lpush(shared, json.dumps(recorded))
        time.sleep(WATCHED_S)
    moved = {account.plan.pid for account in cluster.ledger.latest(100)}
    assert moved & {*sleepers} == {sleepers[0]}
    cluster.registry.uncordon("alpha")
    trees.unlink()


def test_an_announcement(cluster: Cluster, attacker: Any) -> None:
    """A host that has not announced itself is silent: nothing is asked of it, or placed there."""
    forged = json.loads(attacker.get("sojourn:host:beta"))
    attacker.sadd("sojourn:hosts", "delta")
    attacker.set("sojourn:host:delta", json.dumps(forged | {"name": "delta"}))
    assert not cluster.registry.are_alive("delta")
    attacker.set("sojourn:host:delta", attacker.get("sojourn:host:beta"))
    assert not cluster.registry.are_alive("delta")
    answer = migrate.delay(pid=1301, source="alpha", destination="delta")
    with pytest.raises(MigrationError, match="delta does not answer"):
        answer.get(timeout=60)
    assert refused(cluster, "announcement") >= 1
    attacker.srem("sojourn:hosts", "delta")


def test_a_cordon(cluster: Cluster, attacker: Any) -> None:
    """No host is cordoned by somebody else; nor is another by the cordon of the first."""
    attacker.hset("sojourn:cordons", "beta", '{"host": "beta"}')
    attacker.sadd("sojourn:cordoned", "beta")
    assert not cluster.registry.is_cordoned("beta")
    cluster.registry.cordon("alpha")
    attacker.hset("sojourn:cordons", "beta", attacker.hget("sojourn:cordons", "alpha"))
    assert cluster.registry.is_cordoned("alpha")
    assert not cluster.registry.is_cordoned("beta")
    cluster.registry.uncordon("alpha")
    ours = cluster.migration(1302)
    answer = migrate.apply_async(kwargs=ours.plan.to_json(), task_id=ours.id)
    assert answer.get(timeout=60)["state"] == State.COMPLETED
    attacker.delete("sojourn:cordons", "sojourn:cordoned")
