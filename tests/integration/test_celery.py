"""Sojourn's tasks in another application: ``examples/celery``, with a worker of its own.

What a program would write runs in a process of its own, whose application is that one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as Client

from sojourn.cluster.queue import Counts
from sojourn.cluster.requests import Request, Requests
from sojourn.model import State
from sojourn.system.run import Child, spawn
from tests.conftest import eventually
from tests.integration.conftest import ROOT, Cluster, Redis
from tests.integration.steps import act, acts, let_go

PROJECT = ROOT / "examples" / "celery"
CELERY = Path(sys.executable).with_name("celery")

#: What every program begins with.
BEGINNING = """
import json
from celery import chain, chord, group
from tasks import app, alarm, find, notify, relocate, report
from sojourn import migrate, migrate_many, drain
from sojourn.errors import SojournError

def to_beta(pid, **more):
    return dict(pid=pid, source="alpha", destination="beta", **more)

def refused(call):
    try:
        call()
    except SojournError as error:
        return error.message
    return None
"""


@pytest.fixture(scope="module")
def cluster(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give out two hosts that are looked after."""
    place = tmp_path_factory.mktemp("cluster")
    made = Cluster(redis, place, reconcile=True, lease_s=2, reconcile_s=0.3)
    with made.called_by_programs():
        made.start()
        made.announce(max_outgoing=8, max_incoming=8)
        yield made


