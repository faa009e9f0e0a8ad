"""Hosts with certificates: nobody can read what crosses the network, and not just anybody can send it."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import workload
from lab.host import HOST_PYTHON, Host, within
from lab.plan import OUTSIDE
from lab.workload import Workload
from sojourn.errors import StoreUnreachable
from sojourn.pki import Authority
from sojourn.run import run
from sojourn.store import Store
from sojourn.tls import for_redis
from tests.certificates import authority as new_authority
from tests.certificates import issue
from tests.lab.site import Site, fresh_lab, left_behind, redis_tls, runs_on

pytestmark = pytest.mark.lab

CERTIFICATES = "/etc/sojourn/pki"

#: Holds the same words many times, as a program holds a password.
KEEPER = "import time; kept = bytearray(b'a password, ' * 2_000_000)\nwhile True: time.sleep(0.1)"

#: Listens to all that passes the host's network card until there is a file, and counts.
LISTENER = """
import json, os, socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 2**27)  # SO_RCVBUFFORCE
wire.settimeout(0.2)
heard = passed = 0
open("/tmp/listening", "w").close()
while not os.path.exists("/tmp/enough"):
    try:
        frame = wire.recv(2**17)
    except TimeoutError:
        continue
    passed, heard = passed + len(frame), heard + frame.count(b"a password, ")
print(json.dumps({"passed": passed, "heard": heard}), flush=True)
"""

#: Waits for a program that runs for a migration, and kills it, or what a word after it names.
KILL = "until pgrep -f '{program}' >/dev/null; do sleep 0.002; done; sleep {after}; pkill -KILL -f '{victim}'"


@pytest.fixture(scope="module")
def encrypted(suitable: None) -> Iterator[Site]:
    """Two hosts, a Redis and a command line that all have certificates."""
    with fresh_lab("encrypted", encrypted=True) as made:
        yield Site(made)


@pytest.fixture
def counter(encrypted: Site) -> Iterator[Workload]:
    """Return a process on alpha whose memory takes some time on the way."""
    counter = workload.start(encrypted.host("alpha"), "counter", mb=256)
    counter.wait_for_beats()
    yield counter
    for name in ("alpha", "beta"):
        encrypted.host(name).run(["pkill", "-KILL", "-f", counter.file.name], check=False)


def heard_on_the_way(site: Site) -> dict[str, int]:
    """Migrate a process that keeps a password, and return what one who listens in has heard."""
    alpha = site.host("alpha")
    keeper = alpha.launch([HOST_PYTHON, "-c", KEEPER])
    alpha.run(["rm", "-f", "/tmp/listening", "/tmp/enough"])
    alpha.launch([HOST_PYTHON, "-c", LISTENER], log="/tmp/heard")
    assert within(10, lambda: alpha.run(["test", "-e", "/tmp/listening"], check=False).returncode == 0)
    ended = site.migrate(keeper, "alpha", "beta")
    alpha.run(["touch", "/tmp/enough"])
    assert ended.code == 0, ended.said
    site.host("beta").run(["kill", "-KILL", str(keeper)])
    assert within(10, lambda: alpha.run(["cat", "/tmp/heard"]).stdout)
    heard: dict[str, int] = json.loads(alpha.run(["cat", "/tmp/heard"]).stdout)
    assert heard["passed"] > 24_000_000, "the listener has not heard it all"
    return heard


def put_certificates(host: Host, place: Path) -> None:
    """Put both files where the host looks for them, each in one instant."""
    host.run(["mkdir", "-p", CERTIFICATES])
    for name in ("ca.crt", "host.pem"):
        put(host, name, (place / name).read_text())


def put(host: Host, name: str, text: str) -> None:
    """Let a file take the place of the one that is there in one instant."""
    write = f"umask 077; cat > {CERTIFICATES}/new; mv {CERTIFICATES}/new {CERTIFICATES}/{name}"
    host.run(["sh", "-c", write], stdin=text)


def test_who_listens_in_without_certificates(site: Site) -> None:
    """Hears passwords: this is what the worker's warning is about."""
    assert heard_on_the_way(site)["heard"] > 0


def test_who_listens_in_with_certificates(encrypted: Site) -> None:
    """Hears nothing of what the process knows."""
    assert heard_on_the_way(encrypted)["heard"] == 0


