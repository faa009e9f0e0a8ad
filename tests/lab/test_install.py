"""docs/install.md, followed to the letter on two hosts without Sojourn, with a real systemd.

The hosts have no network but the lab's. So Debian's packages that the page installs are there
already, and pip takes the libraries from a directory that was filled outside: it stands in for a
site's package index.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from redis import Redis as Client

from lab.host import within
from lab.lab import Lab
from lab.layer import Layer, Report
from lab.libraries import CHECKOUT, PYTHON, constraints, for_hosts, requirements
from sojourn.model import Json
from sojourn.settings import environment
from sojourn.system.run import Argument, run
from tests.lab.machine import Machine
from tests.lab.site import require_lab

#: On a busy machine pip and pipx take long, on three hosts that all begin with nothing.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

PAGE = CHECKOUT / "docs/install.md"

#: Where the machines have the wheel and the libraries.
PLACE, LIBRARIES = "/srv/sojourn", "/shared/libraries"

#: pip there reads this directory only.
SITE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": LIBRARIES}

BLOCK = re.compile(r"^## (.*)$|^```sh ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)

INSTALL_S = 300


@dataclass(frozen=True)
class Step:
    """One block of commands of the page: its heading, the hosts it is for, and the commands."""

    heading: str
    where: str
    script: str


def steps() -> list[Step]:
    """Return the page's blocks in their order."""
    heading, found = "", []
    for match in BLOCK.finditer(PAGE.read_text()):
        heading = match[1] or heading
        if match[3]:
            found.append(Step(heading, match[2], match[3]))
    return found


def script(heading: str, *, which: int = 0) -> str:
    """Return the commands of one block below a heading."""
    return [step.script for step in steps() if step.heading == heading][which]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `make wheel` does, but into a temporary directory."""
    place = tmp_path_factory.mktemp("dist")
    build: list[Argument] = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        place,
        CHECKOUT,
    ]
    run(build, deadline_s=INSTALL_S, env=environment())
    return next(place.glob("*.whl"))


def _fetch(place: Path, report: Report) -> None:
    """Fetch the libraries' wheels for the machines' Python, and pip's, which pipx updates."""
    report("wheels: fetching with pip")
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={place}", *for_hosts()]
    run([*fetch, *requirements(), "pip"], deadline_s=INSTALL_S, env=environment())


#: The role's variables: how to log in, and where pip finds packages in place of a site's index.
VARIABLES = """\
sojourn:
  hosts:
    gamma:
      ansible_host: {address}
  vars:
    ansible_user: root
    ansible_python_interpreter: /usr/bin/python3
    ansible_ssh_private_key_file: {key}
    ansible_ssh_common_args: -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
    sojourn_redis_url: {redis}
    sojourn_key: {secret}
    sojourn_pki: {pki}
    sojourn_wheel: {wheel}
    sojourn_pip_environment: {{PIP_NO_INDEX: "1", PIP_FIND_LINKS: {libraries}}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Start a separate lab, with the libraries in its shared directory; its workers are stopped."""
    require_lab()
    recipe = "\n".join([PYTHON, *requirements(), constraints().read_text()])
    libraries = Layer("wheels", recipe, _fetch).ready(print)
    made = Lab("install")
    made.down()
    made.up(3)
    for host in made.hosts():
        host.run(["sv", "-w", "30", "down", "worker"])
    # As in any new cluster, no host has ever been announced.
    Client.from_url(made.plan.redis_url).flushall()
    place = made.plan.shared / Path(LIBRARIES).name
    place.mkdir()
    for library in libraries.iterdir():
        (place / library.name).write_bytes(library.read_bytes())
    yield made
    made.down()


@pytest.fixture(scope="module")
def machines(lab: Lab) -> Iterator[list[Machine]]:
    """Return two machines with systemd and without Sojourn."""
    made = [Machine(host, SITE) for host in lab.hosts()[:2]]
    with contextlib.ExitStack() as stack:
        for number, machine in enumerate(made, 1):
            stack.callback(machine.shut_down)
            machine.boot(10_000 * number)
        yield made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the authority and the hosts' certificates as the page does, and those of gamma."""
    place = tmp_path_factory.mktemp("authority")
    for line in (*script("Give the hosts certificates").splitlines(), "sojourn pki issue gamma"):
        program, *arguments = line.split()
        assert program == "sojourn"
        run([sys.executable, "-m", program, *arguments], deadline_s=20, cwd=place)
    return place / "pki"


