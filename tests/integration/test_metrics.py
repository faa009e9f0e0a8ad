"""Metrics: counted once in a real Redis, exposed as Prometheus reads them, named as rules do."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import pytest

from sojourn.cluster import counters, metrics
from sojourn.cluster.client import Cluster
from sojourn.cluster.ledger import OPEN, Ledger, key
from sojourn.cluster.metrics import cluster_collector, exposition
from sojourn.cluster.queue import Entry
from sojourn.cluster.store import Store
from sojourn.migration.context import Host
from sojourn.model import Failure, Member, Phase, Role, State, StepRecord
from sojourn.settings import Settings, variable
from sojourn.state.message import Outcome
from sojourn.system.process import identity
from sojourn.system.run import run, spawn
from tests.conftest import eventually
from tests.integration.conftest import HOSTS, PLAN, ROOT, Redis
from tests.integration.test_registry import ALPHA
from workers import metrics as worker_metrics
from workers.metrics import Counted, HostCollector

DEPLOY = ROOT / "deploy"
NAMES = {name for family in (*metrics.FAMILIES, *worker_metrics.FAMILIES) for name in family.names}

#: What the processes of a worker have counted.
COUNTED = Counted({("main", "killed"): 3}, {("main", "unsigned"): 7}, {"main": 0.5})

#: No Redis listens at port 1.
NOWHERE = "redis://127.0.0.1:1/0"


def _result(state: State = State.COMPLETED, **more: Any) -> dict[str, Any]:
    request = {
        "state": state,
        "owner": "beta",
        "source": "alpha",
        "destination": "beta",
        "mode": "stop-and-copy",
    }
    step = {
        "name": "dump",
        "host": "alpha",
        "started": 5.0,
        "ended": 5.3,
        "outcome": "",
        "failed": False,
    }
    steps = [step, {**step, "name": "restore", "ended": None}]
    return {
        **request,
        "frozen_ms": 700.0,
        "downtime_ms": 900.0,
        "total_ms": 1400.0,
        "pages_bytes": 1000,
        "images_bytes": 10,
        "steps": steps,
        "failure": None,
        **more,
    }


@pytest.fixture
def settings(redis: Redis) -> Settings:
    """Give out settings of this Redis, with nothing in it."""
    store = Store(redis.url)
    store._redis.flushall()
    return Settings(redis_url=redis.url)


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    """Give out the ledger."""
    return Ledger(Store(settings.redis_url), 60)


def _values(settings: Settings) -> dict[str, float]:
    text = exposition(cluster_collector(settings)).decode()
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def _ended(ledger: Ledger, result: dict[str, Any]) -> str:
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    ledger.close(migration, result)
    return migration


WAY = 'destination="beta",mode="stop-and-copy"'


def test_what_ended_is_counted(ledger: Ledger, settings: Settings) -> None:
    """State, pair of hosts, bytes, and each duration in its bucket and in all above it."""
    _ended(ledger, _result())
    _ended(ledger, _result(frozen_ms=90_000.0))
    values = _values(settings)
    assert values[f'sojourn_migrations_total{{{WAY},source="alpha",state="completed"}}'] == 2
    name = 'sojourn_freeze_seconds_bucket{{destination="beta",le="{le}",mode="stop-and-copy"}}'
    buckets = {le: values[name.format(le=le)] for le in ("0.5", "1", "60", "120", "+Inf")}
    assert buckets == {"0.5": 0, "1": 1, "60": 1, "120": 2, "+Inf": 2}
    assert values[f"sojourn_freeze_seconds_sum{{{WAY}}}"] == pytest.approx(90.7)
    assert values[f"sojourn_downtime_seconds_count{{{WAY}}}"] == 2
    assert values[f"sojourn_migration_seconds_count{{{WAY}}}"] == 2
    assert values['sojourn_step_seconds_count{step="dump"}'] == 2
    assert 'sojourn_step_seconds_count{step="restore"}' not in values
    assert (
        values['sojourn_moved_bytes_total{destination="beta",kind="pages",source="alpha"}'] == 2000
    )


def test_an_end_is_counted_once(ledger: Ledger, settings: Settings) -> None:
    """It may be recorded again, and differently: a later clean-up is no second migration."""
    migration = _ended(ledger, _result(State.CLEANUP_PENDING))
    assert _values(settings)['sojourn_migrations_open{state="completed, clean-up pending"}'] == 1
    ledger.close(migration, _result())
    values = _values(settings)
    assert {
        name: value for name, value in values.items() if name.startswith("sojourn_migrations_total")
    } == {
        f'sojourn_migrations_total{{{WAY},source="alpha",state="completed, clean-up pending"}}': 1
    }
    assert values[f"sojourn_freeze_seconds_count{{{WAY}}}"] == 1
    assert values['sojourn_migrations_open{state="completed, clean-up pending"}'] == 0


def test_a_doubt_is_no_end(ledger: Ledger, settings: Settings) -> None:
    """It is among the open ones, and counted as an end when it has become one."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    ledger.record_doubt(migration)
    ledger.close(migration, _result(State.IN_DOUBT))
    values = _values(settings)
    assert values["sojourn_migrations_in_doubt"] == 1
    assert not [name for name in values if name.startswith("sojourn_migrations_total")]
    ledger.close(migration, _result())
    assert _values(settings)["sojourn_migrations_in_doubt"] == 0
    assert (
        _values(settings)[f'sojourn_migrations_total{{{WAY},source="alpha",state="completed"}}']
        == 1
    )


