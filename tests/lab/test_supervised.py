"""A service that its supervisor would start again is refused, or its supervisor gives it up.

Each way out that a finding names is followed to its end: the process runs on the other host alone.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.host import Host, within
from tests.lab.site import OCCUPY, Site, left_behind

pytestmark = pytest.mark.lab

#: The program of the service: nothing else has such a command line.
PROGRAM = "sleep 86123"
SERVICE = "/etc/sv/nap"

RUN = f"#!/bin/sh\nexec </dev/null >/dev/null 2>&1\nexec chpst -P {PROGRAM}\n"

#: The shell stays, and waits for the program.
WRAPPED = f"#!/bin/sh\nexec </dev/null >/dev/null 2>&1\nchpst -P {PROGRAM}\nexit 0\n"

#: runsv starts a service again a second after its end at the latest.
RESTART_S = 2.5

#: A program whose child was forked, and does a part of its work.
MASTER = """
import os, time
def work():
    os.setsid()
    while True:
        time.sleep(0.05)
while True:
    if os.fork() == 0:
        work()
    os.wait()
"""

#: The same program as its child's, which it started for some reason of its own.
PARENT = """
import subprocess, sys
child = [sys.executable, "-c", "import time; time.sleep(86124)"]
subprocess.run(child, start_new_session=True)
"""

FAST = {"reconcile_s": 0.5, "stall_s": 4, "patience_s": 5}


@pytest.fixture
def service(site: Site, request: pytest.FixtureRequest) -> Iterator[int]:
    """Start a service of runit on alpha; return the PID of its program."""
    alpha = site.host("alpha")
    script = getattr(request, "param", RUN)
    # The service's directory is the program's working directory.
    site.host("beta").run(["mkdir", "-p", SERVICE])
    alpha.run(
        ["sh", "-c", f"mkdir -p {SERVICE}; cat >{SERVICE}/run; chmod +x {SERVICE}/run"],
        stdin=script,
    )
    yield link(alpha)
    for host in (site.host("alpha"), site.host("beta")):
        host.run(
            ["sh", "-c", f"rm -rf /etc/service/nap; pkill -f '^runsv nap'; rm -rf {SERVICE}"],
            check=False,
        )
        host.run(["pkill", "-KILL", "-f", f"^{PROGRAM}"], check=False)


def link(host: Host) -> int:
    """Have runsvdir supervise the service, and return the PID of its program."""
    host.run(["ln", "-sfn", SERVICE, "/etc/service/nap"])
    assert within(20, lambda: len(pids(host)) == 1)
    return pids(host)[0]


def pids(host: Host) -> list[int]:
    """Return the processes of a host that run the service's program."""
    answer = host.run(["pgrep", "-f", f"^{PROGRAM}$"], check=False)
    return [int(pid) for pid in answer.stdout.split()]


def runs_alone(site: Site, host: str, pid: int) -> bool:
    """Whether the program runs there and nowhere else, and stays alone."""
    time.sleep(RESTART_S)
    found = {name: pids(site.host(name)) for name in ("alpha", "beta")}
    return found == {"alpha": [], "beta": [], host: [pid]}


def wanted(host: Host) -> str:
    """Return what runsv wants of the service: ``u`` if it starts it again."""
    return host.run(["tail", "-c", "+18", f"{SERVICE}/supervise/status"]).stdout[0]


def findings(site: Site, pid: int, *options: str) -> list[dict[str, Any]]:
    """Return what speaks against a migration from alpha to beta."""
    answer = site.sojourn("check", str(pid), "--from", "alpha", "--to", "beta", "--json", *options)
    found = json.loads(answer.stdout)["findings"]
    return [finding for finding in found if finding["verdict"] not in {"ok", "note"}]


