"""The page about scripts to the letter: bash runs each of its blocks against a real cluster."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sojourn.cluster.queue import Entry
from sojourn.model import Plan, State
from sojourn.system.run import run, spawn
from tests.conftest import eventually
from tests.integration.conftest import HOSTS, Cluster
from tests.integration.test_metrics import _result
from tests.unit.test_docs_code import fenced

PAGE = Path(__file__).parents[2] / "docs/how-to/use-it-in-scripts.md"
BLOCKS = list(fenced(PAGE, "sh"))

Script = Callable[[str], list[str]]

LOST, DONE, QUEUED = "10500000-1", "d0000000-2", "90000000-3"


@pytest.fixture(scope="module")
def lanes(cluster: Cluster) -> Iterator[Cluster]:
    """Give both hosts their other lane too, and announce them."""
    cluster.announce()
    argv = [sys.executable, "-m", "tests.integration.worker"]
    frozen = [
        spawn(
            [*argv, host, "--frozen"],
            output=cluster.place / f"{host}.frozen.log",
            env=cluster.environment(host),
        )
        for host in HOSTS
    ]
    eventually(lambda: len(cluster.app.control.ping(timeout=0.3)) == 4, within_s=30)
    yield cluster
    for child in frozen:
        child.kill()


@pytest.fixture
def script(lanes: Cluster, tmp_path: Path) -> Script:
    """Run a block of the page that has certain words, and return the lines that it prints."""
    for program in ("bash", "jq", "xargs"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed: apt-get install {program}")
    command = tmp_path / "sojourn"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sojourn "$@"\n')
    command.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "PID": "4242"}

    def bash(words: str) -> list[str]:
        (block,) = (block for block in BLOCKS if words in block)
        argv = ["bash", "-eu", "-o", "pipefail", "-c", block]
        env = lanes.environment("tester") | path
        done = run(argv, deadline_s=120, env=env, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return bash


@pytest.fixture
def moved(lanes: Cluster) -> None:
    """Record a migration that was lost, one that arrived, and one that waits."""
    lanes.store._redis.delete("sojourn:migrations")
    for migration, state in ((LOST, State.LOST), (DONE, State.COMPLETED), (QUEUED, State.QUEUED)):
        lanes.ledger.open(migration, Plan(4242, "alpha", "beta"))
        if state.final:
            lanes.ledger.close(migration, _result(state, id=migration))


@pytest.mark.usefixtures("moved")
def test_rows_are_taken_apart(script: Script) -> None:
    """The cells are where the page says."""
    assert script("cut -f 1,5") == [
        *(f"{QUEUED}\tqueued", f"{DONE}\tcompleted", f"{LOST}\tlost"),
        *(f"{QUEUED} queued", f"{LOST} lost"),
    ]


@pytest.mark.usefixtures("moved")
def test_lines_of_json_are_chosen_from(script: Script) -> None:
    """By jq, which gets a document from each line."""
    assert script("-o jsonl | jq") == ["alpha", "beta", f"{DONE}\t900"]


@pytest.mark.usefixtures("moved")
def test_some_are_asked_for(script: Script, lanes: Cluster) -> None:
    """By time, state, route and command line."""
    (lanes.place / "alpha.trees").write_text(json.dumps([77]))
    first, history, last = script("--state lost --state in-doubt")
    assert (first, last) == (LOST, "77")
    assert history.split("\t")[:5] == ["alpha", "beta", "stop-and-copy", "1", "1"]


@pytest.mark.usefixtures("moved")
def test_names_go_into_the_next_command(script: Script, lanes: Cluster) -> None:
    """What waits is aborted; what a pattern finds is begun."""
    (lanes.place / "alpha.trees").write_text(json.dumps([77, 78]))
    lanes.queue.pause("a-batch")
    lanes.queue.put([Entry(QUEUED, "a-batch", Plan(4242, "alpha", "beta").to_json())])
    aborted, *ids = script("xargs")
    assert "aborted. The process runs on alpha." in aborted
    assert len(ids) == 2
    eventually(lambda: _states(lanes, ids) == [State.COMPLETED, State.COMPLETED], within_s=60)


def _states(cluster: Cluster, migrations: list[str]) -> list[State]:
    return [account.state for account in cluster.ledger.accounts(migrations)]


def test_exit_statuses_are_told_apart(script: Script) -> None:
    """There and back."""
    assert script("case $status in") == ["it runs on beta"]
    assert script('watch "$id"') == []


@pytest.mark.usefixtures("moved")
def test_clusters_are_named(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a file, and by a name that is one of a file."""
    file = tmp_path / ".config/sojourn/paris.toml"
    file.parent.mkdir(parents=True)
    file.write_text("keep_days = 7\n")
    # A test must not write into /etc.
    mine = [block.replace("/etc/sojourn/sojourn.toml", str(file)) for block in BLOCKS]
    monkeypatch.setattr(sys.modules[__name__], "BLOCKS", mine)
    assert script("--cluster") == [QUEUED, DONE, LOST] * 2


def test_every_block_is_tried() -> None:
    """A new one needs its test here."""
    source = Path(__file__).read_text().replace("\\", "")
    words = ["cut -f 1,5", "-o jsonl | jq", "--state lost --state in-doubt", "xargs"]
    words += ["case $status in", 'watch "$id"', "--cluster"]
    assert [[word in block for word in words].count(True) for block in BLOCKS] == [1] * len(words)
    assert all(f'("{word}")' in source or f"('{word}')" in source for word in words)
