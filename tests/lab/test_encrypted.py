"""Hosts with certificates: an eavesdropper can read nothing, and a stranger can send nothing."""

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
from sojourn.cluster.store import Store
from sojourn.errors import StoreUnreachable
from sojourn.model import Plan
from sojourn.security.pki import Authority
from sojourn.security.tls import for_redis
from sojourn.system.run import run
from tests.certificates import authority as new_authority
from tests.certificates import issue
from tests.lab.site import Site, left_behind, redis_tls, runs_on

pytestmark = pytest.mark.lab

CERTIFICATES = "/etc/sojourn/pki"

#: Holds the same text many times, as a program holds a password.
KEEPER = """
import time
kept = bytearray(b"a password, " * 2_000_000)
open("/tmp/kept", "w").close()
while True:
    time.sleep(0.1)
"""

#: Captures everything that passes the host's network card until a file exists and nothing waits any
#: more, and counts.
LISTENER = """
import json, os, socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 2**27)  # SO_RCVBUFFORCE
wire.settimeout(0.05)
heard = passed = 0
open("/tmp/listening", "w").close()
while True:
    try:
        frame = wire.recv(2**17)
    except TimeoutError:
        if os.path.exists("/tmp/enough"):
            break
        continue
    passed, heard = passed + len(frame), heard + frame.count(b"a password, ")
print(json.dumps({"passed": passed, "heard": heard}), flush=True)
"""

#: Waits for a program that runs for a migration, then kills a victim.
KILL = (
    "until pgrep -f '{program}' >/dev/null; do sleep 0.002; done; "
    "sleep {after}; pkill -KILL -f '{victim}'"
)


@pytest.fixture
def counter(encrypted: Site) -> Iterator[Workload]:
    """Return a process on alpha whose memory takes some time to transfer."""
    counter = workload.start(encrypted.host("alpha"), "counter", mb=256)
    counter.wait_for_beats()
    yield counter
    for name in ("alpha", "beta"):
        encrypted.host(name).run(["pkill", "-KILL", "-f", counter.file.name], check=False)


def heard_on_the_way(site: Site, mode: str) -> dict[str, int]:
    """Migrate a process that keeps a password, and return what an eavesdropper has counted."""
    alpha = site.host("alpha")
    alpha.run(["rm", "-f", "/tmp/kept", "/tmp/listening", "/tmp/enough", "/tmp/heard"])
    keeper = alpha.launch([HOST_PYTHON, "-c", KEEPER])
    alpha.launch([HOST_PYTHON, "-c", LISTENER], log="/tmp/heard")
    for begun in ("/tmp/kept", "/tmp/listening"):
        there = ["test", "-e", begun]
        assert within(20, lambda there=there: alpha.run(there, check=False).returncode == 0)
    ended = site.migrate(keeper, "alpha", "beta", "--mode", mode)
    alpha.run(["touch", "/tmp/enough"])
    assert ended.code == 0, ended.answer
    site.host("beta").run(["kill", "-KILL", str(keeper)])
    assert within(30, lambda: alpha.run(["cat", "/tmp/heard"]).stdout)
    heard: dict[str, int] = json.loads(alpha.run(["cat", "/tmp/heard"]).stdout)
    assert heard["passed"] > 24_000_000, "the listener has not heard it all"
    return heard


def put_certificates(host: Host, place: Path) -> None:
    """Put both files where the host looks for them, replacing them atomically."""
    host.run(["mkdir", "-p", CERTIFICATES])
    for name in ("ca.crt", "host.pem"):
        put(host, name, (place / name).read_text())


def put(host: Host, name: str, text: str) -> None:
    """Replace a file atomically."""
    write = f"umask 077; cat > {CERTIFICATES}/new; mv {CERTIFICATES}/new {CERTIFICATES}/{name}"
    host.run(["sh", "-c", write], stdin=text)


@pytest.mark.parametrize("mode", Plan.MODES)
def test_an_eavesdropper_without_certificates(site: Site, mode: str) -> None:
    """Passwords are readable: the worker's warning is about this."""
    assert heard_on_the_way(site, mode)["heard"] > 0


@pytest.mark.parametrize("mode", Plan.MODES)
def test_an_eavesdropper_with_certificates(encrypted: Site, mode: str) -> None:
    """Nothing of the process's memory is readable."""
    assert heard_on_the_way(encrypted, mode)["heard"] == 0


