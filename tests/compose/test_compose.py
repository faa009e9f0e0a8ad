"""docker-compose.yml is built and started, and what its page promises is checked from outside."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import pytest

from tests.compose.conftest import PAGE, commands
from tests.compose.engine import CHECKOUT, Engine
from tests.conftest import eventually
from tests.integration.door import Door

#: The time of the first test includes building the images.
pytestmark = pytest.mark.timeout(1200)

COUNTER = "lab.workloads.counter"

#: Prints the PIDs whose command line contains a text, but its own.
FIND = """
import os, pathlib, sys
for place in pathlib.Path("/proc").glob("[0-9]*"):
    if int(place.name) != os.getpid() and sys.argv[1].encode() in (place / "cmdline").read_bytes():
        print(place.name)
"""


def status(cluster: Engine) -> dict[str, Any]:
    """Return the workload's last report."""
    found: dict[str, Any] = json.loads(cluster.inside("beta", "cat", "/shared/counter.json").stdout)
    return found


def runs_on(cluster: Engine, host: str) -> bool:
    """Whether a process of the workload is in that container."""
    return bool(cluster.inside(host, "python3", "-c", FIND, COUNTER).stdout.strip())


def beats_on(cluster: Engine, host: str) -> bool:
    """Whether the workload reports that it runs on that host."""
    return bool(status(cluster)["arrivals"][-1]["host"] == host)


def secret(cluster: Engine, name: str) -> str:
    """Return one of the secrets in ``.env``."""
    found = re.search(rf"^{name}=(\w+)$", (cluster.checkout / ".env").read_text(), re.MULTILINE)
    assert found
    return found[1]


def redis(cluster: Engine, user: str, password: str, *command: str) -> str:
    """Return Redis's answer to a user."""
    login = ["--user", user, "--pass", password, "--no-auth-warning"] if user else []
    done = cluster.inside("redis", "redis-cli", *login, *command, check=False)
    return (done.stdout + done.stderr).strip()


def test_the_documented_command_migrates_between_the_containers_and_back(cluster: Engine) -> None:
    """The process runs on one host only, and keeps its PID, its count and its memory."""
    there, _, back = commands("Migrate")
    before = status(cluster)
    for line, source, destination in ((there, "alpha", "beta"), (back, "beta", "alpha")):
        assert runs_on(cluster, source)
        cluster.follow(line)
        assert runs_on(cluster, destination)
        assert not runs_on(cluster, source)
        eventually(partial(beats_on, cluster, destination))
    after = status(cluster)
    assert after["pid"] == before["pid"]
    assert after["counter"] > before["counter"]
    assert [arrival["host"] for arrival in after["arrivals"]] == ["alpha", "beta", "alpha"]
    assert after["damaged_slices"] == 0


def test_a_process_outlives_the_worker(cluster: Engine) -> None:
    """The worker is started again, and the processes of the host run on."""
    before = status(cluster)
    pid = "/run/sojourn/worker.pid"
    killed = cluster.inside("alpha", "cat", pid).stdout
    cluster.inside("alpha", "sh", "-c", f"kill -KILL $(cat {pid})")
    eventually(lambda: cluster.inside("alpha", "cat", pid).stdout != killed, within_s=60)
    eventually(lambda: cluster.inside("alpha", "healthy", check=False).returncode == 0, within_s=60)
    assert status(cluster)["counter"] > before["counter"]
    assert len(status(cluster)["arrivals"]) == len(before["arrivals"])


def test_flower_requires_a_login(cluster: Engine) -> None:
    """Its pages require the password of .env, and are served on the loopback only."""
    base = f"http://127.0.0.1:{cluster.port}"
    assert Door(base).ask("/migrations").code == 401
    assert Door(base, "admin:wrong").ask("/migrations").code == 401
    shown = Door(base, f"admin:{secret(cluster, 'FLOWER_PASSWORD')}").ask("/migrations")
    assert shown.code == 200
    assert "Migrations" in shown.text
    published = cluster.compose("port", "flower", "5555").stdout.strip()
    assert published == f"127.0.0.1:{cluster.port}"


