"""Batches on real workers with their reconcilers; the steps do nothing."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sojourn.client import drain, migrate_many
from sojourn.cluster.batches import Batches, BatchState, Part
from sojourn.cluster.placement import Planned
from sojourn.cluster.queue import Counts
from sojourn.errors import UsageError
from sojourn.migration.context import this_host
from sojourn.model import State
from tests.conftest import eventually
from tests.integration.conftest import Cluster, Redis
from tests.integration.steps import act, let_go
from tests.integration.test_capacity import sojourn
from workflows.batch import _look_after, abort_batch, resume_batch
from workflows.join import concluded, finish, part_of

HOSTS = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give out three hosts."""
    place = tmp_path_factory.mktemp("cluster")
    made = Cluster(redis, place, reconcile=True, hosts=HOSTS, lease_s=2, reconcile_s=0.3)
    with made.called_by_programs():
        made.start()
        made.announce(max_outgoing=2)
        yield made


@pytest.fixture
def batches(cluster: Cluster) -> Batches:
    """Give out a reader of batches."""
    return Batches(cluster.store, 3600)


@pytest.fixture(autouse=True)
def emptied(cluster: Cluster) -> Iterator[None]:
    """At the end of each test, nothing may be left in the queue."""
    yield
    eventually(lambda: cluster.queue.counts() == Counts(0, 0, 0, 0), within_s=20)


def lines(first: int, count: int, **more: Any) -> list[Any]:
    """Return lines of a plan, from alpha to beta."""
    return [
        {"pid": first + each, "source": "alpha", "destination": "beta", **more}
        for each in range(count)
    ]


def acting(cluster: Cluster, batches: Batches, batch: str, *acts: dict[str, str]) -> list[str]:
    """Choose how the parts of a batch act in this try; return their migrations."""
    found = eventually(lambda: batches.parts(batch))
    for part, how in zip(found, acts, strict=False):
        act(cluster.place, part.migration, how)
    return [part.migration for part in found]


def is_interrupted(cluster: Cluster, migration: str) -> bool:
    """Whether an abort has reached the source, or the migration had not begun."""
    account = cluster.ledger.account(migration)
    assert account is not None
    return account.state is State.ABORTED or any(
        step.name == "interrupt" and step.ended for step in account.steps
    )


def state(batches: Batches, batch: str) -> BatchState | None:
    """Return where a batch stands."""
    record = batches.record(batch)
    return record.state if record else None


def test_a_plan_from_beginning_to_end(cluster: Cluster, batches: Batches) -> None:
    """All arrive, under the limits, and the result lists each of them."""
    result = migrate_many.delay(lines(1000, 7), by="me").get(timeout=60)
    assert (result["state"], result["total"], result["by"]) == ("finished", 7, "me")
    assert result["counts"] == {"completed": 7}
    pids = [migration["pid"] for migration in result["migrations"]]
    assert pids == list(range(1000, 1007))


def test_bad_lines_are_all_named_and_nothing_begins(cluster: Cluster, batches: Batches) -> None:
    """One error for the whole plan, at the call."""
    before = {record.id for record in batches.latest(100)}
    with pytest.raises(UsageError, match=r"(?s)line 3.*line 4"):
        migrate_many.delay([*lines(1100, 2), {"pid": 0, "source": "alpha"}, {"source": "beta"}])
    assert {record.id for record in batches.latest(100)} == before


def test_what_nothing_matches_is_a_bad_line(cluster: Cluster) -> None:
    """The hosts are asked before anything begins."""
    asked = [{"command": "no such program anywhere [x]", "source": "alpha"}, *lines(1200, 1)]
    with pytest.raises(UsageError, match=r"line 1: alpha has no command no such program"):
        migrate_many.delay(asked).get(timeout=30)


def test_impossible_destinations_are_bad_lines(cluster: Cluster) -> None:
    """One that is not in the registry, and one that is cordoned."""
    asked = [
        *lines(1210, 1),
        *lines(1211, 1, destination="nowhere"),
        *lines(1212, 1, destination="gamma"),
    ]
    cluster.registry.cordon("gamma")
    try:
        with pytest.raises(
            UsageError, match=r"(?s)line 2: There is no host nowhere.*line 3: gamma is cordoned"
        ):
            migrate_many.delay(asked).get(timeout=30)
    finally:
        cluster.registry.uncordon("gamma")