@pytest.mark.parametrize("mode", Plan.MODES)
def test_there_and_back(encrypted: Site, counter: Workload, mode: str) -> None:
    """It arrives whole both times, and nothing is left on either host."""
    alpha, beta = encrypted.host("alpha"), encrypted.host("beta")
    for source, destination in (("alpha", "beta"), ("beta", "alpha")):
        ended = encrypted.migrate(counter.pid, source, destination, "--mode", mode)
        assert (ended.code, ended.answer["state"]) == (0, "completed"), ended.answer
        assert ended.answer["pages_bytes"] > 256_000_000
        assert counter.wait_for_beats(20).details["damaged_slices"] == 0
    assert within(10, lambda: left_behind(alpha) == left_behind(beta) == [])


def _given_back(site: Site, counter: Workload, killer: threading.Thread) -> None:
    """Migrate while something is killed, and check that the process runs on where it was."""
    killer.start()
    ended = site.migrate(counter.pid, "alpha", "beta")
    killer.join()
    alpha, beta = site.host("alpha"), site.host("beta")
    assert ended.code == 11, ended.answer
    assert within(10, lambda: runs_on(alpha, counter))
    assert not runs_on(beta, counter)
    assert counter.wait_for_beats(20).details["damaged_slices"] == 0
    assert within(10, lambda: left_behind(alpha) == left_behind(beta) == [])


@pytest.mark.parametrize(
    ("where", "program", "victim"),
    [
        ("alpha", "^/usr/sbin/criu dump", "[s]ojourn.transfer.holder"),
        ("beta", "^/usr/sbin/criu page-server", "[s]ojourn.transfer.holder"),
        ("beta", "^/usr/sbin/criu page-server", "^/usr/sbin/criu page-server"),
    ],
    ids=["the source's relay", "the destination's relay", "the page server behind it"],
)
def test_what_carries_the_memory_is_killed(
    encrypted: Site, counter: Workload, where: str, program: str, victim: str
) -> None:
    """In the middle of the memory: both CRIUs notice it, the dump fails, the tree runs on."""
    script = KILL.format(program=program, victim=victim, after=0.05)
    host = encrypted.host(where)
    _given_back(
        encrypted,
        counter,
        threading.Thread(target=lambda: host.run(["sh", "-c", script], deadline_s=60)),
    )


def test_a_certificate_that_has_ended(encrypted: Site, counter: Workload) -> None:
    """No migration starts, with the reason; a new certificate is used without a restart."""
    beta = encrypted.host("beta")
    authority = Authority.load(encrypted.lab.plan.authority)
    put_certificates(beta, authority.issue("beta", [], 0))
    assert within(10, lambda: encrypted.migrate(counter.pid, "alpha", "beta").code == 10)
    ended = encrypted.migrate(counter.pid, "alpha", "beta")
    report = json.loads(beta.run(["sojourn", "doctor", "--json"], check=False).stdout)
    put_certificates(beta, authority.issue("beta", [beta.address], 30))
    assert ended.answer["error"]["code"] == "CERTIFICATES", ended.answer
    assert "The certificate of beta has ended" in ended.answer["error"]["message"]
    (finding,) = [entry for entry in report["findings"] if entry["check"] == "certificates"]
    assert finding["level"] == "failure"
    assert "certificate has expired" in finding["sentence"]
    assert within(10, lambda: encrypted.migrate(counter.pid, "alpha", "beta").code == 0)


def test_a_certificate_of_another_host(encrypted: Site, counter: Workload) -> None:
    """The announcement does not show it; the hosts see it when they connect, before the freeze."""
    beta = encrypted.host("beta")
    authority = Authority.load(encrypted.lab.plan.authority)
    put_certificates(beta, authority.issue("gamma", [], 30))
    ended = encrypted.migrate(counter.pid, "alpha", "beta")
    put_certificates(beta, authority.issue("beta", [beta.address], 30))
    assert (ended.code, ended.answer["failure"]["code"]) == (11, "CHANNEL_FAILED"), ended.answer
    assert ended.answer["failure"]["message"].startswith("TLS with beta failed: Hostname mismatch")
    assert ended.answer["frozen_ms"] is None
    assert encrypted.migrate(counter.pid, "alpha", "beta").code == 0