def test_there_and_back(encrypted: Site, counter: Workload) -> None:
    """It arrives whole, both times, and nothing is left anywhere."""
    alpha, beta = encrypted.host("alpha"), encrypted.host("beta")
    for source, destination in (("alpha", "beta"), ("beta", "alpha")):
        ended = encrypted.migrate(counter.pid, source, destination)
        assert (ended.code, ended.said["state"]) == (0, "completed"), ended.said
        assert ended.said["pages_bytes"] > 256_000_000
        assert counter.wait_for_beats(20).details["damaged_slices"] == 0
    assert within(10, lambda: left_behind(alpha) == left_behind(beta) == [])


def _given_back(site: Site, counter: Workload, killer: threading.Thread) -> None:
    """Migrate while something is killed, and check that the process runs on where it was."""
    killer.start()
    ended = site.migrate(counter.pid, "alpha", "beta")
    killer.join()
    alpha, beta = site.host("alpha"), site.host("beta")
    assert ended.code == 11, ended.said
    assert within(10, lambda: runs_on(alpha, counter))
    assert not runs_on(beta, counter)
    assert counter.wait_for_beats(20).details["damaged_slices"] == 0
    assert within(10, lambda: left_behind(alpha) == left_behind(beta) == [])


@pytest.mark.parametrize(
    ("where", "program", "victim"),
    [
        ("alpha", "^/usr/sbin/criu dump", "[s]ojourn.holder"),
        ("beta", "^/usr/sbin/criu page-server", "[s]ojourn.holder"),
        ("beta", "^/usr/sbin/criu page-server", "^/usr/sbin/criu page-server"),
    ],
    ids=["the source's relay", "the destination's relay", "the page server behind it"],
)
def test_what_carries_the_memory_is_killed(
    encrypted: Site, counter: Workload, where: str, program: str, victim: str
) -> None:
    """In the middle of the memory: each CRIU sees that the other is gone, the dump fails, the tree runs on."""
    script = KILL.format(program=program, victim=victim, after=0.05)
    host = encrypted.host(where)
    _given_back(encrypted, counter, threading.Thread(target=lambda: host.run(["sh", "-c", script], deadline_s=60)))


def test_a_certificate_that_has_ended(encrypted: Site, counter: Workload) -> None:
    """Nothing is begun any more, and it says why; a new certificate counts at once, without a restart."""
    beta = encrypted.host("beta")
    authority = Authority.load(encrypted.lab.plan.authority)
    put_certificates(beta, authority.issue("beta", [], 0))
    assert within(10, lambda: encrypted.migrate(counter.pid, "alpha", "beta").code == 10)
    ended = encrypted.migrate(counter.pid, "alpha", "beta")
    told = json.loads(beta.run(["sojourn", "doctor", "--json"], check=False).stdout)
    put_certificates(beta, authority.issue("beta", [beta.address], 30))
    assert ended.said["error"]["code"] == "CERTIFICATES", ended.said
    assert "The certificate of beta has ended" in ended.said["error"]["message"]
    (said,) = [each for each in told["findings"] if each["check"] == "certificates"]
    assert said["level"] == "failure"
    assert "certificate has expired" in said["sentence"]
    assert within(10, lambda: encrypted.migrate(counter.pid, "alpha", "beta").code == 0)


def test_a_certificate_of_another_host(encrypted: Site, counter: Workload) -> None:
    """What no announcement tells is seen when the hosts meet, which is before the freeze."""
    beta = encrypted.host("beta")
    authority = Authority.load(encrypted.lab.plan.authority)
    put_certificates(beta, authority.issue("gamma", [], 30))
    ended = encrypted.migrate(counter.pid, "alpha", "beta")
    put_certificates(beta, authority.issue("beta", [beta.address], 30))
    assert (ended.code, ended.said["failure"]["code"]) == (11, "CHANNEL_FAILED"), ended.said
    assert ended.said["failure"]["message"].startswith("No TLS with beta: Hostname mismatch")
    assert ended.said["frozen_ms"] is None
    assert encrypted.migrate(counter.pid, "alpha", "beta").code == 0


def _believe(site: Site, bundle: str) -> None:
    """Let every machine of the lab take the word of these authorities, as the page says it."""
    plan = site.lab.plan
    (plan.authority / OUTSIDE / "ca.crt").write_text(bundle)
    for name in plan.machines:
        put(site.lab.host(name), "ca.crt", bundle)
    _restart_redis(site)


def _restart_redis(site: Site) -> None:
    site.lab.host("hub").service("redis", "restart")
    assert within(30, lambda: all(site.answers(site.host(name)) for name in ("alpha", "beta")))