def test_what_would_be_done(cluster: Cluster, batches: Batches, tmp_path: Path) -> None:
    """A plan, a selector and a drain are shown with their reasons, and nothing is changed."""
    file = tmp_path / "plan.csv"
    file.write_text("pid,source,destination\n1220,alpha,beta\n\n1221,beta,nowhere\n")
    refused = sojourn(cluster, "migrate", "--plan", str(file), "--dry-run")
    assert (refused.returncode, "line 4: There is no host nowhere" in refused.stderr) == (2, True)
    file.write_text("pid,source,destination\n1220,alpha,beta\n")
    missing = sojourn(cluster, "migrate", "--plan", str(file), "--dry-run", "--json")
    (row,) = json.loads(missing.stdout)
    assert (row["pid"], row["destination"], row["code"]) == (1220, None, "PROCESS_GONE")
    assert (missing.returncode, "1220" in row["why"]) == (1, True)
    with subprocess.Popen(["sleep", "1222.25"]) as one, subprocess.Popen(["cat"]) as other:
        (cluster.place / "alpha.trees").write_text(json.dumps([one.pid, other.pid]))
        way = ("--from", "alpha", "--dry-run", "--json")
        chosen = sojourn(cluster, "migrate", "--command", r"sleep 1222\.25", *way)
        drained = sojourn(
            cluster, "drain", "alpha", "--dry-run", "--json", "--skip", str(other.pid)
        )
        for program in (one, other):
            program.kill()
    (cluster.place / "alpha.trees").unlink()
    (row,) = json.loads(chosen.stdout)
    assert row["pid"] == one.pid
    assert row["command"] == f"program {one.pid}"
    assert (row["destination"] is None) == (chosen.returncode == 1)
    left, kept = json.loads(drained.stdout)
    assert (left["pid"], left["code"], left["destination"]) == (
        *(one.pid, row["code"], row["destination"]),
    )
    assert (kept["pid"], kept["code"], kept["destination"]) == (other.pid, "SKIPPED", None)
    assert f"skipped by pid {other.pid}" in kept["why"]
    assert not cluster.registry.check_host("alpha").cordoned
    assert batches.latest(1000) == [] or "1220" not in str(batches.latest(1000))


def test_paused_resumed(cluster: Cluster, batches: Batches) -> None:
    """Nothing begins while a batch is paused; then it goes on to its end."""
    cluster.queue.pause("paused-batch")
    answer = migrate_many.apply_async(args=(lines(1300, 3),), task_id="paused-batch")
    eventually(lambda: cluster.queue.counts() == Counts(3, 0, 0, 0))
    assert cluster.ledger.account(batches.parts(answer.id)[0].migration).state is State.QUEUED  # type: ignore[union-attr]
    resume_batch.delay(answer.id).get(timeout=10)
    assert answer.get(timeout=60)["counts"] == {"completed": 3}


def test_aborted_and_resumed(cluster: Cluster, batches: Batches) -> None:
    """What waits is withdrawn, what is under way ends; resumed, the rest arrives."""
    cluster.queue.pause("aborted-batch")
    answer = migrate_many.apply_async(args=(lines(1400, 5),), task_id="aborted-batch")
    held = acting(cluster, batches, answer.id, *[{"first": "wait"}] * 5)
    resume_batch.delay(answer.id).get(timeout=10)
    eventually(lambda: cluster.queue.counts().taken == 2)
    abort_batch.delay(answer.id, roll_back=False).get(timeout=10)
    assert cluster.queue.counts() == Counts(0, 0, 2, 0)
    for migration in held:
        let_go(cluster.place, migration)
    assert answer.get(timeout=60)["counts"] == {"completed": 2, "aborted": 3}
    assert state(batches, answer.id) is BatchState.ABORTED
    resume_batch.delay(answer.id).get(timeout=10)
    eventually(lambda: state(batches, answer.id) is BatchState.FINISHED, within_s=60)
    assert [end["state"] for end in batches.ends(answer.id).values()] == ["completed"] * 5