def _believe(site: Site, bundle: str) -> None:
    """Let every machine of the lab trust these authorities, as the page describes."""
    plan = site.lab.plan
    (plan.authority / OUTSIDE / "ca.crt").write_text(bundle)
    for name in plan.machines:
        put(site.lab.host(name), "ca.crt", bundle)
    _restart_redis(site)


def _restart_redis(site: Site) -> None:
    site.lab.host("hub").service("redis", "restart")
    assert within(30, lambda: all(site.answers(site.host(name)) for name in ("alpha", "beta")))


def test_the_authority_is_replaced(encrypted: Site, counter: Workload, tmp_path: Path) -> None:
    """The page's steps: a process moves after each; in the end old certificates are refused."""
    plan = encrypted.lab.plan
    old, new = Authority.load(plan.authority), new_authority(tmp_path / "pki-new")
    texts = [(authority.directory / "ca.crt").read_text() for authority in (old, new)]
    hosts = ["alpha", "beta"]

    def moves() -> None:
        ended = encrypted.migrate(counter.pid, *hosts)
        assert ended.code == 0, ended.answer
        hosts.reverse()

    _believe(encrypted, "".join(texts))
    moves()
    for name in ("alpha", "hub", "beta"):
        file = new.issue(name, [plan.address(name)], 1) / "host.pem"
        put(encrypted.lab.host(name), "host.pem", file.read_text())
        _restart_redis(encrypted)
        moves()
    stays = (plan.authority / OUTSIDE / "host.pem").read_bytes()
    (plan.authority / OUTSIDE / "host.pem").write_bytes(
        (new.issue(OUTSIDE, [], 1) / "host.pem").read_bytes()
    )
    _believe(encrypted, texts[1])
    moves()
    (plan.authority / OUTSIDE / "host.pem").write_bytes(stays)
    with pytest.raises(StoreUnreachable):
        Store(plan.redis_url, redis_tls(encrypted.lab)).ping()
    (plan.authority / OUTSIDE / "host.pem").write_bytes(
        (new.directory / OUTSIDE / "host.pem").read_bytes()
    )


def test_redis_asks_for_a_certificate(encrypted: Site, tmp_path: Path) -> None:
    """The password is not enough; our certificate is accepted, that of another cluster is not."""
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


def test_flower_connects_to_redis_with_tls(encrypted: Site) -> None:
    """It has seen both hosts' workers, and serves the cluster's metrics."""

    def metrics() -> str:
        with urllib.request.urlopen(f"{encrypted.lab.plan.flower_url}/metrics", timeout=5) as page:
            return str(page.read().decode())

    assert within(20, lambda: 'flower_worker_online{worker="main@beta"}' in metrics())
    assert "sojourn_redis_up 1.0" in metrics()


def test_a_workers_configuration_shows_no_password(encrypted: Site) -> None:
    """Celery's remote control returns it without passwords; the log has no warning."""
    ask = "from workflows.app import the_app; print(the_app().control.inspect(timeout=5).conf())"
    report = run(
        [sys.executable, "-c", ask],
        deadline_s=30,
        env={"SOJOURN_CONFIG": str(encrypted.lab.config)},
    ).stdout
    plan = encrypted.lab.plan
    assert ("main@alpha" in report, plan.password in report, plan.key in report) == (
        True,
        False,
        False,
    )
    assert "insecure" not in encrypted.host("alpha").log("worker")


def test_one_host_without_certificates(site: Site, tmp_path: Path) -> None:
    """No migration starts between it and one that has them; the doctor names both hosts."""
    alpha = site.host("alpha")
    counter = workload.start(alpha, "counter", mb=16)
    counter.wait_for_beats()
    put_certificates(alpha, issue(new_authority(tmp_path / "pki"), "alpha").directory)
    site.configure(alpha, certificates=CERTIFICATES)
    try:
        ended = site.migrate(counter.pid, "alpha", "beta")
        report = json.loads(alpha.run(["sojourn", "doctor", "--json"], check=False).stdout)
    finally:
        site.configure(alpha)
        alpha.run(["pkill", "-KILL", "-f", counter.file.name])
    assert (ended.code, ended.answer["error"]["code"]) == (10, "CERTIFICATES")
    assert "alpha has certificates and beta has none" in ended.answer["error"]["message"]
    assert any(
        "alpha has certificates and beta has none" in entry["sentence"]
        for entry in report["findings"]
    )