def test_a_failure_is_counted_by_step_and_code(ledger: Ledger, settings: Settings) -> None:
    """What did not arrive has no freeze that could be compared."""
    failure = {
        "code": "CRIU_FAILED",
        "step": "dump",
        "message": "no",
        "hint": "",
        "host": "alpha",
        "log": "",
    }
    _ended(ledger, _result(State.ROLLED_BACK, failure=failure))
    values = _values(settings)
    assert values['sojourn_failures_total{code="CRIU_FAILED",step="dump"}'] == 1
    assert not [name for name in values if name.startswith("sojourn_freeze_seconds")]


def test_open_ones_by_their_state(ledger: Ledger, settings: Settings) -> None:
    """What waits and what moves; what has expired in the ledger is dropped."""
    first, second = str(uuid4()), str(uuid4())
    ledger.open_all([(first, PLAN, None), (second, PLAN, None)])
    ledger.record_state(first, State.RUNNING)
    assert ledger.open_ones() == {first: State.RUNNING, second: State.QUEUED}
    store = Store(settings.redis_url)
    store.write([["DEL", key(second)]])
    assert _values(settings)['sojourn_migrations_open{state="queued"}'] == 0
    assert list(store.fields(OPEN)) == [first]


def _windowed(ledger: Ledger, missing: int | None) -> None:
    migration = str(uuid4())
    ledger.open(migration, replace(PLAN, mode="post-copy"))
    ledger.record_state(migration, State.RUNNING)
    ledger.record_step(migration, "destination", StepRecord("restore", "beta", 1.0, 2.0))
    if missing is not None:
        ledger.record_progress(migration, bytes=1, total=2, missing=missing)


def test_windows_that_are_open(ledger: Ledger, settings: Settings) -> None:
    """How many, and what is still to come, by the hosts; not those before or after that."""
    for missing in (None, 500, 70):
        _windowed(ledger, missing)
    begun = str(uuid4())
    ledger.open(begun, replace(PLAN, mode="post-copy"))
    ledger.record_state(begun, State.RUNNING)
    _ended(ledger, _result(mode="post-copy"))
    values = _values(settings)
    way = 'destination="beta",source="alpha"'
    assert values[f"sojourn_windows_open{{{way}}}"] == 3
    assert values[f"sojourn_windows_missing_bytes{{{way}}}"] == 570


def test_what_post_copy_costs_is_counted(ledger: Ledger, settings: Settings) -> None:
    """How long memory came, how many pages were waited for, and how long at most."""
    late: dict[str, Any] = {
        "mode": "post-copy",
        "settled_ms": 4000.0,
        "faults": 158,
        "wait_longest_ms": 7.0,
    }
    _ended(ledger, _result(**late))
    _ended(ledger, _result(State.LOST, **late))
    values = _values(settings)
    way = 'destination="beta",mode="post-copy"'
    assert values[f"sojourn_settled_seconds_sum{{{way}}}"] == 4
    assert values[f"sojourn_faults_total{{{way}}}"] == 158
    name = 'sojourn_longest_wait_seconds_bucket{{destination="beta",le="{le}",mode="post-copy"}}'
    assert [values[name.format(le=le)] for le in ("0.005", "0.01")] == [0, 1]


