"""A process that was rolled back is as it was, and is not reported as running if it is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.host import Host, within
from tests.lab.site import Site, left_behind, rolled_back
from tests.lab.test_check import check, stopping

pytestmark = pytest.mark.lab

HOLDING = "/opt/sojourn/src/tests/lab/holding.py"
LOG = "/shared/holding.log"

#: A file that both hosts see, and one that each has for itself.
SHARED, OWN = "/shared/leased", "/srv/leased"

#: What the kernel answers to a program that uses a socket whose connection has ended: what poll
#: shows, then receive, send, the peer's name, and a new connection.
CLOSED = {
    "never": "0x14 ENOTCONN EPIPE ENOTCONN connected",
    "bound": "0x14 ENOTCONN EPIPE ENOTCONN connected",
    "refused": "0x14 ENOTCONN EPIPE ENOTCONN connected",
    "reset": "0x2015 b'' EPIPE ENOTCONN EISCONN",
    "unread": "0x2015 b'unread' EPIPE ENOTCONN EISCONN",
}


@pytest.fixture(autouse=True)
def nothing_left(alpha: Host, beta: Host) -> Iterator[None]:
    """End the programs on both hosts after each test."""
    yield
    for host in (alpha, beta):
        host.run(["pkill", "-KILL", "-f", HOLDING], check=False)


def hold(host: Host, *what: str, inside: tuple[str, ...] = ()) -> int:
    """Start a program that holds something; return its PID."""
    host.run(["sh", "-c", f": > {LOG}; touch {SHARED} {OWN}"])
    pid = host.launch([*inside, "/usr/bin/python3", HOLDING, *what], log=LOG)
    assert within(10, lambda: "ready" in host.run(["cat", LOG]).stdout), host.run(["cat", LOG])
    return pid


def asked(host: Host, pid: int, lines: int = 1) -> list[str]:
    """Have the program say what it finds."""
    host.run(["sh", "-c", f": > {LOG}; kill -USR1 {pid}"])
    assert within(20, lambda: len(host.run(["cat", LOG]).stdout.splitlines()) == lines)
    return host.run(["cat", LOG]).stdout.splitlines()


@pytest.mark.parametrize("options", [(), ("--tcp-established",)], ids=["", "established"])
def test_connections_that_have_ended(
    site: Site, alpha: Host, beta: Host, options: tuple[str, ...]
) -> None:
    """What the program has not closed yet is as usable as before, on either host."""
    pid = hold(alpha, "closed", "127.0.0.1", *CLOSED, "error")
    if not options:
        assert rolled_back(site, pid).code == 11
        assert asked(alpha, pid, 6)[-1] == "error: 0x201d ECONNRESET EPIPE ENOTCONN EISCONN"
        alpha.run(["kill", "-KILL", str(pid)])
        pid = hold(alpha, "closed", "127.0.0.1", *CLOSED)
    ended = site.migrate(pid, "alpha", "beta", *options)
    assert ended.code == 0, ended.answer["failure"]
    lines = asked(beta, pid, 6 if options else 5)
    assert lines[:5] == [f"{kind}: {answers}" for kind, answers in CLOSED.items()]


def test_ended_connections_of_an_address_that_stays(site: Site, alpha: Host, beta: Host) -> None:
    """They become sockets that answer the same, but for a new connection, which they take."""
    pid = hold(alpha, "closed", alpha.address, "refused", "reset", "error")
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    refused, *resets = asked(beta, pid, 3)
    assert refused == f"refused: {CLOSED['refused']}"
    for line in resets:
        assert line.split(": ")[1].rpartition(" ")[0] == CLOSED["reset"].rpartition(" ")[0]


def test_sockets_may_reuse_addresses_as_before(site: Site, alpha: Host) -> None:
    """Repair mode takes SO_REUSEADDR away, and a service could not be started again at its port."""
    pid = hold(alpha, "connected")
    before = asked(alpha, pid)
    assert before == ["reuse=0 reuse=1"]
    assert rolled_back(site, pid, "--tcp-established").code == 11
    assert asked(alpha, pid) == before


@pytest.mark.parametrize(
    ("path", "mode", "why"),
    [
        (SHARED, "r+b", "it is written"),
        (SHARED, "rb", "both hosts see the same"),
        (OWN, "r+b", "it is written"),
    ],
    ids=["shared", "only read", "own"],
)
def test_a_lease_that_would_be_broken(
    site: Site, alpha: Host, beta: Host, path: str, mode: str, why: str
) -> None:
    """It is refused before anything touches the file; the program has its lease, and lives."""
    beta.run(["touch", OWN])
    pid = hold(alpha, "lease", path, mode, "write", "now")
    found = [
        text for code, _, text in stopping(check(site, pid, "--file-locks")) if code == "LEASE"
    ]
    (sentence,) = found
    assert sentence.startswith(
        f"{path} is under a lease (descriptor 3 of process {pid}), and {why}:"
    )
    ended = site.migrate(pid, "alpha", "beta", "--file-locks")
    assert (ended.code, ended.answer["failure"]["code"]) == (10, "LEASE")
    assert "LEASE" in alpha.run(["cat", f"/proc/{pid}/fdinfo/3"]).stdout


@pytest.mark.parametrize(
    ("path", "kind"), [(SHARED, "read"), (OWN, "write")], ids=["reading", "own"]
)
def test_a_lease_that_stays(site: Site, alpha: Host, beta: Host, path: str, kind: str) -> None:
    """One for reading on storage that both see, and one on a file that is only read: they move."""
    beta.run(["touch", OWN])
    pid = hold(alpha, "lease", path, "rb", kind, "now")
    ended = site.migrate(pid, "alpha", "beta", "--file-locks")
    assert ended.code == 0, ended.answer["failure"]
    assert "LEASE" in beta.run(["cat", f"/proc/{pid}/fdinfo/3"]).stdout


def test_a_lease_that_is_taken_after_the_check(site: Site, alpha: Host) -> None:
    """The images of the frozen tree show it, before anybody opens the file."""
    pid = hold(alpha, "lease", SHARED, "r+b", "write", "later")
    take = lambda: asked(alpha, pid)  # noqa: E731
    ended = site.migrate_meanwhile(pid, (alpha, "dump.begin"), take, "--file-locks")
    assert (ended.code, ended.answer["failure"]["code"]) == (11, "LEASE")
    assert "LEASE" in alpha.run(["cat", f"/proc/{pid}/fdinfo/3"]).stdout
    assert left_behind(alpha) == []


def test_a_process_that_ends_when_it_is_woken(site: Site, alpha: Host) -> None:
    """It does not run on as before, and nothing reports that it does."""
    pid = hold(alpha, "waiting")
    ended = rolled_back(site, pid, act=lambda: alpha.run(["kill", "-TERM", str(pid)]))
    answer = ended.answer
    assert (ended.code, answer["state"], answer["owner"]) == (13, "lost", None)
    assert answer["ended"]["by"] == "signal 15"
    assert "was woken on alpha, and ended" in answer["failure"]["message"]
    assert left_behind(alpha) == []


def test_a_network_of_its_own_works_again(site: Site, alpha: Host, beta: Host) -> None:
    """CRIU had shut it off from all packets."""
    commands = ("iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore")
    stand_in = "printf '#!/bin/sh\n' > /usr/local/sbin/{0}; chmod +x /usr/local/sbin/{0}"
    for host in (alpha, beta):
        host.run(["sh", "-c", "; ".join(stand_in.format(command) for command in commands)])
    try:
        pid = hold(alpha, "waiting", inside=("unshare", "--net"))
        assert rolled_back(site, pid).code == 11
        tables = ["nsenter", f"--net=/proc/{pid}/ns/net", "nft", "list", "tables"]
        assert alpha.run(tables).stdout == ""
        ended = site.migrate(pid, "alpha", "beta")
        assert ended.code == 0, ended.answer["failure"]
        assert beta.run(tables).stdout == ""
    finally:
        for host in (alpha, beta):
            host.run(["rm", *(f"/usr/local/sbin/{command}" for command in commands)])