@pytest.fixture(scope="module")
def installed(machines: list[Machine], wheel: Path, authority: Path) -> list[Machine]:
    """Follow the page up to `sojourn doctor`, on both machines at the same time."""
    key = secrets.token_hex(32)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda machine: _follow(machine, wheel, authority, key), machines))
    return machines


def _follow(machine: Machine, wheel: Path, authority: Path, key: str) -> None:
    machine.copy(wheel, PLACE)
    for file in (authority / machine.host.name).iterdir():
        machine.copy(file, f"{PLACE}/pki")
    for step in _on_every_host():
        machine.shell(step.script, at=PLACE, deadline_s=INSTALL_S)
        if step.heading == "Write the settings":
            _edit(machine, key)


def _on_every_host() -> list[Step]:
    return [step for step in steps() if step.where == "on every host"]


def _edit(machine: Machine, key: str) -> None:
    """Edit the settings as the page describes."""
    plan = machine.host.plan
    values = {
        "host": machine.host.name,
        "address": machine.host.address,
        "redis_url": plan.redis_url,
        "key": key,
    }
    edits = [f's|^{name} = "[^"]*"|{name} = "{value}"|' for name, value in values.items()]
    machine.shell(f"sed -i '{'; '.join(edits)}' /etc/sojourn/sojourn.toml")


def _sleeper(machine: Machine) -> str:
    """Start a process that can migrate, as the page does, and return its PID."""
    become = "'echo $$; exec sleep 1000 >/dev/null'"
    return machine.shell(f"setsid --fork sh -c {become} </dev/null 2>/dev/null").stdout.strip()


def _runs(machine: Machine, pid: str) -> bool:
    return machine.shell(f"ps -o stat= -p {pid}", check=False).stdout.strip()[:1] in {"S", "R"}


def _levels(report: Json, *checks: str) -> set[str]:
    """Return the levels of the doctor's findings of these checks."""
    return {finding["level"] for finding in report["findings"] if finding["check"] in checks}


def test_the_page_has_its_steps() -> None:
    """The page has the headings below, in this order; blocks without a host are not for a host."""
    assert [step.heading for step in _on_every_host()] == [
        "Install it",
        "Write the settings",
        "Give the hosts certificates",
        *("Start the worker", "Start the worker"),
    ]


def test_the_doctor_finds_no_failure_on_a_machine_that_follows_the_page(
    installed: list[Machine],
) -> None:
    """Its exit code was 0 on both; by now the machines know each other, and `--version` works."""
    for machine in installed:
        report = machine.json("sojourn doctor --json")
        assert report["fit"], report
        assert _levels(report, "certificates", "worker", "peers", "reach") == {"ok"}
        assert machine.shell("sojourn --version").stdout.split()[0] == "sojourn"


def test_a_process_moves_and_outlives_the_workers_unit(installed: list[Machine]) -> None:
    """The page's commands; then a restart, a kill and a stop of the unit whose group it is in."""
    alpha, beta = installed
    alpha.shell(next(step.script for step in steps() if step.where == "on the first host"))
    pid = beta.shell("pgrep --newest -x sleep").stdout.strip()
    assert "sojourn-worker.service" in beta.shell(f"cat /proc/{pid}/cgroup").stdout
    for act in (
        "restart sojourn-worker",
        "kill --kill-whom=main --signal=KILL sojourn-worker",
        "stop sojourn-worker",
    ):
        beta.shell(f"systemctl {act}")
        settled = within(60, partial(_is_settled, beta, act))
        assert settled, beta.shell("systemctl status sojourn-worker").stdout
        assert _runs(beta, pid), act
    beta.shell("systemctl start sojourn-worker; sojourn doctor")
    assert _runs(beta, pid)
    beta.shell(f"kill {pid}")


def _is_settled(machine: Machine, act: str) -> bool:
    state = machine.shell("systemctl is-active sojourn-worker", check=False).stdout.strip()
    if act.startswith("stop"):
        return (
            state == "inactive"
            and not machine.shell("pgrep -f 'bin/sojourn worker'", check=False).stdout
        )
    return state == "active" and bool(machine.json("sojourn doctor --json")["fit"])