def test_runit_is_named(site: Site, service: int) -> None:
    """The finding has the supervisor, its process, the service, what would happen, and two hints.

    Without it the program ran twice: what a migration used to leave here.
    """
    (finding,) = findings(site, service)
    supervisor = site.host("alpha").run(["pgrep", "-f", "^runsv nap$"]).stdout.strip()
    assert finding["code"] == "SUPERVISED"
    assert finding["verdict"] == "needs option"
    assert f"runsv, process {supervisor}, as the service {SERVICE} of runit" in finding["sentence"]
    assert "would start it again on alpha as soon as it has moved" in finding["sentence"]
    assert "--stop-unit" in finding["hint"]
    assert f"`sv once {SERVICE}`" in finding["hint"]
    ended = site.migrate(service, "alpha", "beta")
    assert (ended.code, ended.answer["failure"]["code"]) == (10, "SUPERVISED")
    assert pids(site.host("alpha")) == [service]


def test_the_command_of_the_hint(site: Site, service: int) -> None:
    """After ``sv once`` nothing speaks against it, and nothing starts it again."""
    site.host("alpha").run(["sv", "once", SERVICE])
    assert findings(site, service) == []
    assert site.migrate(service, "alpha", "beta").code == 0
    assert runs_alone(site, "beta", service)


@pytest.mark.parametrize("service", [RUN, WRAPPED], indirect=True, ids=["exec", "shell"])
def test_stop_unit(site: Site, service: int) -> None:
    """With the option it moves and stays alone, though its supervisor is started again."""
    alpha = site.host("alpha")
    assert [finding["code"] for finding in findings(site, service)] == ["SUPERVISED"]
    assert findings(site, service, "--stop-unit") == []
    ended = site.migrate(service, "alpha", "beta", "--stop-unit")
    assert ended.code == 0, ended.answer["failure"]
    assert runs_alone(site, "beta", service)
    alpha.run(["sh", "-c", "rm /etc/service/nap; pkill -f '^runsv nap'; sleep 6"])
    alpha.run(["ln", "-sfn", SERVICE, "/etc/service/nap"])
    assert within(10, lambda: "down" in alpha.service("nap", "status"))
    assert runs_alone(site, "beta", service)
    assert left_behind(alpha) == left_behind(site.host("beta")) == []


def test_a_rollback_puts_the_supervisor_back(site: Site, service: int) -> None:
    """The process is the same, it is supervised, and is started again when it is killed."""
    alpha, beta = site.host("alpha"), site.host("beta")
    states = []

    def occupy() -> None:
        states.append(wanted(alpha))
        beta.run(["python3", "-c", OCCUPY, str(service)])

    ended = site.migrate_meanwhile(service, (beta, "page_server.end"), occupy, "--stop-unit")
    beta.run(["kill", "-KILL", str(service)])
    assert ended.code == 11, ended.answer
    assert states == ["d"]
    assert pids(alpha) == [service]
    assert wanted(alpha) == "u"
    assert alpha.run(["test", "-e", f"{SERVICE}/down"], check=False).returncode == 1
    alpha.run(["kill", "-KILL", str(service)])
    assert within(10, lambda: bool(pids(alpha)) and pids(alpha) != [service])


@pytest.mark.parametrize("instant", ["reserve.end", "freezing.after", "frozen.after"])
def test_a_worker_dies(site: Site, service: int, instant: str) -> None:
    """Whoever resumes the process puts its supervisor back: here it is the reconciler."""
    alpha = site.host("alpha")
    site.configure(alpha, **FAST)

    def kill() -> None:
        assert wanted(alpha) == "d"
        alpha.run(["pkill", "-KILL", "-f", "sojourn worker"])
        alpha.run(["pkill", "-KILL", "-f", "transfer.holder"], check=False)

    try:
        ended = site.migrate_meanwhile(service, (alpha, instant), kill, "--stop-unit")
        assert ended.code == 11, ended.answer
        assert within(40, lambda: wanted(alpha) == "u")
        assert alpha.run(["test", "-e", f"{SERVICE}/down"], check=False).returncode == 1
        assert pids(alpha) == [service]
        assert within(20, lambda: left_behind(alpha) == [])
    finally:
        site.configure(alpha)


def test_the_source_dies_after_the_release(site: Site, service: int) -> None:
    """Its boot does not start the service, which may run on the destination by then."""
    alpha = site.host("alpha")
    ended = site.migrate_meanwhile(
        service, (alpha, "released.after"), lambda: _crash_later(site, service), "--stop-unit"
    )
    # Without the images beta refuses; with them it runs there. Never both, and never twice.
    assert within(60, lambda: len(pids(site.host("alpha")) + pids(site.host("beta"))) == 1), ended
    time.sleep(RESTART_S)
    assert len(pids(site.host("alpha")) + pids(site.host("beta"))) == 1


