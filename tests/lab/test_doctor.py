"""``sojourn doctor`` on real hosts: one that is fit, and what it reports when one is broken."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from lab.host import Host, within
from sojourn.cluster.registry import ANNOUNCEMENT
from sojourn.security.seal import Seal
from tests.lab.site import Site

pytestmark = pytest.mark.lab

#: A typical firewall: it rejects some ports as if nothing listened there, and drops the packets to
#: others.
FIREWALL = """\
table inet doctor {
  chain input {
    type filter hook input priority 0
    tcp dport 32768-40000 reject
    tcp dport 60000-61000 drop
  }
}
"""

Found = dict[str, tuple[str, str]]

#: Breaks something on a host, and returns a function that repairs it.
Breaks = Callable[[Host], Callable[[], object]]


def examine(host: Host) -> tuple[int, Found]:
    """Return the doctor's exit code, and level and sentence of the last finding of each check."""
    done = host.run(["sojourn", "doctor", "--json"], check=False)
    report = json.loads(done.stdout)
    assert report["fit"] is (done.returncode == 0)
    return done.returncode, {
        finding["check"]: (finding["level"], finding["sentence"]) for finding in report["findings"]
    }


def failures(found: Found) -> dict[str, str]:
    """Return the sentences of what failed, by check."""
    return {check: sentence for check, (level, sentence) in found.items() if level == "failure"}


def test_a_host_that_is_fit(site: Site, alpha: Host) -> None:
    """Nothing fails, and everything was checked; the other host is known and reached."""
    site.host("beta")

    def is_fit() -> bool:
        code, found = examine(alpha)
        last[:] = [found]
        return code == 0 and found["peers"][0] == "ok"

    last: list[Found] = []
    assert within(20, is_fit), last
    wanted = "root kernel sysctl memory settings criu programs key address certificates state"
    of_others = {"redis", "clock", "worker", "peers", "reach", "seals"}
    assert set(last[0]) == {*wanted.split(), "journal", "on_end", "messages", *of_others}
    assert "none was refused since" in last[0]["messages"][1]
    assert "beta at" in last[0]["reach"][1]


def test_the_report_for_people(alpha: Host) -> None:
    """One or two lines for each finding, and a summary."""
    done = alpha.run(["env", "COLUMNS=200", "sojourn", "doctor"])
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       redis         Redis") for line in lines)
    assert lines[-1].endswith("0 failures")


def test_nothing_is_touched(alpha: Host) -> None:
    """It creates or changes no file but those that Python itself may write."""
    look = [
        "find",
        "/var/lib/sojourn",
        "/run/sojourn",
        "/etc",
        "-newer",
        "/run/before",
        "-not",
        "-name",
        "journal.db*",
    ]
    alpha.run(["touch", "/run/before"])
    examine(alpha)
    assert alpha.run(look).stdout == ""


def test_without_redis(site: Site, alpha: Host) -> None:
    """Checks that need Redis are skipped; the others still run."""
    hub = site.lab.host("hub")
    hub.service("redis", "down")
    try:
        code, found = examine(alpha)
    finally:
        hub.service("redis", "up")
    assert code == 1
    assert list(failures(found)) == ["redis"]
    assert "peers" not in found
    assert within(20, lambda: site.answers(alpha))


def broken_criu(host: Host) -> Callable[[], object]:
    """Remove CRIU."""
    host.run(["mv", "/usr/sbin/criu", "/usr/sbin/criu.away"])
    return lambda: host.run(["mv", "/usr/sbin/criu.away", "/usr/sbin/criu"])


def open_settings(host: Host) -> Callable[[], object]:
    """Let everybody read the cluster's key."""
    host.run(["chmod", "0644", "/etc/sojourn/sojourn.toml"])
    return lambda: host.run(["chmod", "0600", "/etc/sojourn/sojourn.toml"])


def stopped_worker(host: Host) -> Callable[[], object]:
    """Stop the worker regularly."""
    host.run(["sv", "-w", "30", "down", "worker"])

    def mend() -> None:
        host.service("worker", "up")
        assert within(30, lambda: examine(host)[0] == 0), host.log("worker")

    return mend


@pytest.mark.parametrize(
    ("breaks", "check", "text"),
    [
        (broken_criu, "criu", "/usr/sbin/criu is not installed"),
        (open_settings, "settings", "mode 0644"),
        (stopped_worker, "worker", "does not run"),
    ],
)
def test_what_is_broken_here(alpha: Host, breaks: Breaks, check: str, text: str) -> None:
    """Every defect is found by its check."""
    mend = breaks(alpha)
    try:
        code, found = examine(alpha)
    finally:
        mend()
    assert code == 1
    assert text in failures(found)[check]


def test_a_firewall_on_the_way(site: Site, alpha: Host) -> None:
    """Its rejections are distinguished from refusals by the host, which show that it is reached."""
    beta = site.host("beta")
    beta.run(["nft", "-f", "-"], stdin=FIREWALL)
    try:
        code, found = examine(alpha)
    finally:
        beta.run(["nft", "delete", "table", "inet", "doctor"])
    assert code == 1
    assert "port 32768 (a firewall refuses it), port 60999 (no answer)." in failures(found)["reach"]


def test_a_peer_with_another_criu(site: Site, alpha: Host) -> None:
    """A host that announces an old CRIU is a failure: no process can move between the two."""
    hub = site.lab.host("hub")
    key = "sojourn:host:theta"
    announcement = {
        "name": "theta",
        "address": site.lab.plan.address("beta"),
        "sojourn": "0",
        "criu": "3.19",
        "kernel": "6.1",
        "machine": "x86_64",
        "cpus": 1,
        "memory_bytes": 1,
        "free_bytes": 1,
        "running": 0,
        "announced": 0,
    }
    redis = ["redis-cli", "--no-auth-warning", "-a", site.lab.plan.password]
    sealed = Seal(site.lab.plan.key, "theta").close(ANNOUNCEMENT, "theta", announcement)
    hub.run([*redis, "SADD", "sojourn:hosts", "theta"])
    hub.run([*redis, "SET", key, sealed, "EX", "30"])
    try:
        code, found = examine(alpha)
    finally:
        hub.run([*redis, "DEL", key])
        hub.run([*redis, "SREM", "sojourn:hosts", "theta"])
    assert code == 1
    assert "theta has 3.19; they are not compatible." in failures(found)["peers"]
