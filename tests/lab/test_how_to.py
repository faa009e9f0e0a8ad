"""The how-to guides that change hosts: their commands are run, and do what the pages describe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import pytest

from lab.host import Host, within
from sojourn.system.run import run
from tests.lab.site import Site, left_behind

pytestmark = pytest.mark.lab

HOW_TO = Path(__file__).parents[2] / "docs/how-to"
BLOCK = re.compile(
    r"^```bash\n(?:# on (?P<host>\w+)\n)?(?P<lines>.*?)^```", re.MULTILINE | re.DOTALL
)

PORT = "6390"
LOG = "/shared/database-client.log"

#: Counts in the database over one connection; ends if the connection breaks or an answer is out of
#: order.
CLIENT = f"""
import socket, sys, time
connection = socket.create_connection((sys.argv[1], {PORT}))
answers = connection.makefile("rb")
number = longest = 0
while True:
    sent = time.monotonic()
    connection.sendall(b"INCR number\\r\\n")
    number += 1
    assert answers.readline() == b":%d\\r\\n" % number
    longest = max(longest, time.monotonic() - sent)
    print(number, round(longest, 3), flush=True)
    time.sleep(0.005)
"""


@dataclass(frozen=True)
class Database:
    """A Redis server on alpha with an address of its own, and a client on the hub."""

    site: Site
    address: str
    pid: int
    client: int

    @property
    def host(self) -> Host:
        """Where the client runs."""
        return self.site.lab.host("hub")

    def answered(self) -> int:
        """Return how many answers the client has received; 0 if it has ended."""
        alive = self.host.run(["kill", "-0", str(self.client)], check=False).returncode == 0
        line = self.host.run(["tail", "-n", "1", LOG], check=False).stdout.split()
        return int(line[0]) if line and alive else 0

    def here(self, text: str) -> str:
        """Return a line of the page with this lab's addresses and PID."""
        hub = self.site.lab.plan.address("hub")
        for theirs, ours in (
            ("192.0.2.50", self.address),
            ("192.0.2.1", hub),
            ("4242", str(self.pid)),
        ):
            text = re.sub(rf"\b{re.escape(theirs)}\b", ours, text)
        return text


@pytest.fixture
def database(site: Site) -> Iterator[Database]:
    """Start server and client; afterwards end them and remove the address."""
    alpha, beta, hub = (site.lab.host(name) for name in ("alpha", "beta", "hub"))
    address = f"{site.lab.plan.address('hub').rpartition('.')[0]}.50"
    alpha.run(["ip", "address", "add", f"{address}/24", "dev", "eth0"])
    arguments = (
        "--bind",
        address,
        "--port",
        PORT,
        "--save",
        "",
        "--dir",
        "/var/tmp",
        "--protected-mode",
        "no",
    )
    server = alpha.launch(["redis-server", *arguments])
    assert within(
        10,
        lambda: (
            alpha.run(["redis-cli", "-h", address, "-p", PORT, "ping"], check=False).returncode == 0
        ),
    )
    hub.run(["rm", "-f", LOG])
    client = hub.launch(["python3", "-c", CLIENT, address], log=LOG)
    yield Database(site, address, server, client)
    hub.run(["kill", str(client)], check=False)
    for host in (alpha, beta):
        host.run(["kill", "-KILL", str(server)], check=False)
        host.run(["ip", "address", "del", f"{address}/24", "dev", "eth0"], check=False)


def test_a_database_moves_with_its_clients(database: Database) -> None:
    """Every block of the page: the client's connection survives, no answer is lost or repeated."""
    assert within(10, lambda: database.answered() > 100)
    for host, lines in BLOCK.findall((HOW_TO / "migrate-a-database.md").read_text()):
        for line in database.here(lines).splitlines():
            _do(database.site, host, line)
    before = database.answered()
    assert within(60, lambda: database.answered() > max(before, 100) + 100), database.host.run(
        ["cat", LOG]
    ).stdout[-500:]
    there = database.site.lab.host("beta").run(
        ["redis-cli", "-h", database.address, "-p", PORT, "get", "number"]
    )
    assert int(there.stdout) > before
    assert [left_behind(database.site.lab.host(name)) for name in ("alpha", "beta")] == [[], []]


def _do(site: Site, host: str, line: str) -> None:
    """Run one line of a page on a host of the lab, or outside."""
    if host:
        site.lab.host(host).run(["sh", "-c", line])
        return
    program, *arguments = shlex.split(line)
    assert program == "sojourn"
    done = site.sojourn(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_key_is_rotated(site: Site) -> None:
    """A host with the old key is named and refused; once all have the new key, they work."""
    alpha, beta = site.host("alpha"), site.host("beta")
    pid = alpha.launch(["sleep", "1000"])
    old, new = site.lab.plan.key, token_hex(32)
    try:
        _give_key(site, alpha, new)
        assert "beta has another key" in site.sojourn("ps", "beta").stderr
        refused = site.migrate(pid, "alpha", "beta")
        assert (refused.code, refused.answer["error"]["code"]) == (10, "OTHER_KEY")
        assert (
            "beta has another key"
            in alpha.run(["env", "COLUMNS=200", "sojourn", "doctor"], check=False).stdout
        )
        _give_key(site, beta, new)
        assert site.migrate(pid, "alpha", "beta").code == 0
    finally:
        for host in (alpha, beta):
            _give_key(site, host, old)
        beta.run(["kill", str(pid)], check=False)


def _give_key(site: Site, host: Host, key: str) -> None:
    """Change the key of a host, and of the command line outside, and restart the worker."""
    write = f's/^key = .*/key = "{key}"/'
    host.service("worker", "stop")
    host.run(["sed", "-i", write, "/etc/sojourn/sojourn.toml"])
    run(["sed", "-i", write, site.lab.config], deadline_s=10)
    host.service("worker", "start")
    assert within(20, lambda: site.answers(host)), host.log("worker")
