"""Lists in a pipe: a row a line, ``--output``, filters and ``--since``, with a real Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from uuid import uuid4

import pytest
import typer

from sojourn.cli import gone, selection
from sojourn.cli.program import app
from sojourn.cluster.batches import Batches, BatchState, Part
from sojourn.cluster.client import Cluster
from sojourn.cluster.ledger import Ledger
from sojourn.cluster.queue import Entry, Queue
from sojourn.cluster.registry import Registry
from sojourn.cluster.store import Store
from sojourn.cluster.whereabouts import last_move
from sojourn.errors import UsageError
from sojourn.model import Plan, State
from sojourn.preflight.candidate import Candidate
from sojourn.settings import load
from tests.integration.conftest import Redis
from tests.integration.test_metrics import _result
from tests.integration.test_registry import ALPHA
from workflows import survey

Sojourn = Callable[..., list[str]]

HOUR = 3600


@pytest.fixture
def sojourn(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Sojourn]:
    """Call the command line in this process, and return the lines that it prints."""
    monkeypatch.setenv("SOJOURN_REDIS_URL", redis.url)
    monkeypatch.setenv("SOJOURN_CONFIG", "/dev/null")
    load.cache_clear()
    Store(redis.url)._redis.flushall()
    parsed = typer.main.get_command(app)

    def call(*words: str) -> list[str]:
        parsed.main([*words], "sojourn", standalone_mode=False)
        return capsys.readouterr().out.splitlines()

    yield call
    load.cache_clear()


@pytest.fixture
def moved(sojourn: Sojourn, redis: Redis) -> dict[str, str]:
    """Record four migrations, an hour apart, and return their ids by what became of them."""
    store = Store(redis.url)
    ledger = Ledger(store, 100 * HOUR)
    ends = {
        "lost": (Plan(30, "alpha", "gamma"), State.LOST, "redis-server *:6379"),
        "refused": (Plan(20, "beta", "alpha", "post-copy"), State.REFUSED, "sh\t-c 'a\nb'"),
        "completed": (Plan(10, "alpha", "beta"), State.COMPLETED, "nginx: master"),
        "running": (Plan(40, "gamma", "beta"), State.RUNNING, ""),
    }
    ids = {}
    for age, (name, (plan, state, command)) in enumerate(reversed(ends.items())):
        ids[name] = migration = str(uuid4())
        ledger.open(migration, plan)
        created = time.time() - age * HOUR - 1
        fields = {"command": json.dumps(command), "created": json.dumps(created)}
        store.put_fields(f"sojourn:migration:{migration}", fields)
        store._redis.zadd("sojourn:migrations", {migration: created})
        if state.final:
            ledger.close(migration, _result(state, id=migration, **plan.to_json()))
        else:
            ledger.record_state(migration, state)
    return ids


def test_a_migration_is_one_line(sojourn: Sojourn, moved: dict[str, str]) -> None:
    """Cells with a tab between them, whole ids, no colour; what a command line holds is escaped."""
    lines = [line.split("\t") for line in sojourn("list")]
    assert [cells[0] for cells in lines] == [
        moved[name] for name in ("running", "completed", "refused", "lost")
    ]
    _, *route, downtime, asked, command = lines[2]
    assert route == ["20", "beta", "alpha", "refused", "post-copy", "beta"]
    assert (downtime, command) == ("900 ms", r"sh\t-c 'a\nb'")
    assert abs(time.time() - 2 * HOUR - selection.instant(asked)) < 60
    wide = sojourn("list", "-o", "wide")
    assert [line.split("\t")[:10] for line in wide] == lines
    assert wide[0].split("\t")[10:] == ["-"] * 5


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--state lost --state completed", ["completed", "lost"]),
        ("--host gamma", ["running", "lost"]),
        ("--from alpha", ["completed", "lost"]),
        ("--from alpha --to beta", ["completed"]),
        ("--mode post-copy", ["refused"]),
        ("--command ^nginx", ["completed"]),
        ("--since 90m", ["running", "completed"]),
        ("--since 3d --last 1", ["running"]),
        ("--host gamma --last 1 --state lost", ["lost"]),
    ],
)
def test_what_is_asked_for(
    sojourn: Sojourn, moved: dict[str, str], words: str, names: list[str]
) -> None:
    """Filters come before ``--last``; all of them hold; ``-o name`` prints ids alone."""
    assert sojourn("list", "-o", "name", *words.split()) == [moved[name] for name in names]


def test_json_and_lines_of_json(sojourn: Sojourn, moved: dict[str, str]) -> None:
    """``-o json`` is ``--json``: one list; ``-o jsonl`` has each of its objects in a line."""
    (whole,) = sojourn("list", "--json")
    assert sojourn("list", "-o", "json") == [whole]
    assert [json.loads(line) for line in sojourn("list", "-o", "jsonl")] == json.loads(whole)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--since", "yore"], "'yore' is not a time."),
        (["--state", "gone"], "There is no state 'gone'."),
        (["--command", "("], r"'\(' is not a regular expression"),
    ],
)
def test_what_cannot_be_asked_for(sojourn: Sojourn, words: list[str], sentence: str) -> None:
    """Each is a usage error, and nothing is printed."""
    with pytest.raises(UsageError, match=sentence):
        sojourn("list", *words)


def test_states_are_words() -> None:
    """A state is given as it is shown, or with hyphens."""
    assert selection.states_of(["in doubt", "completed-clean-up-pending"]) == {
        *(State.IN_DOUBT, State.CLEANUP_PENDING),
    }


def test_more_than_one_look(sojourn: Sojourn, moved: dict[str, str], redis: Redis) -> None:
    """A filter reads on until it has enough; what is requested meanwhile comes once."""
    ledger = Ledger(Store(redis.url), 100 * HOUR)
    found = ledger.newest(at_once=2)
    seen = [next(found).id]
    ledger.open(str(uuid4()), Plan(50, "alpha", "beta"))
    seen += [account.id for account in found]
    assert seen == [moved[name] for name in ("running", "completed", "refused", "lost")]


def test_history_in_a_pipe(sojourn: Sojourn, moved: dict[str, str]) -> None:
    """Each pair of hosts and mode is a line, without refusals among the failures."""
    assert sojourn("history", "-o", "name") == [
        *("alpha beta stop-and-copy", "alpha gamma stop-and-copy", "beta alpha post-copy")
    ]
    lines = [line.split("\t")[:5] for line in sojourn("history", "--host", "alpha")]
    assert [cells[3:] for cells in lines] == [["1", "0"], ["0", "1"], ["0", "0"]]
    assert sojourn("history", "--mode", "post-copy", "--to", "beta") == []
    assert len(sojourn("history", "--since", "90m")) == 1


def test_hosts_in_a_pipe(sojourn: Sojourn, redis: Redis) -> None:
    """A silent host is a line too; ``-o json`` keeps the mapping that ``--json`` has."""
    store = Store(redis.url)
    Registry(store).announce(ALPHA, 20)
    store.add_to_set("sojourn:hosts", "gamma")
    shown = [line.split("\t")[:2] for line in sojourn("hosts")]
    assert shown == [["alpha", "up"], ["gamma", "down"]]
    assert sojourn("hosts", "-o", "name") == ["alpha", "gamma"]
    whole = json.loads(sojourn("hosts", "-o", "json")[0])
    assert (set(whole), whole["gamma"]) == ({"alpha", "gamma"}, None)
    up, down = map(json.loads, sojourn("hosts", "-o", "jsonl"))
    assert (up["name"], up["worker"], up["address"]) == ("alpha", "up", ALPHA.address)
    assert down == {"name": "gamma", "worker": "down"}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", ["second", "first"]),
        ("--state running", ["first"]),
        ("--kind drain", ["second"]),
        ("--host beta", ["first"]),
        ("--host gamma", ["second"]),
        ("--last 1", ["second"]),
    ],
)
def test_batches_in_a_pipe(sojourn: Sojourn, redis: Redis, words: str, names: list[str]) -> None:
    """A host has a part in a batch by its processes, by their destinations, and by what stays."""
    batches = Batches(Store(redis.url), HOUR)
    batches.plan("first", "plan", {"lines": 1}, "ann@hub")
    plan = Plan(7, "alpha", "beta").to_json()
    batches.open("first", [Part(1, plan, str(uuid4()))], [])
    batches.plan("second", "drain", {"lines": []}, "ann@hub")
    batches.open("second", [], [{"pid": 8, "source": "gamma", "command": "x", "why": "y"}])
    batches.turn("second", BatchState.PAUSED, BatchState.RUNNING)
    assert sojourn("batches", "-o", "name", *words.split()) == names
    cells = [line.split("\t") for line in sojourn("batches", *words.split())]
    assert [line[0] for line in cells] == names
    assert all(line[4] == "ann@hub" for line in cells)
    assert sojourn("batches", "--since", "2099-01-01", *words.split()) == []


def test_what_waits_in_a_pipe(sojourn: Sojourn, redis: Redis) -> None:
    """A queued migration is a line that ends with why it waits."""
    migration = str(uuid4())
    queue = Queue(Store(redis.url), 30, HOUR)
    Ledger(Store(redis.url), HOUR).open(migration, Plan(7, "alpha", "beta"))
    queue.put([Entry(migration, "a-batch", Plan(7, "alpha", "beta").to_json())])
    (line,) = sojourn("queue")
    assert line.split("\t")[:6] == ["1", migration, "a-batch", "0", "alpha", "beta"]
    assert sojourn("queue", "-o", "name") == [migration]
    assert json.loads(sojourn("queue", "-o", "jsonl")[0])["id"] == migration


@pytest.mark.parametrize(
    ("words", "pids"),
    [
        ("", ["11", "12"]),
        ("--command ^sleep", ["12"]),
        ("--user 0", ["11"]),
        ("--migratable", ["12"]),
        ("--since 1h", ["12"]),
    ],
)
def test_processes_in_a_pipe(
    sojourn: Sojourn, redis: Redis, monkeypatch: pytest.MonkeyPatch, words: str, pids: list[str]
) -> None:
    """A process is a line that ends with its verdict; ``-o name`` prints PIDs alone."""
    Registry(Store(redis.url)).announce(ALPHA, 20)
    now = time.time()
    old = Candidate(11, "sshd\t-D", 0, 2, 10**9, 1, "is in use", started=now - 2 * HOUR)
    new = Candidate(12, "sleep 60", 1000, 1, 10**6, 0, "", started=now)
    # What its worker answers; the question itself is asked in tests with workers.
    monkeypatch.setattr(survey, "candidates_of", lambda _: [asdict(old), asdict(new)])
    lines = {line.split("\t")[0]: line for line in sojourn("ps", "alpha", *words.split())}
    assert list(lines) == pids == sojourn("ps", "alpha", "-o", "name", *words.split())
    assert lines.get("11", "11\t0\t2\t1.0 GB\t1\tsshd\\t-D\tis in use") == (
        "11\t0\t2\t1.0 GB\t1\tsshd\\t-D\tis in use"
    )


def test_where_a_process_is_that_was_moved(sojourn: Sojourn, redis: Redis) -> None:
    """On and on, as far as it went; one that came back, or never left, is nowhere else."""
    cluster = Cluster()
    ways = [("alpha", "beta"), ("beta", "gamma"), ("gamma", "delta"), ("beta", "alpha")]
    ends = [State.COMPLETED, State.CLEANUP_PENDING, State.ROLLED_BACK, State.COMPLETED]
    ids = [str(uuid4()) for _ in ways]
    for migration, way, state in zip(ids, ways, ends, strict=True):
        cluster.ledger.open(migration, Plan(4242, *way))
        cluster.ledger.close(migration, _result(state, id=migration))
    move = last_move(cluster.ledger, 4242, "alpha")
    assert move is not None
    assert (move.id, move.plan.destination) == (ids[1], "gamma")
    assert last_move(cluster.ledger, 4243, "alpha") is None
    assert last_move(cluster.ledger, 4242, "gamma") is None
    refusal = gone.refusal(cluster, Plan(4242, "alpha", "delta"))
    assert refusal.message == "There is no process 4242 on alpha; nothing was touched."
    assert refusal.hint.startswith(f"It moved to gamma: migration {ids[1][:8]}, asked for at 20")
    cluster.ledger.open(ids[0] + "0", Plan(4242, "gamma", "alpha"))
    cluster.ledger.close(ids[0] + "0", _result(id=ids[0] + "0"))
    assert last_move(cluster.ledger, 4242, "alpha") is None
    assert "`sojourn ps alpha` shows" in gone.hint(cluster, Plan(4242, "alpha", "delta"))