def test_a_ledger_that_is_rebuilt_has_the_open_ones(ledger: Ledger) -> None:
    """A host records what its journal has; an end that another host has recorded stays."""
    moving, ended = str(uuid4()), str(uuid4())
    ledger.open(ended, PLAN)
    ledger.close(ended, _result())
    account = ledger.account(ended)
    assert account is not None
    running = replace(account, state=State.RUNNING, result=None)
    ledger.rebuild("alpha", [replace(running, id=migration) for migration in (moving, ended)])
    assert ledger.open_ones() == {moving: State.RUNNING}


def test_hosts_and_queue(settings: Settings) -> None:
    """What each host announces, whether it is silent or cordoned, and how long the queue is."""
    cluster = Cluster(settings)
    for host in (*HOSTS, "gamma"):
        cluster.registry.announce(
            replace(ALPHA, name=host, certified_until=2e9 if host == "beta" else None), 100
        )
    cluster.registry.cordon("beta")
    cluster.registry.withdraw("alpha")
    cluster.queue.put([Entry(str(uuid4()), str(uuid4()), PLAN.to_json())])
    values = _values(settings)
    assert (values['sojourn_host_up{host="alpha"}'], values['sojourn_host_up{host="beta"}']) == (
        0,
        1,
    )
    assert values['sojourn_host_cordoned{host="beta"}'] == 1
    assert values['sojourn_host_free_bytes{host="beta"}'] > 0
    assert 'sojourn_host_free_bytes{host="alpha"}' not in values
    assert values['sojourn_host_certificate_end_seconds{host="beta"}'] == 2e9
    assert 'sojourn_host_certificate_end_seconds{host="gamma"}' not in values
    assert values['sojourn_queue_length{standing="waiting"}'] == 1


def test_without_redis() -> None:
    """A scrape does not fail: it reports that Redis does not answer, and nothing else."""
    assert _values(Settings(redis_url=NOWHERE)) == {"sojourn_redis_up": 0}