def test_redis_refuses_strangers_and_what_users_do_not_need(cluster: Engine) -> None:
    """No password, a wrong one, and commands and keys that a user does not need."""
    worker, flower = (
        secret(cluster, "REDIS_WORKER_PASSWORD"),
        secret(cluster, "REDIS_FLOWER_PASSWORD"),
    )
    assert "NOAUTH" in redis(cluster, "", "", "GET", "sojourn:hosts")
    assert "WRONGPASS" in redis(cluster, "worker", flower, "PING")
    assert "WRONGPASS" in redis(cluster, "default", "", "PING")
    assert redis(cluster, "health", "any", "PING") == "PONG"
    assert "NOPERM" in redis(cluster, "health", "any", "SMEMBERS", "sojourn:hosts")
    # An announcement lasts for seconds; on a busy machine the next one may be late.
    announced = partial(redis, cluster, "worker", worker, "EXISTS", "sojourn:host:alpha")
    assert eventually(lambda: announced() == "1", within_s=30)
    for command in (
        ["CONFIG", "GET", "dir"],
        ["FLUSHALL"],
        ["KEYS", "*"],
        ["ACL", "LIST"],
        ["MONITOR"],
        ["SHUTDOWN"],
    ):
        assert "NOPERM" in redis(cluster, "worker", worker, *command)
        assert "NOPERM" in redis(cluster, "flower", flower, *command)
    for command in (
        ["SET", "sojourn:host:gamma", "x"],
        ["BRPOP", "alpha", "1"],
        ["PUBLISH", "else", "x"],
    ):
        assert "NOPERM" in redis(cluster, "flower", flower, *command)


def test_redis_keeps_its_data(cluster: Engine) -> None:
    """After a restart also transactions are there: Redis reads its file as the user ``default``."""
    worker = secret(cluster, "REDIS_WORKER_PASSWORD")

    def ids() -> str:
        return redis(cluster, "worker", worker, "ZRANGE", "sojourn:migrations", "0", "-1")

    known = ids()
    assert known
    cluster.compose("restart", "redis")
    eventually(lambda: redis(cluster, "health", "any", "PING") == "PONG", within_s=60)
    assert ids() == known


def test_the_cluster_itself_is_refused_nothing(cluster: Engine) -> None:
    """Workers, the command line and Flower need no right that users.acl does not give them."""
    worker = secret(cluster, "REDIS_WORKER_PASSWORD")

    def refused() -> str:
        output = redis(cluster, "worker", worker, "INFO", "errorstats")
        return "".join(re.findall(r"errorstat_NOPERM:count=\d+", output))

    before = refused()
    login = Door(f"http://127.0.0.1:{cluster.port}", f"admin:{secret(cluster, 'FLOWER_PASSWORD')}")
    eventually(lambda: cluster.inside("alpha", "healthy", check=False).returncode == 0, within_s=60)
    drain = cluster.inside("flower", "sojourn", "drain", "alpha", "--json", check=False)
    assert drain.returncode in {0, 1}, drain.stderr
    for arguments in (
        "uncordon alpha",
        "hosts",
        "list",
        "queue",
        "batches",
        "history",
        "metrics",
        "ps beta",
    ):
        cluster.inside("flower", "sojourn", *arguments.split())
    for path in ("/", "/workers", "/broker", "/tasks", "/migrations", "/metrics"):
        assert login.ask(path).code == 200
    assert refused() == before


def test_no_container_is_privileged(cluster: Engine) -> None:
    """Hosts have the capabilities that the page explains, the other containers none."""
    explained = set(re.findall(r"^\| `([A-Z_]+)` \|", PAGE.read_text(), re.MULTILINE))
    for service, wanted in (
        ("alpha", explained),
        ("beta", explained),
        ("redis", set()),
        ("flower", set()),
    ):
        output = cluster.docker(
            "inspect", "--format", "{{json .HostConfig}}", cluster.container(service)
        ).stdout
        config = json.loads(output)
        assert not config["Privileged"]
        assert {name.removeprefix("CAP_") for name in config["CapAdd"] or []} == wanted
        assert config["CapDrop"] == ["ALL"]
        assert config["RestartPolicy"]["Name"] == "unless-stopped"


def test_no_secret_is_committed_or_in_an_image(cluster: Engine) -> None:
    """Only the owner reads the file of secrets; git and builds ignore it; it is written once."""
    file = cluster.checkout / ".env"
    written = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    cluster.follow("deploy/docker/secrets")
    assert file.read_text() == written
    assert ".env" in (CHECKOUT / ".gitignore").read_text().splitlines()
    # Some directories are closed to the container's root, so find(1) may end with an error.
    assert cluster.inside("alpha", "find", "/", "-xdev", "-name", ".env", check=False).stdout == ""