def test_with_the_usual_kill_mode_it_would_die(installed: list[Machine]) -> None:
    """The unit's `KillMode=process` is what keeps migrated processes alive."""
    alpha, beta = installed
    pid = _sleeper(alpha)
    alpha.shell(f"sojourn migrate {pid} --from alpha --to beta")
    place = "/etc/systemd/system/sojourn-worker.service.d"
    override = "[Service]\\nKillMode=control-group\\n"
    beta.shell(f"mkdir {place}; printf '{override}' >{place}/a.conf; systemctl daemon-reload")
    beta.shell("systemctl restart sojourn-worker")
    assert not _runs(beta, pid)
    beta.shell(f"rm -r {place}; systemctl daemon-reload; systemctl restart sojourn-worker")
    assert within(60, lambda: beta.json("sojourn doctor --json")["fit"])


def test_flower_does_not_run_as_root(installed: list[Machine]) -> None:
    """It can read the settings and write its history all the same."""
    alpha = installed[0]
    alpha.shell(script("Flower"), at=PLACE, deadline_s=INSTALL_S)
    look = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:5555/migrations').status)"
    serves = within(60, lambda: alpha.shell(f'python3 -c "{look}"', check=False).stdout == "200\n")
    assert serves, alpha.shell(
        "systemctl status --full sojourn-flower; journalctl -u sojourn-flower", check=False
    ).stdout
    user = alpha.shell(
        "ps -o user= -p $(systemctl show --value -p MainPID sojourn-flower)"
    ).stdout.strip()
    assert user not in {"", "root"}
    alpha.shell("systemctl stop sojourn-flower")


@pytest.fixture(scope="module")
def gamma(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Path]]:
    """Return a third machine, without Sojourn, that Ansible can log in to by SSH, and the key."""
    machine = Machine(lab.host("gamma"), {})
    key = tmp_path_factory.mktemp("ssh") / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], deadline_s=10)
    machine.boot(30_000)
    public = key.with_suffix(".pub").read_text().strip()
    machine.shell(
        f"install -d -m 0700 ~/.ssh; echo '{public}' >~/.ssh/authorized_keys; systemctl start ssh"
    )
    yield machine, key
    machine.shut_down()


def test_the_role_installs_a_machine(
    installed: list[Machine],
    gamma: tuple[Machine, Path],
    wheel: Path,
    authority: Path,
    tmp_path: Path,
) -> None:
    """Ansible reaches it by SSH, and the doctor finds no failure; a second run changes nothing."""
    machine, key = gamma
    host = machine.host
    secret = (
        installed[0]
        .shell("sed -n 's/^key = \"\\(.*\\)\"$/\\1/p' /etc/sojourn/sojourn.toml")
        .stdout.strip()
    )
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(
        VARIABLES.format(
            address=host.address,
            key=key,
            redis=host.plan.redis_url,
            secret=secret,
            pki=authority,
            wheel=wheel,
            libraries=LIBRARIES,
        )
    )
    first = _play(inventory)
    assert re.search(r"failed=0", first), first
    report = machine.json("sojourn doctor --json")
    assert report["fit"], report
    assert _levels(report, "certificates", "peers") == {"ok"}
    secret_files = "/etc/sojourn/sojourn.toml /etc/sojourn/pki/host.pem"
    assert machine.shell(f"stat -c %a {secret_files}").stdout == "600\n600\n"
    assert "changed=0" in _play(inventory)


def _play(inventory: Path) -> str:
    """Run the example playbook and return its output."""
    play: list[Argument] = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        inventory,
        "site.yml",
    ]
    done = run(
        play, deadline_s=INSTALL_S, check=False, cwd=CHECKOUT / "deploy/ansible", env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_upgrade(installed: list[Machine]) -> None:
    """The worker restarts from the new environment; a process that had arrived runs on."""
    alpha, beta = installed
    pid = _sleeper(beta)
    beta.shell(f"sojourn migrate {pid} --from beta --to alpha")
    alpha.shell(script("Upgrade"), at=PLACE, deadline_s=INSTALL_S)
    assert _runs(alpha, pid)