class Shop:
    """The other project: programs of it, and its worker."""

    def __init__(self, cluster: Cluster, place: Path) -> None:
        self.cluster, self.place = cluster, place
        self.redis = cluster.redis.url.removesuffix("/0")
        self.worker: Child | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Its settings: Sojourn's for callers, and where its own queues are."""
        ours = self.cluster.environment("tester") | {"SHOP_REDIS": self.redis}
        # Its own module `tasks` is found before ours, as in a project that has one.
        return ours | {"PYTHONPATH": f"{PROJECT}:{ROOT}"}

    def start(self) -> None:
        """Start its worker."""
        # Not `python -m`, which finds modules where the tests run, before all others.
        argv = [str(CELERY), "--workdir", str(PROJECT), "-A", "tasks", "worker", "-c", "2"]
        argv += ["-Q", "celery,mail", "-l", "INFO", "--without-gossip", "--without-mingle"]
        self.worker = spawn(argv, output=self.place / "shop.log", env=self.environment)
        eventually(lambda: " ready." in self.log, within_s=30)

    def stop(self) -> None:
        """End its worker."""
        if self.worker:
            self.worker.kill()

    @property
    def log(self) -> str:
        """What its worker has logged."""
        return (self.place / "shop.log").read_text()

    @property
    def results(self) -> Any:
        """The Redis of its results."""
        return Client.from_url(f"{self.redis}/4", decode_responses=True)

    def celery(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Celery's on Sojourn's own application."""
        argv = [str(CELERY), "-A", "sojourn.celery", command]
        env = os.environ | self.environment
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    def runs(self, program: str, *, last: bool = False) -> Any:
        """Run a program, and return what it prints, or what it prints at last, as JSON."""
        done = subprocess.run(
            [sys.executable, "-c", BEGINNING + textwrap.dedent(program)],
            env=os.environ | self.environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1] if last else done.stdout)


@pytest.fixture(scope="module")
def shop(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Give out the other project with its worker."""
    made = Shop(cluster, tmp_path_factory.mktemp("shop"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def emptied(cluster: Cluster) -> Iterator[None]:
    """At the end of each test, nothing may be left in the queue."""
    yield
    eventually(lambda: cluster.queue.counts() == Counts(0, 0, 0, 0), within_s=20)


def test_chains(shop: Shop) -> None:
    """What comes before a migration hands it options; what comes after is handed its result."""
    found = shop.runs("""
        after = chain(migrate.s(**to_beta(101)), notify.s())()
        between = chain(find.s("102"), migrate.s(destination="beta"), notify.s())()
        last = chain(find.s("103"), migrate.s(destination="beta"))()
        on = chain(migrate.s(**to_beta(104)), migrate.s(destination="alpha"), notify.s())()
        odd = chain(migrate.s(**to_beta(105)), migrate.s(), notify.s())()
        lost = chain(find.s("106"), migrate.s(), notify.s())()
        print(json.dumps([
            after.get(timeout=30), between.get(timeout=30),
            last.get(timeout=30)["owner"], on.get(timeout=30),
            str(odd.get(timeout=30, propagate=False)),
            str(lost.get(timeout=30, propagate=False)),
        ]))
    """)
    assert found[:4] == ["101 runs on beta", "102 runs on beta", "beta", "104 runs on alpha"]
    assert all("needs destination" in why for why in found[4:])


def test_the_same_call_again(cluster: Cluster, shop: Shop) -> None:
    """It is one migration, however often it is sent; another one cannot have its id."""
    name = "00000107-0000-4000-8000-000000000000"
    found = shop.runs(f"""
        calls = [migrate.apply_async(kwargs=to_beta(107), task_id="{name}") for _ in range(3)]
        moved = [call.get(timeout=30)["id"] for call in calls]
        calls.append(migrate.apply_async(kwargs=to_beta(107), task_id="{name}"))
        print(json.dumps([moved, calls[-1].state, refused(
            lambda: migrate.apply_async(kwargs=to_beta(108), task_id="{name}"))]))
    """)
    assert found[:2] == [[name] * 3, "SUCCESS"]
    assert "Another migration has the id" in found[2]
    assert len(acts(cluster.place, name)) == len(set(acts(cluster.place, name)))


def test_links(shop: Shop) -> None:
    """Callbacks go by the routes of their application; error callbacks get the id, as Celery's."""
    found = shop.runs("""
        linked = notify.s().set(task_id="the-mail")
        migrate.apply_async(kwargs=to_beta(110), link=linked, link_error=alarm.s())
        mail = app.AsyncResult("the-mail").get(timeout=30)
        silent = migrate.apply_async(
            kwargs=dict(pid=111, source="alpha", destination="nowhere"), link_error=alarm.s()
        )
        print(json.dumps([mail, silent.id, str(silent.get(timeout=30, propagate=False))]))
    """)
    mail, failed, why = found
    assert mail == "110 runs on beta"
    assert "nowhere" in why
    assert eventually(lambda: shop.results.lpop("alarms")) == failed


def test_groups_and_chords(shop: Shop) -> None:
    """Parts may be of both applications; a chord's body runs after the last, or is failed."""
    found = shop.runs("""
        both = group(migrate.s(**to_beta(120)), find.s("1"))().get(timeout=30)
        turned = group(find.s("1"), migrate.s(**to_beta(121)))().get(timeout=30)
        done = chord([migrate.s(**to_beta(pid)) for pid in (122, 123)], report.s())
        nowhere = dict(pid=125, source="alpha", destination="nowhere")
        broken = chord([migrate.s(**to_beta(124)), migrate.s(**nowhere)], report.s())
        pending = broken()
        print(json.dumps([
            both[0]["owner"], turned[1]["owner"], done().get(timeout=30),
            type(pending.get(timeout=30, propagate=False)).__name__,
        ]))
    """)
    assert found == [
        *("beta", "beta"),
        ["122 runs on beta", "123 runs on beta"],
        "ChordError",
    ]


def test_a_task_that_becomes_a_migration(shop: Shop) -> None:
    """The result has the id of the task that was replaced, in its application."""
    found = shop.runs("""
        became = relocate.delay("130")
        then = chain(relocate.s("131"), notify.s())()
        print(json.dumps([became.get(timeout=30)["owner"], then.get(timeout=30)]))
    """)
    assert found == ["beta", "131 runs on beta"]


def test_a_task_that_is_sent_by_name(shop: Shop) -> None:
    """A worker that has Sojourn sends on what reached its own queue."""
    found = shop.runs("""
        sent = app.send_task("sojourn.migrate", kwargs=to_beta(140))
        print(json.dumps(sent.get(timeout=30)["owner"]))
    """)
    assert found == "beta"


def test_a_call_without_a_signature(cluster: Cluster, shop: Shop) -> None:
    """A program that has Celery and not Sojourn learns that it was refused, and why."""
    ours, queue = cluster.redis.url, cluster.app.conf.task_default_queue
    found = shop.runs(f"""
        from celery import Celery
        stranger = Celery("stranger", broker="{ours}", backend="{ours}", set_as_current=False)
        sent = stranger.send_task("sojourn.migrate", kwargs=to_beta(145), queue="{queue}")
        print(json.dumps(str(sent.get(timeout=30, propagate=False))))
    """)
    assert "it is not signed with the cluster's key" in found
    assert not [account for account in cluster.ledger.latest(1000) if account.plan.pid == 145]


def test_the_end_in_flower(cluster: Cluster, shop: Shop) -> None:
    """Monitors see a call end when its migration does, with its result."""
    ended: dict[str, str] = {}

    def record(event: dict[str, Any]) -> None:
        ended[event["uuid"]] = event["result"]

    def sees(task: str) -> bool:
        drained.drain_events(timeout=20)
        return task in ended

    with cluster.app.connection_for_read() as connection:
        receiver = cluster.app.events.Receiver(connection, handlers={"task-succeeded": record})
        with receiver.consumer_context() as (drained, _, _):
            with contextlib.suppress(TimeoutError):
                drained.drain_events(timeout=1)  # only then it has subscribed
            moved = shop.runs("print(json.dumps(migrate.delay(**to_beta(146)).get(timeout=30)))")
            eventually(lambda: sees(moved["id"]), within_s=20)
    assert "'owner': 'beta'" in ended[moved["id"]]


def test_the_program_stays_as_it_is(shop: Shop) -> None:
    """Its application, its messages and its shared tasks are its own, after a call too."""
    found = shop.runs("""
        import celery, kombu, sys
        from celery.signals import before_task_publish
        transports = dict(kombu.transport.TRANSPORT_ALIASES)
        migrate.delay(**to_beta(150)).get(timeout=30)
        headers = []
        @before_task_publish.connect
        def look(headers=None, **_):
            globals()["headers"].append(sorted(headers))
        mine = find.delay("7").get(timeout=30)
        print(json.dumps({
            "app": celery.current_app.main, "mine": mine,
            "signed": [name for names in headers for name in names if name.startswith("sojourn")],
            "transports": transports == dict(kombu.transport.TRANSPORT_ALIASES),
            "ours": [name for name in ("workflows", "workers", "web") if name in sys.modules],
            "tasks": sys.modules["tasks"].__file__,
        }))
    """)
    assert found == {
        "app": "shop",
        "mine": {"pid": 7, "source": "alpha"},
        "signed": [],
        "transports": True,
        "ours": [],
        "tasks": str(PROJECT / "tasks.py"),
    }


def test_states_and_progress(cluster: Cluster, shop: Shop) -> None:
    """A result shows where the migration stands, in the process that called and in any other."""
    name = "00000160-0000-4000-8000-000000000000"
    act(cluster.place, name, {"second": "wait"})
    program = f"""
        seen = migrate.AsyncResult("{name}")
        print(json.dumps([seen.state, seen.info, seen.ready()]))
    """
    assert shop.runs(program)[0] == "PENDING"
    shop.runs(f"""print(json.dumps(
        migrate.apply_async(kwargs=to_beta(160), task_id="{name}").state
    ))""")
    eventually(lambda: "second@beta" in acts(cluster.place, name), within_s=20)
    state, info, ready = shop.runs(program)
    assert (state, ready) == ("RUNNING", False)
    assert (info["step"], info["owner"]) == ("test_second", "alpha")
    let_go(cluster.place, name)
    eventually(lambda: shop.runs(program)[0] == "SUCCESS", within_s=20)
    assert shop.results.exists(f"celery-task-meta-{name}")  # for `app.AsyncResult` too


def test_later_or_never(cluster: Cluster, shop: Shop) -> None:
    """A migration waits for its time; one whose time is over does not begin."""
    found = shop.runs("""
        import time
        began = time.time()
        later = migrate.apply_async(kwargs=to_beta(170), countdown=2)
        never = migrate.apply_async(kwargs=to_beta(171), countdown=3, expires=1)
        waits = later.state
        arrived = later.get(timeout=30)
        print(json.dumps([
            waits, min(step["started"] for step in arrived["steps"]) - began >= 2,
            str(never.get(timeout=30, propagate=False)), never.state,
        ]))
    """)
    assert found[:2] == ["QUEUED", True]
    assert "had not begun by the time" in found[2]
    assert found[3] == "REVOKED"


def test_revoked_before_it_began(cluster: Cluster, shop: Shop) -> None:
    """It is withdrawn, and nothing was touched."""
    found = shop.runs("""
        waits = migrate.apply_async(kwargs=to_beta(180), countdown=600)
        waits.revoke(wait=True, timeout=30)
        print(json.dumps([waits.id, waits.state]))
    """)
    assert found[1] == "REVOKED"
    account = cluster.ledger.account(found[0])
    assert account is not None
    assert account.state is State.ABORTED
    assert {step.name for step in account.steps} <= {"forestall"}


def test_revoked_too_late(cluster: Cluster, shop: Shop) -> None:
    """One that has ended stays as it is, whatever was asked for."""
    found = shop.runs("""
        moved = migrate.delay(**to_beta(181))
        moved.get(timeout=30)
        moved.revoke(terminate=True, wait=True, timeout=30)
        print(json.dumps([moved.state, moved.get()["owner"]]))
    """)
    assert found == ["SUCCESS", "beta"]


def test_what_a_dead_process_still_owes(cluster: Cluster, shop: Shop) -> None:
    """If it died after the end and before it sent what follows, a reconciler sends that."""
    moved, follows = shop.runs("""
        from sojourn.messaging import follow_up
        from sojourn.settings import load
        moved = migrate.delay(**to_beta(185)).get(timeout=30)["id"]
        mail = notify.s().set(task_id="the-late-mail")
        print(json.dumps([
            moved, follow_up.written(app, load().redis_url, moved, {"link": [mail]})
        ]))
    """)
    requests = Requests(cluster.store, 3600)
    requests.keep(moved, Request(follow_up=follows))
    requests.owe(moved)
    eventually(lambda: shop.results.exists("celery-task-meta-the-late-mail"), within_s=40)
    eventually(lambda: requests.owed() == [])


def test_batches(shop: Shop) -> None:
    """A plan can be a part of a canvas too, and its state shows how far it is."""
    found = shop.runs("""
        many = migrate_many.apply_async(
            ([to_beta(190), to_beta(191)],), link=report.s().set(task_id="the-report")
        )
        counts = many.get(timeout=60)["counts"]
        print(json.dumps([counts, many.state]))
    """)
    assert found == [{"completed": 2}, "SUCCESS"]


REFUSED = {
    "migrate.delay(pid=1, source='alpha', destination='beta')": "PID 1",
    "migrate.delay(pid=5, source='alpha')": "needs destination",
    "migrate.apply_async(kwargs=to_beta(5), queue='mine')": "takes no queue",
    "migrate.apply_async(kwargs=to_beta(5), priority=3)": "takes no priority",
    "migrate.apply_async(kwargs=to_beta(5), time_limit=3)": "takes no time_limit",
    "migrate.apply_async(kwargs=to_beta(5), serializer='pickle')": "sent as JSON",
    "migrate.apply_async(kwargs=to_beta(5), task_id='my favourite')": "not the id of a migration",
    "migrate.apply_async(['beta'], to_beta(5))": "takes a mapping",
    "migrate(**to_beta(5))": "cannot be done in the process that calls it",
    "migrate.s(**to_beta(5)).apply()": "cannot be done in the process that calls it",
    "migrate.map([to_beta(5)])": "cannot be done in the process that calls it",
    "migrate_many.delay([{'pid': 5}])": "One line of the plan",
    "drain.apply_async(('alpha',), countdown=5)": "begins at once",
    "drain.delay('alpha', speed=5)": "has no option",
}


def test_what_cannot_work_is_refused_at_the_call(cluster: Cluster, shop: Shop) -> None:
    """By one sentence each, and nothing is recorded."""
    before = len(cluster.ledger.latest(1000))
    calls = ", ".join(f"refused(lambda: {call})" for call in REFUSED)
    answers = shop.runs(f"print(json.dumps([{calls}]))")
    for call, answer, expected in zip(REFUSED, answers, REFUSED.values(), strict=True):
        assert answer, call
        assert expected in answer, call
    assert len(cluster.ledger.latest(1000)) == before


def test_an_application_with_its_queues_elsewhere(shop: Shop) -> None:
    """It may migrate, and is told at once what cannot follow."""
    found = shop.runs("""
        app.conf.broker_url = "amqp://nowhere.example//"
        app.conf.result_backend = "cache+memory://"
        print(json.dumps([
            refused(lambda: group(migrate.s(**to_beta(5)), find.s("5"))()),
            refused(lambda: chain(migrate.s(**to_beta(5)), notify.s())()),
            refused(lambda: migrate.apply_async(kwargs=to_beta(5), link=notify.s())),
            migrate.delay(**to_beta(200)).get(timeout=30)["owner"],
        ]))
    """)
    assert "its results elsewhere" in found[0]
    assert all("its queues elsewhere" in sentence for sentence in found[1:3])
    assert found[3] == "beta"


def test_beside_what_workers_do_by_the_same_names(cluster: Cluster) -> None:
    """A process of Sojourn's own may have both: its calls are checked, and sent, all the same."""
    program = """
import workflows.accept
from sojourn import migrate_many
migrate_many.delay([{"pid": 5}])
"""
    env = os.environ | cluster.environment("tester")
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert "UsageError: One line of the plan is wrong" in done.stderr


def test_eager_applications(shop: Shop) -> None:
    """Nothing is migrated by a test of theirs that runs tasks in place."""
    found = shop.runs("""
        app.conf.task_always_eager = True
        print(json.dumps(refused(lambda: migrate.delay(**to_beta(5)))))
    """)
    assert "task_always_eager" in found


def test_what_a_program_imports() -> None:
    """Neither Celery nor anything of the workers, until something is called."""
    heavy = ["celery", "redis", "pydantic", "rich", "workflows", "tasks", "workers"]
    program = (
        f"import sys; from sojourn import migrate; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_celerys_own_commands(shop: Shop) -> None:
    """``celery -A sojourn.celery`` shows Sojourn's workers, and starts none."""
    status = shop.celery("status")
    assert "main@alpha: OK" in status.stdout
    worker = shop.celery("worker")
    assert worker.returncode
    assert "is no `celery worker`" in worker.stderr


def blocks() -> list[str]:
    """Return the programs that the page about Celery shows."""
    page = (ROOT / "docs" / "celery.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


#: What is done with the views that the page shows.
USED = {
    "from django": """
from django.conf import settings
settings.configure()
assert b'"QUEUED"' in move(None, 4260).content
assert move(None, 1).status_code == 400
""",
    "from flask": """
client = web.test_client()
name = client.post("/move/4261").json["id"]
assert client.get(f"/moved/{name}").json.keys() == {"state", "ended"}
""",
}


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.splitlines()[0])
def test_the_page(shop: Shop, block: str) -> None:
    """Each program of docs/celery.md runs in the other project."""
    used = next((code for begins, code in USED.items() if block.startswith(begins)), "")
    assert shop.runs(f"{block}{used}\nprint()\nprint('null')", last=True) is None


def test_the_types(tmp_path: Path) -> None:
    """Mypy knows what callers write and read, and sees what is wrong."""
    program = tmp_path / "program.py"
    program.write_text(
        "from sojourn import drain, migrate, migrate_many\n"
        "result = migrate.delay(pid=1, source='a', destination='b', mode='post-copy').get()\n"
        "reveal_type(result['downtime_ms'])\n"
        "reveal_type(migrate_many.delay([{'pid': 1, 'source': 'a'}]).get()['counts'])\n"
        "drain.delay('a', tcp_established=True)\n"
        "migrate.delay(pid='1', source='a', destination='b')\n"
        "migrate.delay(pid=1, source='a')\n"
        "drain.delay('a', speed=3)\n"
        "result['down_time']\n"
    )
    argv = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    lines = [line.removeprefix(str(program)) for line in found.splitlines()]
    assert 'Revealed type is "float | None"' in lines[0]
    assert 'Revealed type is "dict[str, int]"' in lines[1]
    assert [line.split(":")[1] for line in lines[2:-1] if "error" in line] == ["6", "7", "8", "9"]
