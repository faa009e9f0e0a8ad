"""Real programs out of Debian's packages: the checks let them pass, and then they move and work on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.host import Host, within
from tests.lab.site import Site, left_behind

pytestmark = pytest.mark.lab

LOG = "/shared/program.log"


@dataclass(frozen=True)
class Program:
    """A program, how it is started, and a command on its host that succeeds while it works."""

    package: str
    command: tuple[str, ...]
    works: str
    prepare: str = "true"

    def is_well(self, host: Host) -> bool:
        """Whether it does its work there."""
        return host.run(["sh", "-c", self.works], check=False).returncode == 0


#: Writes a line and then asks whether the file with them grows.
GROWS = f"before=$(wc -c < {LOG}); sleep 0.5; test $(wc -c < {LOG}) -gt $before"

#: Something that a program which listens to the kernel hears of.
NEWS = "ip address add 127.0.0.9/32 dev lo; ip address delete 127.0.0.9/32 dev lo"

PROGRAMS = [
    Program(
        "redis-server",
        ("redis-server", "--port", "7301", "--save", "", "--dir", "/var/tmp"),
        "redis-cli -p 7301 set key value && test $(redis-cli -p 7301 get key) = value",
    ),
    Program(
        "openssh-server",
        ("/usr/sbin/sshd", "-D", "-e", "-p", "7302", "-h", "/shared/host-key"),
        "ssh-keyscan -p 7302 127.0.0.1 | grep -q ssh-ed25519",
        "mkdir -p /run/sshd; rm -f /shared/host-key*; ssh-keygen -q -t ed25519 -N '' -f /shared/host-key",
    ),
    Program(
        "python3",
        ("python3", "-m", "http.server", "7303", "--directory", "/usr/share"),
        "python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:7303/\").read()'",
    ),
    Program("bash", ("bash", "-c", "while sleep 0.05; do echo $((count++)); done"), GROWS),
    Program(
        "perl-base", ("perl", "-e", "$| = 1; for (;;) { print $n++, qq(\\n); select undef, undef, undef, 0.05 }"), GROWS
    ),
    Program("iputils-ping", ("ping", "-i", "0.1", "127.0.0.1"), GROWS),
    Program("iproute2", ("ip", "monitor", "address"), GROWS.replace("sleep 0.5", f"{NEWS}; sleep 0.5")),
]


@pytest.fixture(params=PROGRAMS, ids=lambda program: program.package)
def program(request: pytest.FixtureRequest) -> Program:
    """Return one program after the other."""
    chosen: Program = request.param
    return chosen


@pytest.fixture
def running(site: Site, program: Program) -> Iterator[int]:
    """Start the program on alpha; return its PID when it works."""
    alpha = site.host("alpha")
    for host in (alpha, site.host("beta")):
        host.run(["sh", "-c", f"mkdir -p /run/sshd; rm -f {LOG}"])
    alpha.run(["sh", "-c", program.prepare])
    pid = alpha.launch(list(program.command), log=LOG)
    assert within(20, lambda: program.is_well(alpha)), alpha.run(["cat", LOG]).stdout
    yield pid
    for host in (alpha, site.host("beta")):
        host.run(["kill", "-KILL", str(pid)], check=False)


def test_a_real_program_passes_and_moves(site: Site, program: Program, running: int) -> None:
    """The check has nothing against it; it goes there and works, and comes back and works."""
    for source, destination in (("alpha", "beta"), ("beta", "alpha")):
        checked = site.sojourn("check", str(running), "--from", source, "--to", destination, "--json")
        found = json.loads(checked.stdout)["findings"]
        assert checked.returncode == 0, [each for each in found if each["verdict"] != "ok"]
        ended = site.migrate(running, source, destination)
        assert ended.code == 0, ended.said["failure"]
        there = site.host(destination)
        assert within(10, lambda there=there: program.is_well(there)), there.run(["cat", LOG]).stdout
        assert left_behind(there) == []