def test_buckets_of_another_version() -> None:
    """What was counted with other bounds is kept, in the next bucket that exists."""
    assert counters.cumulated({"0.7": 2, "5.0": 1, "+Inf": 1}, (1, 5)) == [
        ("1", 2),
        ("5", 3),
        ("+Inf", 4),
    ]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Give out a host in whose journal a dump has begun and a restore has failed."""
    host = Host(
        Settings(host="alpha", redis_url=NOWHERE, state_dir=tmp_path, metrics_port=_free_port())
    )
    entry = host.journal.open("0123abcd", Role.SOURCE, PLAN)
    host.journal.start_step(entry, "examine", "alpha", {})
    host.journal.finish_step(entry, "examine", Outcome("fine"))
    host.journal.start_step(entry, "dump", "alpha", {})
    host.journal.claim_tree(entry, [Member(identity(1))])
    host.journal.advance(entry, Phase.FREEZING)
    other = host.journal.open("4567cdef", Role.DESTINATION, PLAN)
    host.journal.start_step(other, "restore", "alpha", {})
    host.journal.fail_step(other, "restore", Failure("X", "no"))
    return host


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_a_host_exposes_its_journal(host: Host) -> None:
    """Phases, what is held, how long a tree has been frozen, steps, lanes that died; no Redis."""
    text = exposition(HostCollector(host, COUNTED)).decode()
    assert 'sojourn_worker_migrations{host="alpha",phase="freezing",role="source"} 1.0' in text
    assert 'sojourn_worker_held{host="alpha",kind="tree"} 1.0' in text
    assert 'sojourn_worker_steps_total{host="alpha",outcome="failed",step="restore"} 1.0' in text
    assert 'sojourn_worker_step_seconds_count{host="alpha",step="examine"} 1.0' in text
    assert 'step="dump"' not in text
    assert 'lane_restarts_total{cause="killed",host="alpha",lane="main"} 3.0' in text
    assert 'refused_messages_total{host="alpha",lane="main",reason="unsigned"} 7.0' in text
    assert 'sojourn_worker_lane_silent_seconds{host="alpha",lane="main"} 0.5' in text
    (frozen,) = re.findall(r'sojourn_worker_frozen_seconds{host="alpha"} (.+)', text)
    assert 0 < float(frozen) < 60


def test_an_original_that_is_kept_is_no_frozen_tree(host: Host) -> None:
    """Its process runs elsewhere: what counts is how long that needs this host."""
    journal = host.journal
    entry = journal.open("89abcdef", Role.SOURCE, replace(PLAN, mode="post-copy"))
    journal.start_step(entry, "dump", "alpha", {})
    journal.claim_tree(entry, [Member(identity(os.getpid()))])
    assert journal.kept_since() is None
    for phase in (Phase.FREEZING, Phase.FROZEN, Phase.RELEASED):
        entry = journal.advance(entry, phase)
    first = journal.frozen_since()
    assert first is not None
    kept = journal.kept_since()
    assert kept is not None
    assert first < kept
    text = exposition(HostCollector(host, COUNTED)).decode()
    (window,) = re.findall(r'sojourn_worker_window_seconds{host="alpha"} (.+)', text)
    assert 0 < float(window) < 60


def test_scrapes_in_a_hurry_read_the_journal_once(host: Host) -> None:
    """They are answered with what the last one found."""
    collector = HostCollector(host, COUNTED)
    first = exposition(collector)
    host.journal.open("89abcdef", Role.SOURCE, PLAN)
    assert exposition(collector) == first


SERVER = """
from sojourn.migration.context import this_host
from workers.metrics import Counted, serve
serve(this_host(), Counted({('main', 'killed'): 0}, {}, {}))
"""


def test_a_worker_serves_them(host: Host, tmp_path: Path) -> None:
    """By HTTP, on the port of the settings, as promtool accepts them."""
    port = host.settings.metrics_port
    environment = {
        "SOJOURN_HOST": "alpha",
        "SOJOURN_STATE_DIR": str(tmp_path),
        "SOJOURN_METRICS_PORT": str(port),
    }
    environment |= {"SOJOURN_REDIS_URL": NOWHERE, "PYTHONPATH": ":".join([str(ROOT), *sys.path])}
    child = spawn([sys.executable, "-c", SERVER], output=tmp_path / "log", env=environment)

    def answer() -> bytes:
        try:
            return bytes(urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read())
        except OSError:
            return b""

    try:
        assert b"sojourn_worker_held" in eventually(answer)
        assert _checked("check", "metrics", stdin=answer().decode()) == ""
    finally:
        child.kill()


def test_a_port_that_is_taken_is_logged(host: Host, tmp_path: Path) -> None:
    """The server stays and tries again later: its supervisor need not start it over and over."""
    port = host.settings.metrics_port
    environment = {
        "SOJOURN_HOST": "alpha",
        "SOJOURN_STATE_DIR": str(tmp_path),
        "SOJOURN_METRICS_PORT": str(port),
    }
    environment |= {"PYTHONPATH": ":".join([str(ROOT), *sys.path])}
    with socket.create_server(("127.0.0.1", port)):
        child = spawn([sys.executable, "-c", SERVER], output=tmp_path / "log", env=environment)
        try:
            eventually(
                lambda: f"No metrics on 127.0.0.1 port {port}" in (tmp_path / "log").read_text()
            )
            assert child.poll() is None
        finally:
            child.kill()


def _promtool() -> str:
    """Return the program; skip where it is not installed, fail where it must be."""
    program = shutil.which("promtool") or shutil.which(
        "promtool", path=str(Path(sys.executable).parent)
    )
    if program is None:
        (pytest.fail if variable("CI") == "true" else pytest.skip)("promtool is not installed")
    return program


def _output(*words: str | Path) -> str:
    """Return all output of promtool."""
    done = run([_promtool(), *words], deadline_s=30, check=False)
    return done.stdout + done.stderr


def _checked(*words: str | Path, stdin: str | None = None) -> str:
    """Return the complaints of promtool, empty if it has none."""
    done = run([_promtool(), *words], deadline_s=30, check=False, stdin=stdin)
    return "" if done.returncode == 0 and not done.stderr else done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    """Every expression parses, every annotation is a template."""
    assert _checked("check", "rules", DEPLOY / "prometheus/alerts.yml") == ""


def test_alerts_fire_when_they_should() -> None:
    """At the times that alerts.yml has beside the metrics of an imagined hour."""
    assert "SUCCESS" in _output("test", "rules", ROOT / "tests/integration/alerts.yml")


def test_promtool_accepts_the_metrics(ledger: Ledger, settings: Settings) -> None:
    """Names, types and help of every metric are as Prometheus wants them, and all have a value."""
    failure = {
        "code": "CRIU_FAILED",
        "step": "dump",
        "message": "no",
        "hint": "",
        "host": "alpha",
        "log": "",
    }
    late = {"settled_ms": 1.0, "faults": 2, "wait_longest_ms": 3.0}
    _ended(ledger, _result(State.CLEANUP_PENDING, failure=failure, **late))
    Store(settings.redis_url).write(counters.refusal("cordon"))
    _windowed(ledger, 7)
    Cluster(settings).registry.announce(replace(ALPHA, certified_until=2e9), 100)
    text = exposition(cluster_collector(settings)).decode()
    exposed = {
        line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")
    }
    assert exposed == {name for family in metrics.FAMILIES for name in family.names}
    assert _checked("check", "metrics", stdin=text) == ""


@pytest.mark.parametrize("file", ["prometheus/alerts.yml", "grafana/sojourn.json"])
def test_dashboard_and_rules_name_metrics_that_exist(file: str) -> None:
    """A metric that was renamed would leave an empty panel, or an alert that never fires."""
    named = set(re.findall(r"\bsojourn_[a-z_]+\b", (DEPLOY / file).read_text()))
    assert named
    assert named - NAMES == set()


def test_every_metric_is_on_the_dashboard() -> None:
    """Of a distribution its buckets are enough."""
    panels = json.loads((DEPLOY / "grafana/sojourn.json").read_text())["panels"]
    shown = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    families = (*metrics.FAMILIES, *worker_metrics.FAMILIES)
    assert [
        family.name for family in families if not any(name in shown for name in family.names)
    ] == []


def test_every_metric_is_documented_and_no_other() -> None:
    """The tables of the page on monitoring list them by their names."""
    page = (ROOT / "docs/monitoring.md").read_text()
    documented = set(re.findall(r"^\| `(sojourn_[a-z_]+)` \|", page, re.MULTILINE))
    families = (*metrics.FAMILIES, *worker_metrics.FAMILIES)
    named = {family.name if family.bounds else next(iter(family.names)) for family in families}
    assert documented == named


def test_every_alert_is_documented_and_no_other() -> None:
    """Whoever is woken by one finds what to do about it, by the link in the alert."""
    rules = (DEPLOY / "prometheus/alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    page = (ROOT / "docs/alerts.md").read_text()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == alerts
    links = re.findall(r'runbook_url: "{{ \$externalLabels.docs_url }}(\S+)"', rules)
    assert links == [f"/docs/alerts.html#{alert.lower()}" for alert in alerts]


def _expressions() -> list[str]:
    """Return the expressions of the dashboard's panels."""
    panels = json.loads((DEPLOY / "grafana/sojourn.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_promtool_accepts_the_dashboard(tmp_path: Path) -> None:
    """With Grafana's variables filled in, every expression of a panel parses."""
    filled = [
        each.replace("$__rate_interval", "5m").replace("$host", ".*") for each in _expressions()
    ]
    rules = [
        {"record": "a:panel", "expr": each, "labels": {"n": n}} for n, each in enumerate(filled)
    ]
    place = tmp_path / "rules.yml"
    place.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert _checked("check", "rules", place) == ""


def test_the_dashboard_can_be_limited_to_hosts() -> None:
    """Each metric with a label for a host is filtered by the variable."""
    families = [
        family
        for family in (*metrics.FAMILIES, *worker_metrics.FAMILIES)
        if {"host", "destination"} & {*family.labels}
    ]
    unfiltered = [
        (name, expression)
        for family in families
        for expression in _expressions()
        for name in family.names
        for found in re.findall(rf"\b{name}\b({{[^}}]*}})?", expression)
        if '=~"$host"' not in found
    ]
    assert unfiltered == []