def test_a_late_call_stops_nothing_that_was_resumed(cluster: Cluster, batches: Batches) -> None:
    """Neither one that read the batch as aborting, nor one that read it as ended."""
    cluster.queue.pause("late-batch")
    answer = migrate_many.apply_async(args=(lines(1450, 2),), task_id="late-batch")
    acting(cluster, batches, answer.id)
    abort_batch.delay(answer.id, roll_back=False).get(timeout=10)
    assert answer.get(timeout=30)["counts"] == {"aborted": 2}
    cluster.queue.pause("late-batch")
    batches.reopen(answer.id, [part.again() for part in batches.parts(answer.id)])
    batches.turn(answer.id, BatchState.RUNNING, BatchState.ABORTED)
    late = batches.record(answer.id)
    assert late is not None
    _look_after(this_host(), replace(late, state=BatchState.ABORTING))
    finish(answer.id)
    assert state(batches, answer.id) is BatchState.RUNNING
    assert batches.ends(answer.id) == {}
    resume_batch.delay(answer.id).get(timeout=10)
    eventually(lambda: state(batches, answer.id) is BatchState.FINISHED, within_s=60)


def test_an_abort_goes_on_as_it_was_asked_for(cluster: Cluster, batches: Batches) -> None:
    """Its process died once it had recorded it: what is under way is rolled back all the same."""
    cluster.queue.pause("dying-batch")
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    asked = [{"pid": each.pid, "source": "alpha", "destination": "beta"} for each in sleepers]
    answer = migrate_many.apply_async(args=(asked,), task_id="dying-batch")
    held = acting(cluster, batches, answer.id, *[{"first": "wait"}] * 3)
    resume_batch.delay(answer.id).get(timeout=10)
    eventually(lambda: cluster.queue.counts().taken == 2)
    batches.abort(answer.id, roll_back=True)
    # Otherwise the batch would be looked after only seconds later.
    cluster.store.write([["DEL", f"sojourn:batch:{answer.id}:looked"]])
    eventually(lambda: all(is_interrupted(cluster, migration) for migration in held), within_s=30)
    for migration in held:
        let_go(cluster.place, migration)
    assert answer.get(timeout=60)["counts"] == {"aborted": 3}
    for sleeper in sleepers:
        assert sleeper.poll() is None
        sleeper.kill()
        sleeper.wait()


def test_placement_leaves_room_for_what_other_batches_were_promised(batches: Batches) -> None:
    """As long as they have not ended."""
    plan = {"pid": 4242, "source": "alpha", "destination": "beta"}
    batches.plan("promised", "plan", {}, "me")
    batches.open(
        "promised",
        [Part(number, plan, f"promised-{number}", bytes=number) for number in (1, 2, 3)],
        [],
    )
    batches.end("promised", 2, {"state": "completed"})
    assert batches.promised() == [Planned("beta", 1), Planned("beta", 3)]
    batches.refuse("promised", {})
    assert batches.promised() == []


def test_what_is_known_takes_the_place_of_a_doubt(batches: Batches) -> None:
    """And a doubt never that of what is known; the last part's end is reported once."""
    batches.plan("doubtful", "plan", {}, "me")
    batches.open("doubtful", [], [])
    doubt, known = {"state": "in doubt"}, {"state": "completed"}
    assert batches.end("doubtful", 1, doubt) is not None
    assert batches.end("doubtful", 1, known) is None
    assert batches.end("doubtful", 1, doubt) is None
    assert batches.ends("doubtful") == {1: known}
    pending = {"state": "completed, clean-up pending"}
    assert batches.end("doubtful", 2, pending) is not None
    assert batches.end("doubtful", 2, known) is None
    assert batches.ends("doubtful") == {1: known, 2: known}
    batches.refuse("doubtful", {})


