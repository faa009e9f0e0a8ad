"""The worker of a host with all its processes, as ``sojourn worker`` starts it, CRIU a script."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from redis import Redis as Client

from sojourn.cluster.refused import kept as kept_in
from sojourn.migration.context import Host
from sojourn.system.run import Child, spawn
from tests.conftest import eventually
from tests.integration.conftest import Cluster, Redis
from workers import announcement

#: What the worker asks of CRIU when it starts.
CRIU = "#!/bin/sh\necho Version: 4.2.1\n"

PROCESSES = {"main", "frozen", "reconciler", "metrics", "courier"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def site(redis: Redis, tmp_path: Path) -> Cluster:
    """Return a cluster of one host, whose worker is not started."""
    criu = tmp_path / "criu"
    criu.write_text(CRIU)
    criu.chmod(0o755)
    port = _free_port()
    return Cluster(
        redis,
        tmp_path,
        hosts=("alpha",),
        criu=criu,
        announce_s=0.2,
        metrics_port=port,
        on_end="/bin/true",
    )


@pytest.fixture
def worker(site: Cluster) -> Iterator[Child]:
    """Start the worker, and wait until the host is announced."""
    site.registry.withdraw("alpha")
    argv = [sys.executable, "-m", "sojourn", "worker"]
    child = spawn(argv, output=site.place / "alpha.log", env=site.environment("alpha"))
    try:
        eventually(lambda: "alpha" in site.registry.alive(), within_s=60)
        yield child
    finally:
        child.kill()


def _children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(number) for number in children.split()]


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has reaped yet does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z" not in stat.read_text()


def _shown(site: Cluster, metric: str) -> dict[tuple[str, str], float]:
    """Return a metric by lane and its other label, as far as it is not 0."""
    url = f"http://127.0.0.1:{site.more['metrics_port']}/metrics"
    try:
        text = urlopen(url, timeout=5).read().decode()
    except OSError:
        return {}
    found = re.findall(rf"^{metric}{{(.*)}} (\S+)$", text, re.MULTILINE)
    labelled = [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), count) for labels, count in found]
    return {
        (labels["lane"], labels.get("cause") or labels.get("reason") or ""): float(count)
        for labels, count in labelled
        if float(count)
    }


def test_a_host_is_announced_with_what_it_has(site: Cluster, worker: Child) -> None:
    """CRIU's version is that of the start; the worker's PID is where other programs look for it."""
    info = site.registry.alive()["alpha"]
    assert (info.criu, info.cluster) == ("4.2.1", site.settings("alpha").cluster)
    assert (site.settings("alpha").runtime_dir / "worker.pid").read_text() == str(worker.pid)
    assert len(_children(worker.pid)) == len(PROCESSES)


def test_a_host_that_begins_cordoned(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cordoned at its first announcement; an operator's ``uncordon`` outlasts a restart."""
    caplog.set_level(logging.INFO)
    site = Cluster(redis, tmp_path, hosts=("gamma",), cordoned=True)
    host = Host(site.settings("gamma"))
    assert announcement.announce(host, "4.2.1", again=False)
    assert site.registry.alive()["gamma"].cordoned
    site.registry.uncordon("gamma")
    for again in (True, False):  # the same worker, and one that was started again
        assert announcement.announce(host, "4.2.1", again=again)
        assert not site.registry.alive()["gamma"].cordoned
    assert caplog.text.count("gamma begins cordoned") == 1


def test_a_host_on_a_full_disk_is_cordoned_once(redis: Redis, tmp_path: Path) -> None:
    """A worker that cannot remember its first announcement does not cordon at each later one."""
    site = Cluster(redis, tmp_path, hosts=("delta",), cordoned=True)
    host = Host(site.settings("delta"))
    host.settings.announced.symlink_to("/dev/full/announced")
    assert announcement.announce(host, "4.2.1", again=False)
    site.registry.uncordon("delta")
    assert announcement.announce(host, "4.2.1", again=True)
    assert not site.registry.is_cordoned("delta")


def test_each_process_that_dies_is_restarted(site: Cluster, worker: Child) -> None:
    """It is counted, and the host is announced again when all take work."""
    for pid in _children(worker.pid):
        os.kill(pid, signal.SIGKILL)
    died = {(name, "killed"): 1.0 for name in PROCESSES}
    eventually(lambda: _shown(site, "sojourn_worker_lane_restarts_total") == died, within_s=60)
    site.registry.withdraw("alpha")
    eventually(lambda: "alpha" in site.registry.alive(), within_s=60)
    for name in PROCESSES:
        assert f"Lane {name} was killed by signal 9 (Killed); it is" in site.log("alpha")


def test_a_deaf_lane(site: Cluster, worker: Child) -> None:
    """A host with a lane that does not listen is not announced, and is again when it does."""
    frozen = _children(worker.pid)[1]
    os.kill(frozen, signal.SIGSTOP)
    eventually(lambda: "alpha" not in site.registry.alive(), within_s=30)
    assert "Lane frozen has not listened to Redis" in site.log("alpha")
    silent = _shown(site, "sojourn_worker_lane_silent_seconds")
    assert silent["frozen", ""] > 5 > silent["main", ""]
    os.kill(frozen, signal.SIGCONT)
    eventually(lambda: "alpha" in site.registry.alive(), within_s=30)


def test_what_a_lane_refuses_is_counted(site: Cluster, worker: Child) -> None:
    """By lane and reason."""
    client = Client.from_url(site.redis.url)
    client.lpush("alpha", b"null", b"{}", b"[")
    client.lpush("alpha.frozen", b'{"headers": {}, "body": ""}')
    refused = {("main", "malformed"): 3.0, ("frozen", "unsigned"): 1.0}
    metric = "sojourn_worker_refused_messages_total"
    eventually(lambda: _shown(site, metric) == refused, within_s=20)
    # The doctor reads it from a file.
    directory = site.settings("alpha").runtime_dir
    counts = {"malformed": 3, "unsigned": 1}
    eventually(lambda: (kept := kept_in(directory)) and kept.counts == counts, within_s=20)


def test_a_worker_that_ends_withdraws_its_host(site: Cluster, worker: Child) -> None:
    """SIGTERM ends it with its children, and nothing of it stays."""
    children = _children(worker.pid)
    os.kill(worker.pid, signal.SIGTERM)
    assert eventually(lambda: worker.poll() is not None, within_s=30)
    assert worker.poll() == 0
    assert not any(_is_alive(pid) for pid in children)
    assert "alpha" not in site.registry.alive()
    assert not (site.settings("alpha").runtime_dir / "worker.pid").exists()


def test_the_children_end_with_a_worker_that_is_killed(site: Cluster, worker: Child) -> None:
    """The kernel ends them, and the announcement expires."""
    children = _children(worker.pid)
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: not any(_is_alive(pid) for pid in children), within_s=30)
    eventually(lambda: "alpha" not in site.registry.alive())