def test_the_authority_is_replaced(encrypted: Site, counter: Workload, tmp_path: Path) -> None:
    """Step by step as the page says it; a process moves at each of them, and at the end the old ones open nothing."""
    plan = encrypted.lab.plan
    old, new = Authority.load(plan.authority), new_authority(tmp_path / "pki-new")
    texts = [(each.directory / "ca.crt").read_text() for each in (old, new)]
    hosts = ["alpha", "beta"]

    def moves() -> None:
        ended = encrypted.migrate(counter.pid, *hosts)
        assert ended.code == 0, ended.said
        hosts.reverse()

    _believe(encrypted, "".join(texts))
    moves()
    for name in ("alpha", "hub", "beta"):
        file = new.issue(name, [plan.address(name)], 1) / "host.pem"
        put(encrypted.lab.host(name), "host.pem", file.read_text())
        _restart_redis(encrypted)
        moves()
    stays = (plan.authority / OUTSIDE / "host.pem").read_bytes()
    (plan.authority / OUTSIDE / "host.pem").write_bytes((new.issue(OUTSIDE, [], 1) / "host.pem").read_bytes())
    _believe(encrypted, texts[1])
    moves()
    (plan.authority / OUTSIDE / "host.pem").write_bytes(stays)
    with pytest.raises(StoreUnreachable):
        Store(plan.redis_url, redis_tls(encrypted.lab)).ping()
    (plan.authority / OUTSIDE / "host.pem").write_bytes((new.directory / OUTSIDE / "host.pem").read_bytes())


def test_redis_asks_for_a_certificate(encrypted: Site, tmp_path: Path) -> None:
    """The password is not enough; ours is taken, and one of another cluster is not."""
    plan = encrypted.lab.plan
    stranger = issue(new_authority(tmp_path / "other"), "outside")
    stranger.authority.write_bytes((plan.authority / OUTSIDE / "ca.crt").read_bytes())
    Store(plan.redis_url, redis_tls(encrypted.lab)).ping()
    for tls in (
        {"ssl_ca_certs": str(plan.authority / OUTSIDE / "ca.crt")},
        for_redis(stranger.directory),
        for_redis(None),
    ):
        with pytest.raises(StoreUnreachable):
            Store(plan.redis_url, tls).ping()
    with pytest.raises(StoreUnreachable):
        Store(plan.redis_url.replace("rediss:", "redis:")).ping()


def test_flower_talks_to_redis_inside_tls(encrypted: Site) -> None:
    """It has seen both hosts' workers, and serves what Redis knows."""

    def metrics() -> str:
        with urllib.request.urlopen(f"{encrypted.lab.plan.flower_url}/metrics", timeout=5) as page:
            return str(page.read().decode())

    assert within(20, lambda: 'flower_worker_online{worker="main@beta"}' in metrics())
    assert "sojourn_redis_up 1.0" in metrics()


def test_a_worker_that_is_asked_for_its_configuration(encrypted: Site) -> None:
    """Answers without its passwords, and does not say that anything is insecure, since nothing is."""
    ask = "from workflows.app import the_app; print(the_app().control.inspect(timeout=5).conf())"
    told = run([sys.executable, "-c", ask], deadline_s=30, env={"SOJOURN_CONFIG": str(encrypted.lab.config)}).stdout
    plan = encrypted.lab.plan
    assert ("main@alpha" in told, plan.password in told, plan.key in told) == (True, False, False)
    assert "insecure" not in encrypted.host("alpha").log("worker")


def test_one_host_without_certificates(site: Site, tmp_path: Path) -> None:
    """Nothing is begun between it and one that has them, and the doctor says which is which."""
    alpha = site.host("alpha")
    counter = workload.start(alpha, "counter", mb=16)
    counter.wait_for_beats()
    put_certificates(alpha, issue(new_authority(tmp_path / "pki"), "alpha").directory)
    site.configure(alpha, certificates=CERTIFICATES)
    try:
        ended = site.migrate(counter.pid, "alpha", "beta")
        told = json.loads(alpha.run(["sojourn", "doctor", "--json"], check=False).stdout)
    finally:
        site.configure(alpha)
        alpha.run(["pkill", "-KILL", "-f", counter.file.name])
    assert (ended.code, ended.said["error"]["code"]) == (10, "CERTIFICATES")
    assert "alpha has certificates and beta has none" in ended.said["error"]["message"]
    assert any("beta has no certificates" in each["sentence"] for each in told["findings"])