def test_tried_three_times(
    cluster: Cluster, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails is tried again by new migrations, then reported; the others do not wait for it."""
    cluster.queue.pause("failing-batch")
    answer = migrate_many.apply_async(args=(lines(1500, 2),), task_id="failing-batch")
    acting(cluster, batches, answer.id, {"second": "fail"}, {})
    part = batches.parts(answer.id)[0]
    for following in (part.again(), part.again().again()):
        act(cluster.place, following.migration, {"second": "fail"})
    resume_batch.delay(answer.id).get(timeout=10)
    result = answer.get(timeout=90)
    assert result["counts"] == {"rolled back": 1, "completed": 1}
    failed, arrived = result["migrations"]
    assert (failed["state"], failed["tries"]) == ("rolled back", 3)
    assert (arrived["state"], arrived["tries"]) == ("completed", 1)
    assert failed["failure"]
    assert "second broke" in failed["failure"]["message"]


@pytest.mark.parametrize(
    ("code", "tries"), [("FILE_MISSING", 2), ("PORT_TAKEN", 3)], ids=["for good", "for now"]
)
def test_what_a_host_refuses_for_good_is_tried_on_others_only(
    cluster: Cluster, batches: Batches, code: str, tries: int
) -> None:
    """Two hosts could take it, so it is tried twice; a port may be free a while later."""
    batch = f"refused-{code}".lower().replace("_", "-")
    cluster.queue.pause(batch)
    asked = [{"pid": os.getpid(), "source": "alpha", "destination": "auto"}]
    answer = migrate_many.apply_async(args=(asked,), task_id=batch)
    seen = []
    while not batches.ends(batch):
        (part,) = eventually(lambda: batches.parts(batch))
        cluster.queue.end(part.migration)
        seen.append(part.plan["destination"])
        failure = {"code": code, "message": "It is not there.", "hint": ""}
        end = {"id": part.migration, "state": "refused", "owner": "alpha", "failure": failure}
        concluded(part_of(batch, part), {**part.plan, **end})
    cluster.queue.resume(batch)
    (found,) = answer.get(timeout=30)["migrations"]
    assert (found["state"], found["tries"], len(seen)) == ("refused", tries, tries)
    assert set(seen) == {"beta", "gamma"}


def test_a_batch_that_was_lost_from_the_queue(cluster: Cluster, batches: Batches) -> None:
    """A batch whose parts vanished from the queue goes on."""
    cluster.queue.pause("lost-batch")
    answer = migrate_many.apply_async(args=(lines(1600, 2),), task_id="lost-batch")
    parts = acting(cluster, batches, answer.id, {}, {})
    eventually(lambda: cluster.queue.counts().waiting == len(parts))
    for migration in parts:
        assert cluster.queue.end(migration)
    cluster.queue.resume(answer.id)
    assert answer.get(timeout=90)["counts"] == {"completed": 2}


def test_a_drain(cluster: Cluster, batches: Batches) -> None:
    """The host is cordoned, and all that can be moved goes to others."""
    programs = [subprocess.Popen(["sleep", "1000"]) for _ in range(6)]
    (cluster.place / "gamma.trees").write_text(json.dumps([program.pid for program in programs]))
    try:
        result = drain.delay("gamma", by="me").get(timeout=120)
    finally:
        cluster.registry.uncordon("gamma")
        for program in programs:
            program.kill()
            program.wait()
    assert (result["kind"], result["state"]) == ("drain", "finished")
    assert result["counts"] == {"completed": 6}
    assert {migration["source"] for migration in result["migrations"]} == {"gamma"}
    for migration in result["migrations"]:
        assert migration["command"] == f"program {migration['pid']}"
    assert {migration["destination"] for migration in result["migrations"]} == {"alpha", "beta"}


def test_a_drain_whose_time_is_over(cluster: Cluster, batches: Batches) -> None:
    """Nothing more begins, the sentence and the exit code say so; what was skipped stays."""
    programs = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    (cluster.place / "gamma.trees").write_text(json.dumps([program.pid for program in programs]))
    cluster.announce("gamma", max_outgoing=0)
    skip = ("--skip", str(programs[1].pid))
    try:
        ended = sojourn(cluster, "drain", "gamma", "--timeout", "1.5", *skip, "--json")
        assert (ended.returncode, "Its time is over" in ended.stderr) == (124, True), ended
        *_, report = map(json.loads, ended.stdout.splitlines())
        assert (report["state"], report["timed_out"]) == ("aborted", True)
        again = sojourn(cluster, "watch", report["id"][:8])
        assert (again.returncode, f"program {programs[0].pid} (pid " in again.stdout) == (124, True)
        (end,) = report["migrations"]
        assert (end["pid"], end["state"]) == (programs[0].pid, "aborted")
        assert "The time of its batch was over" in end["failure"]["message"]
        assert [stay["code"] for stay in report["stays"]] == ["SKIPPED"]
        cluster.announce("gamma", max_outgoing=2)
        assert sojourn(cluster, "batch", report["id"], "resume").returncode == 0
        eventually(lambda: state(batches, report["id"]) is BatchState.FINISHED, within_s=60)
        resumed = json.loads(sojourn(cluster, "batch", report["id"], "--json").stdout)
        assert (resumed["counts"], resumed["timed_out"]) == ({"completed": 1}, False)
    finally:
        (cluster.place / "gamma.trees").unlink()
        cluster.registry.uncordon("gamma")
        for program in programs:
            program.kill()
            program.wait()


def test_what_no_host_can_take_waits_for_one(cluster: Cluster, batches: Batches) -> None:
    """As long as it was asked to; a host that can take it again has it. Then it stays."""
    with subprocess.Popen(["sleep", "1000"]) as program:
        (cluster.place / "gamma.trees").write_text(json.dumps([program.pid]))
        for name in ("alpha", "beta"):
            cluster.registry.cordon(name)
        asked = {"host": "gamma", "wait_s": 60}
        patient = drain.apply_async(kwargs=asked, task_id="patient-batch")
        hasty = drain.apply_async(kwargs={**asked, "wait_s": 0.2}, task_id="hasty-batch")
        try:
            for answer in (patient, hasty):
                (part,) = eventually(lambda answer=answer: batches.parts(answer.id))  # type: ignore[misc]
                assert (part.placed, part.plan["pid"]) == (False, program.pid)
            time.sleep(0.3)
            cluster.store.write([["DEL", "sojourn:batch:hasty-batch:looked"]])
            (stayed,) = hasty.get(timeout=30)["migrations"]
            assert stayed["failure"]
            assert (stayed["state"], stayed["failure"]["code"]) == ("refused", "NOWHERE")
            assert "beta is cordoned" in stayed["failure"]["message"]
            assert batches.ends(patient.id) == {}
            cluster.registry.uncordon("beta")
            cluster.store.write([["DEL", "sojourn:batch:patient-batch:looked"]])
            (moved,) = patient.get(timeout=30)["migrations"]
            assert (moved["state"], moved["destination"]) == ("completed", "beta")
        finally:
            for name in HOSTS:
                cluster.registry.uncordon(name)
            (cluster.place / "gamma.trees").unlink()
            program.kill()


def test_nobody_need_wait_for_the_end_of_its_time(cluster: Cluster, batches: Batches) -> None:
    """The reconcilers end a batch whose command has gone."""
    cluster.queue.pause("timed-batch")
    asked = {"plan": lines(1950, 2), "timeout_s": 0.5}
    answer = migrate_many.apply_async(kwargs=asked, task_id="timed-batch")
    eventually(lambda: batches.parts(answer.id))
    time.sleep(0.6)
    cluster.store.write([["DEL", f"sojourn:batch:{answer.id}:looked"]])
    result = answer.get(timeout=30)
    assert (result["counts"], result["timed_out"]) == ({"aborted": 2}, True)
    with pytest.raises(UsageError, match="a number of seconds"):
        migrate_many.delay(lines(1960, 1), timeout_s=-1).get(timeout=10)


def test_another_destination_for_the_next_try(cluster: Cluster, batches: Batches) -> None:
    """A migration that placement has placed, and that failed, is placed again."""
    cluster.queue.pause("placed-batch")
    asked = [{"pid": os.getpid(), "source": "alpha", "destination": "auto"}]
    answer = migrate_many.apply_async(args=(asked,), task_id="placed-batch")
    acting(cluster, batches, answer.id, {"second": "fail"})
    first = batches.parts(answer.id)[0].plan["destination"]
    resume_batch.delay(answer.id).get(timeout=10)
    (end,) = answer.get(timeout=60)["migrations"]
    assert (end["state"], end["tries"]) == ("completed", 2)
    assert end["destination"] not in {first, "alpha"}


def test_the_command_line(cluster: Cluster, batches: Batches, tmp_path: Path) -> None:
    """A plan file, followed to its end, line by line for machines."""
    plan = tmp_path / "plan.csv"
    plan.write_text("pid,source,destination,priority\n1701,alpha,beta,\n1702,alpha,beta,5\n")
    done = sojourn(cluster, "migrate", "--plan", str(plan), "--timeout", "100", "--json")
    *ends, last = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0
    assert [end["pid"] for end in sorted(ends, key=lambda end: end["line"])] == [1701, 1702]
    assert last["counts"] == {"completed": 2}
    batch = json.loads(sojourn(cluster, "batch", last["id"][:8], "--json").stdout)
    assert batch["state"] == "finished"
    assert batch["until"] == last["until"] > batch["created"]
    assert sojourn(cluster, "batch", last["id"], "pause").returncode == 2
    one = ("migrate", "1701", "--from", "alpha", "--to", "beta")
    for of_many in (("--timeout", "5"), ("--skip", "1701")):
        assert sojourn(cluster, *one, *of_many).returncode == 2
    plan.write_text("pid,source,destination\n1701,alpha,alpha\n0,alpha,beta\n")
    wrong = sojourn(cluster, "migrate", "--plan", str(plan))
    assert (wrong.returncode, "line 2" in wrong.stderr, "line 3" in wrong.stderr) == (2, True, True)


def test_what_waits_is_shown_and_reordered(cluster: Cluster, batches: Batches) -> None:
    """With why it waits; a higher priority goes first."""
    cluster.queue.pause("shown-batch")
    answer = migrate_many.apply_async(args=(lines(1800, 3),), task_id="shown-batch")
    first, _, last = acting(cluster, batches, answer.id)
    shown = eventually(lambda: json.loads(sojourn(cluster, "queue", "--json").stdout))
    assert (shown[0]["id"], shown[0]["why"]) == (first, "its batch is paused")
    left = json.loads(sojourn(cluster, "batch", "shown-batch", "--json").stdout)["open"]
    assert [(one["line"], one["pid"], one["state"]) for one in left] == [
        (number, 1799 + number, "queued") for number in (1, 2, 3)
    ]
    told = sojourn(cluster, "batch", "shown-batch").stdout
    assert "line 1: pid 1800 from alpha to beta: queued" in told
    assert sojourn(cluster, "queue", last[:13], "--priority", "7").returncode == 0
    assert json.loads(sojourn(cluster, "queue", "--json").stdout)[0]["id"] == last
    assert sojourn(cluster, "batch", "shown-batch", "abort", "--finish").returncode == 0
    assert answer.get(timeout=30)["counts"] == {"aborted": 3}


def test_a_destination_that_dies_while_others_wait_for_it(
    cluster: Cluster, batches: Batches
) -> None:
    """What placement sent there is placed again; what was to go there and nowhere else fails."""
    cluster.queue.pause("moving-batch")
    cluster.queue.pause("named-batch")
    asked = [{"pid": os.getpid(), "source": "alpha", "destination": "auto"}]
    answer = migrate_many.apply_async(args=(asked,), task_id="moving-batch")
    acting(cluster, batches, answer.id)
    dies = batches.parts(answer.id)[0].plan["destination"]
    named = migrate_many.apply_async(
        args=(lines(1900, 1, destination=dies),), task_id="named-batch"
    )
    acting(cluster, batches, named.id)
    cluster.registry.withdraw(dies)
    time.sleep(1.5)  # a dispatch relies for a second on what it has read of the hosts
    try:
        resume_batch.delay(answer.id).get(timeout=10)
        resume_batch.delay(named.id).get(timeout=10)
        (end,) = answer.get(timeout=60)["migrations"]
        (reported,) = named.get(timeout=120)["migrations"]
    finally:
        cluster.announce(dies, max_outgoing=2)
    assert (end["state"], end["tries"]) == ("completed", 2)
    assert end["destination"] not in {dies, "alpha"}
    assert (reported["state"], reported["tries"], reported["owner"]) == ("unreachable", 3, "alpha")
    assert reported["failure"]
    assert dies in reported["failure"]["message"]