def _crash_later(site: Site, service: int) -> None:
    site.lab.crash("alpha")
    alpha = site.host("alpha")
    # The lab forgets its services at a boot.
    alpha.run(["ln", "-sfn", SERVICE, "/etc/service/nap"])
    time.sleep(RESTART_S)
    assert pids(alpha) == []


def test_a_master_and_its_worker(site: Site) -> None:
    """A forked worker is refused and its master is named, which moves with its workers."""
    alpha = site.host("alpha")
    master = alpha.launch(["python3", "-c", MASTER])
    try:
        assert within(10, lambda: bool(_children(alpha, master)))
        (worker,) = _children(alpha, master)
        (finding,) = findings(site, worker)
        assert (finding["code"], finding["verdict"]) == ("SUPERVISED", "blocks")
        assert f"is a worker of process {master} (python3)" in finding["sentence"]
        assert f"Migrate the master, process {master}" in finding["hint"]
        assert findings(site, master) == []
        assert site.migrate(master, "alpha", "beta").code == 0
        assert within(5, lambda: _children(site.host("beta"), master) == [worker])
    finally:
        _kill(site, master)


def test_a_parent_that_is_no_master(site: Site) -> None:
    """A program that another of the same interpreter has started, and a shell's job, may move."""
    alpha = site.host("alpha")
    parent = alpha.launch(["python3", "-c", PARENT])
    script = "sh -c 'setsid sleep 86125; true' & setsid sleep 86126; true"
    shell = alpha.launch(["sh", "-c", script])
    try:
        assert within(10, lambda: bool(_children(alpha, parent)))
        assert within(10, lambda: len(_children(alpha, shell)) == 2)
        (child,) = _children(alpha, parent)
        assert findings(site, child) == []
        for pid in alpha.run(["pgrep", "-f", "^sleep 8612[56]"]).stdout.split():
            assert findings(site, int(pid)) == []
    finally:
        _kill(site, parent)
        _kill(site, shell)


def _children(host: Host, pid: int) -> list[int]:
    return [int(child) for child in host.run(["pgrep", "-P", str(pid)], check=False).stdout.split()]


def _kill(site: Site, pid: int) -> None:
    for name in ("alpha", "beta"):
        host = site.host(name)
        host.run(["kill", "-KILL", str(pid), *map(str, _children(host, pid))], check=False)


@contextlib.contextmanager
def inittab(host: Host, command: str) -> Iterator[int]:
    """Have a host's table of init name a process, which is its child."""
    host.run(["sh", "-c", "cat >/etc/inittab"], stdin=f"# of a test\nx1:2345:respawn:{command}\n")
    pid = host.launch(command.split())
    try:
        yield pid
    finally:
        host.run(["sh", "-c", f"rm /etc/inittab; kill -KILL {pid}"], check=False)


def test_a_drain_lists_it(site: Site) -> None:
    """What init would respawn stays with the reason; what nobody supervises is chosen."""
    alpha = site.host("alpha")
    free = alpha.launch(["sleep", "86127"])
    with inittab(alpha, "sleep 86128") as pid:
        answer = site.sojourn("drain", "alpha", "--dry-run", "--json")
        rows = {row["pid"]: row for row in json.loads(answer.stdout)}
        assert rows[pid]["destination"] is None
        assert "is respawned by init, by the entry x1 of /etc/inittab" in rows[pid]["why"]
        assert rows[free]["destination"]
        (finding,) = findings(site, pid)
        assert (finding["code"], finding["verdict"]) == ("SUPERVISED", "blocks")
        shown = json.loads(site.sojourn("ps", "alpha", "--json").stdout)
        (row,) = [row for row in shown if row["pid"] == pid]
        assert (row["stoppable"], "respawned" in row["verdict"]) == (False, True)
        named = site.sojourn("migrate", "--command", "sleep 86128", "--from", "alpha", "--dry-run")
        assert named.returncode == 2
        assert "respawned by init" in named.stderr
    alpha.run(["kill", "-KILL", str(free)])
