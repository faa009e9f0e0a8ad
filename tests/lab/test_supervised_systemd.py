"""Services of a real systemd: refused while it would start them again, and moved when it does not.

The source is a machine with systemd as its init, and its worker is the unit that we deliver.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from lab.host import Host, within
from lab.libraries import CHECKOUT
from tests.lab.machine import Machine
from tests.lab.site import OCCUPY, Site
from tests.lab.test_supervised import findings

pytestmark = pytest.mark.lab

PROGRAM = "sleep 86129"
WORKER = "sojourn-worker.service"
DROP_IN = "/etc/systemd/system/nap.service.d/zz-sojourn.conf"

#: As a service that is ready to be moved: no socket of the journal's on its output. ``exec``: it is
#: started once the program runs, and not when systemd has forked for it.
UNIT = f"""\
[Service]
Type=exec
ExecStart={PROGRAM}
Restart={{restart}}
RestartSec=0.1
StandardOutput=null
StandardError=null
{{more}}
"""

#: Longer than systemd waits before it starts the unit again.
RESTART_S = 1.5


@pytest.fixture(scope="module")
def machine(configured: Site) -> Iterator[Machine]:
    """Boot systemd on alpha, with our worker as a unit of it."""
    alpha = configured.host("alpha")
    made = Machine(alpha, {})
    made.boot(40_000, keep=True)
    unit = (CHECKOUT / "deploy/systemd" / WORKER).read_text()
    made.shell(f"cat >/etc/systemd/system/{WORKER} <<'END'\n{unit}\nEND\n")
    made.shell(f"systemctl daemon-reload; systemctl start {WORKER}")
    assert within(30, lambda: configured.answers(alpha))
    yield made
    made.shut_down()
    alpha.run(["sh", "-c", f"rm -rf /etc/systemd/system/nap.service* /etc/systemd/system/{WORKER}"])
    alpha.run(["sv", "up", "worker"])
    assert within(30, lambda: configured.answers(alpha))


@pytest.fixture
def there(site: Site) -> Iterator[Host]:
    """Return beta, without the program."""
    beta = site.host("beta")
    yield beta
    beta.run(["pkill", "-KILL", "-f", f"^{PROGRAM}$"], check=False)


def start(machine: Machine, restart: str, more: str = "") -> int:
    """Start the service anew; return the PID of its program."""
    unit = UNIT.format(restart=restart, more=more)
    machine.shell("systemctl stop nap || true; rm -rf /{etc,run}/systemd/system/nap.service.d")
    machine.shell(f"cat >/etc/systemd/system/nap.service <<'END'\n{unit}\nEND\n")
    machine.shell("systemctl daemon-reload; systemctl reset-failed nap || true")
    machine.shell("systemctl start nap")
    return int(show(machine, "MainPID"))


def show(machine: Machine, name: str) -> str:
    """Return a property of the service."""
    return machine.shell(f"systemctl show --property {name} --value nap").stdout.strip()


def here(machine: Machine) -> list[int]:
    """Return the processes that run the program on the machine."""
    found = machine.shell(f"pgrep -f '^{PROGRAM}$'", check=False).stdout
    return [int(pid) for pid in found.split()]


def arrived_alone(machine: Machine, there: Host, pid: int) -> bool:
    """Whether the program runs on the other host, and systemd has started no other one."""
    time.sleep(RESTART_S)
    on_beta = there.run(["pgrep", "-f", f"^{PROGRAM}$"], check=False).stdout.split()
    return here(machine) == [] and [int(one) for one in on_beta] == [pid]


@pytest.mark.parametrize("restart", ["always", "on-failure", "on-abnormal", "on-abort"])
def test_a_service_is_named(site: Site, machine: Machine, restart: str) -> None:
    """The finding has the unit and its ``Restart=``, and what would happen."""
    (finding,) = findings(site, start(machine, restart))
    assert (finding["code"], finding["verdict"]) == ("SUPERVISED", "needs option")
    assert f"is the systemd service nap.service (Restart={restart})" in finding["sentence"]
    assert "would start it again on alpha" in finding["sentence"]


@pytest.mark.parametrize(
    ("restart", "more"),
    [
        ("no", ""),
        ("on-success", ""),
        ("on-watchdog", ""),
        ("always", "RestartPreventExitStatus=SIGKILL"),
        ("on-failure", "SuccessExitStatus=SIGKILL"),
    ],
)
def test_a_service_that_stays_ended(
    site: Site, machine: Machine, there: Host, restart: str, more: str
) -> None:
    """Nothing speaks against it, and systemd indeed starts it no more."""
    pid = start(machine, restart, more)
    assert findings(site, pid) == []
    assert site.migrate(pid, "alpha", "beta").code == 0
    assert arrived_alone(machine, there, pid)


def test_what_is_no_service(site: Site, machine: Machine) -> None:
    """A scope, and a process of a unit that is not its main one, are never started again."""
    machine.shell("systemd-run --scope setsid sleep 86130 </dev/null >/dev/null 2>&1 &")
    beside = "/bin/sh -c 'setsid sleep 86131 &'"
    start(machine, "always", f"ExecStartPost={beside}")
    assert within(10, lambda: len(_sleepers(machine)) == 2)
    for pid in _sleepers(machine):
        assert findings(site, pid) == []
    machine.shell("pkill -KILL -f '^sleep 8613'")


def _sleepers(machine: Machine) -> list[int]:
    found = machine.shell("pgrep -f '^sleep 8613[01]$'", check=False).stdout.split()
    return [int(pid) for pid in found]


def test_a_watchdog(site: Site, machine: Machine) -> None:
    """It would end a frozen process: a shorter freeze, or no watchdogs, is the way out."""
    pid = start(machine, "no", "WatchdogSec=90")
    (finding,) = findings(site, pid)
    assert (finding["code"], finding["verdict"]) == ("SUPERVISED", "blocks")
    assert "(WatchdogSec=90)" in finding["sentence"]
    assert findings(site, pid) != []
    machine.shell("systemctl service-watchdogs no")
    assert findings(site, pid) == []
    machine.shell("systemctl service-watchdogs yes")


def test_stop_unit(site: Site, machine: Machine, there: Host) -> None:
    """The unit ends with its program, and nothing starts it again: no restart, no boot, nobody."""
    pid = start(machine, "always", "RestartForceExitStatus=SIGKILL")
    assert findings(site, pid, "--stop-unit") == []
    ended = site.migrate(pid, "alpha", "beta", "--stop-unit")
    assert ended.code == 0, ended.answer["failure"]
    assert arrived_alone(machine, there, pid)
    assert (show(machine, "ActiveState"), show(machine, "Result")) == ("failed", "signal")
    machine.shell("systemctl daemon-reexec; systemctl start nap")
    assert arrived_alone(machine, there, pid)
    machine.shell(f"rm {DROP_IN}; systemctl daemon-reload; systemctl start nap")
    assert len(here(machine)) == 1


def test_the_command_of_the_hint(site: Site, machine: Machine, there: Host) -> None:
    """``systemctl edit`` with the lines of the hint is a way out without an option."""
    pid = start(machine, "always")
    (finding,) = findings(site, pid)
    assert "`systemctl edit --runtime nap.service`" in finding["hint"]
    edit = "systemctl edit --runtime --stdin --drop-in=test.conf nap.service"
    machine.shell(f"printf '[Service]\\nRestart=no\\n' | {edit}")
    assert findings(site, pid) == []
    assert site.migrate(pid, "alpha", "beta").code == 0
    assert arrived_alone(machine, there, pid)


def test_a_rollback_puts_the_unit_back(site: Site, machine: Machine, there: Host) -> None:
    """No file is left, the process is the same, and it is started again when it is killed."""
    pid = start(machine, "always")
    seen = []

    def occupy() -> None:
        seen.append(show(machine, "Restart"))
        there.run(["python3", "-c", OCCUPY, str(pid)])

    ended = site.migrate_meanwhile(pid, (there, "page_server.end"), occupy, "--stop-unit")
    there.run(["kill", "-KILL", str(pid)])
    assert ended.code == 11, ended.answer
    assert seen == ["no"]
    assert here(machine) == [pid]
    assert show(machine, "Restart") == "always"
    machine.shell("test ! -e /etc/systemd/system/nap.service.d")
    machine.shell(f"kill -KILL {pid}")
    assert within(10, lambda: bool(here(machine)) and here(machine) != [pid])


def test_a_program_that_ended_meanwhile(site: Site, machine: Machine, there: Host) -> None:
    """One that died while its unit was stopped is started when the unit is put back."""
    pid = start(machine, "always")
    ended = site.migrate_meanwhile(
        pid,
        (there, "page_server.end"),
        lambda: machine.shell(f"kill -KILL {pid}"),
        "--stop-unit",
    )
    assert not ended.answer["state"].startswith("completed")
    assert within(10, lambda: len(here(machine)) == 1)
    assert show(machine, "ActiveState") == "active"


def test_a_drain(site: Site, machine: Machine) -> None:
    """A drain lists the service as staying, with its reason, unless its unit may be stopped."""
    pid = start(machine, "always")
    staying = _drained(site)[pid]
    assert staying["destination"] is None
    assert "is the systemd service nap.service (Restart=always)" in staying["why"]
    assert _drained(site, "--stop-unit")[pid]["destination"] == "beta"


def _drained(site: Site, *options: str) -> dict[int, dict[str, str]]:
    answer = site.sojourn("drain", "alpha", "--dry-run", "--json", *options)
    return {row["pid"]: row for row in json.loads(answer.stdout)}


def test_what_arrives_outlives_the_worker(site: Site, machine: Machine, there: Host) -> None:
    """It lives when the worker's unit is stopped, and that unit is no supervisor of it."""
    pid = there.launch(["sleep", "86132"])
    assert site.migrate(pid, "beta", "alpha").code == 0
    machine.shell(f"systemctl restart {WORKER}")
    assert within(30, lambda: site.answers(site.host("alpha")))
    assert machine.shell(f"ps -o args= -p {pid}").stdout.strip() == "sleep 86132"
    assert findings(site, pid) == []
    assert site.migrate(pid, "alpha", "beta").code == 0
    there.run(["kill", "-KILL", str(pid)])
