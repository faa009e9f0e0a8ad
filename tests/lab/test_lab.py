"""The lab itself: hosts are isolated, can be cut off, crashed and booted, and leave nothing."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab import network, readiness, workload
from lab.errors import LabFailed
from lab.host import Host, within
from lab.lab import Lab, processes
from lab.layer import Layer
from lab.plan import DISKS, STATE, check_name
from sojourn.cli.lab import app
from sojourn.errors import CommandFailed, UsageError
from sojourn.system.process import is_alive, send
from sojourn.system.run import run

pytestmark = pytest.mark.lab

#: Names of labs other than ``brief``.
OTHER_LAB = re.compile(r"(sojourn-|sj-|sojourn-lab/)(?!brief|lab/)")

#: The lab is to start within this once its root is built.
UP_S = 15


@pytest.fixture
def brief(suitable: None) -> Iterator[Lab]:
    """Return a separate lab that is not started, and remove it in any case."""
    lab = Lab("brief")
    lab.down()
    yield lab
    lab.down()


@pytest.fixture
def alpha(lab: Lab) -> Host:
    """Return a host that every test finds up and plugged in."""
    return _sound(lab, "alpha")


@pytest.fixture
def beta(lab: Lab) -> Host:
    """Return another one."""
    return _sound(lab, "beta")


def test_a_host_sees_itself_only(alpha: Host, beta: Host) -> None:
    """A host has processes, a name and an address of its own."""
    assert alpha.run(["hostname"]).stdout.strip() == "alpha"
    assert "tini" in alpha.run(["ps", "-o", "args=", "-p", "1"]).stdout
    pid = alpha.launch(["sleep", "1234"])
    assert "sleep 1234" not in beta.run(["ps", "ax"]).stdout
    assert alpha.address in alpha.run(["ip", "address"]).stdout
    alpha.run(["kill", str(pid)])


def test_a_host_is_one_for_criu(alpha: Host) -> None:
    """CRIU finds everything it needs inside a host, and can dump sockets of new kernels."""
    assert alpha.run(["criu", "check"]).returncode == 0
    assert "Version: 4.2" in alpha.run(["criu", "--version"]).stdout


def test_the_checkout_is_read_only_inside(alpha: Host) -> None:
    """A program that migrates cannot write to the checkout."""
    assert alpha.run(["touch", "/opt/sojourn/src/x"], check=False).returncode != 0


def test_hosts_share_a_directory(alpha: Host, beta: Host) -> None:
    """What one host writes to /shared, the others read."""
    alpha.run(["tee", "/shared/text"], stdin="here")
    assert beta.run(["cat", "/shared/text"]).stdout == "here"


def test_pids_of_different_hosts_do_not_collide(alpha: Host, beta: Host) -> None:
    """The PID of a workload is free on the other host."""
    first, second = (host.launch(["sleep", "60"]) for host in (alpha, beta))
    assert abs(first - second) > 1000
    alpha.run(["kill", str(first)])
    beta.run(["kill", str(second)])


def test_cut_and_heal(lab: Lab, alpha: Host, beta: Host) -> None:
    """Hosts reach each other by name; a host that is cut off reaches none until it is healed."""
    assert _reaches(alpha, "beta")
    lab.cut("beta")
    assert not _reaches(alpha, "beta")
    assert _states(lab)["beta"] == "cut"
    lab.heal("beta")
    assert within(10, lambda: _reaches(alpha, "beta"))
    assert _states(lab)["beta"] == "up"


def test_the_outside_reaches_redis(lab: Lab) -> None:
    """The configuration for the outside names the hub's Redis, and only root may read it."""
    assert readiness.redis_answers(lab.plan, 1)
    assert lab.plan.redis_url in lab.config.read_text()
    assert lab.config.stat().st_mode & 0o777 == 0o600


def test_redis_asks_for_the_password(lab: Lab, alpha: Host) -> None:
    """A stranger on the lab's network gets nothing."""
    refused = alpha.run(["redis-cli", "-h", "hub", "ping"], check=False)
    assert "NOAUTH" in refused.stdout


def test_a_worker_is_ready_once_it_is_in_the_registry(lab: Lab) -> None:
    """The start waits for the hosts' keys in Redis, and names the hosts whose key does not come."""
    authenticated = ["redis-cli", "--no-auth-warning", "-a", lab.plan.password]
    lab.host("hub").run([*authenticated, "set", "sojourn:host:zeta", "{}", "EX", "60"])
    assert readiness.announced(lab.plan, ["zeta", "eta"], 0.2) == ["eta"]


def test_the_command_line_prints_json(lab: Lab, alpha: Host) -> None:
    """Status and run print JSON, and a host that does not exist is a usage error."""
    runner = CliRunner()
    shown = json.loads(runner.invoke(app, ["status", "--name", "test", "--json"]).stdout)
    assert [(host["host"], host["state"]) for host in shown][:2] == [("hub", "up"), ("alpha", "up")]
    started = runner.invoke(
        app, ["run", "--name", "test", "--json", "alpha", "--", "sleep", "1234"]
    )
    alpha.run(["kill", str(json.loads(started.stdout)["pid"])])
    assert isinstance(
        runner.invoke(app, ["cut", "--name", "test", "nowhere"]).exception, UsageError
    )


def test_a_crash_takes_the_memory_and_leaves_the_disk(lab: Lab, alpha: Host) -> None:
    """After a crash and a boot the files are there, the processes are gone, the boot id is new."""
    pid = alpha.launch(["sleep", "1234"])
    alpha.run(["tee", "/var/lib/kept", "/run/lost"], stdin="text")
    before = _boot_id(alpha)
    lab.crash("alpha")
    assert _states(lab)["alpha"] == "down"
    with pytest.raises(LabFailed, match="is down"):
        alpha.run(["true"])
    lab.boot("alpha")
    assert alpha.run(["cat", "/var/lib/kept"]).stdout == "text"
    assert alpha.run(["test", "-e", "/run/lost"], check=False).returncode == 1
    assert alpha.run(["kill", "-0", str(pid)], check=False).returncode == 1
    assert _boot_id(alpha) != before


def test_a_host_that_was_booted_again_leaves_its_old_pids_free(lab: Lab, alpha: Host) -> None:
    """A process that left before the crash can return: the host's programs have higher PIDs."""
    before = int(alpha.run(["pgrep", "--oldest", "runsvdir"]).stdout)
    lab.crash("alpha")
    lab.boot("alpha")
    assert int(alpha.run(["pgrep", "--oldest", "runsvdir"]).stdout) > before + 100


def test_a_crash_is_not_announced(lab: Lab, alpha: Host, beta: Host) -> None:
    """The peers get no FIN and no RST: a connection to a crashed host just goes quiet."""
    server = workload.start(beta, "tcp_server", address=beta.address)
    client = workload.start(alpha, "tcp_client", address=beta.address)
    client.wait_until(lambda status: _number(status, "answers") > 10)
    lab.crash("beta")
    time.sleep(0.5)
    assert client.status().details["error"] == ""
    assert server.pid > 0
    alpha.run(["kill", str(client.pid)])
    lab.boot("beta")


def test_booting_a_host_that_runs_changes_nothing(lab: Lab, alpha: Host) -> None:
    """Boot is safe to repeat."""
    init = alpha.init
    lab.boot("alpha")
    assert alpha.init == init


def test_the_hub_can_crash_too(lab: Lab, alpha: Host, beta: Host) -> None:
    """Without the hub the hosts still reach each other; its Redis comes back with it."""
    lab.crash("hub")
    assert _reaches(alpha, "beta")
    lab.boot("hub")
    assert readiness.redis_answers(lab.plan, 20)


def test_run_returns_the_exit_code(alpha: Host) -> None:
    """A command that fails inside is distinguished from one that succeeds."""
    assert alpha.run(["sh", "-c", "exit 7"], check=False).returncode == 7
    with pytest.raises(CommandFailed):
        alpha.run(["false"])


def test_a_workload_belongs_to_init(alpha: Host) -> None:
    """A launched program is a child of PID 1, leads its session, and inherits no descriptor."""
    pid = alpha.launch(["sleep", "1234"])
    shown = alpha.run(["ps", "-o", "ppid=,sid=", "-p", str(pid)]).stdout.split()
    assert shown == ["1", str(pid)]
    assert (
        alpha.run(["readlink", f"/proc/{pid}/fd/0", f"/proc/{pid}/fd/2"]).stdout.split()
        == ["/dev/null"] * 2
    )
    assert alpha.run(["ls", f"/proc/{pid}/fd"]).stdout.split() == ["0", "1", "2"]
    alpha.run(["kill", str(pid)])


def test_a_program_that_does_not_exist_is_named(alpha: Host) -> None:
    """Launching it fails at once."""
    with pytest.raises(CommandFailed, match="nonsense: No such file"):
        alpha.launch(["nonsense"])


def test_the_counter_beats(alpha: Host) -> None:
    """The counter counts without a gap and finds its memory unchanged, pass after pass."""
    counter = workload.start(alpha, "counter", mb=1)
    status = counter.wait_until(lambda status: _number(status, "passes") >= 2)
    assert status.hosts == ("alpha",)
    assert status.details["damaged_slices"] == 0
    assert status.longest_gap_ms < 1000
    alpha.run(["kill", str(counter.pid)])


def test_the_tree_verifies_every_facility(alpha: Host) -> None:
    """Every facility is verified at every beat."""
    tree = workload.start(alpha, "tree")
    status = tree.wait_for_beats(50)
    assert status.details["errors"] == {}
    assert status.details["verified"] == dict.fromkeys(
        ["pipes", "socketpair", "shm", "deleted", "log", "threads"], status.counter
    )
    alpha.run(["pkill", "--session", str(tree.pid)])


@pytest.mark.parametrize(("name", "options"), [("counter", {"mb": 32}), ("tree", {})])
def test_a_workload_survives_plain_criu(
    alpha: Host, beta: Host, name: str, options: dict[str, float]
) -> None:
    """CRIU alone can move the workloads, so they do not make a migration fail."""
    moved = workload.start(alpha, name, **options)
    images = f"/shared/images-{moved.pid}"
    alpha.run(["mkdir", images])
    alpha.run(["criu", "dump", "--tree", str(moved.pid), "--images-dir", images, "--leave-stopped"])
    beta.run(["criu", "restore", "--images-dir", images, "--restore-detached"])
    alpha.run(["pkill", "-KILL", "--session", str(moved.pid)])
    status = moved.wait_for_beats(50)
    assert status.hosts == ("alpha", "beta")
    assert status.details.get("errors", {}) == {}
    assert status.details.get("damaged_slices", 0) == 0
    beta.run(["pkill", "--session", str(moved.pid)])


def test_up_is_quick_and_safe_to_repeat(brief: Lab) -> None:
    """A second start boots nothing; a larger one adds hosts and leaves the others alone."""
    started = time.monotonic()
    assert brief.up(1, wait=False) == ["hub", "alpha"]
    assert time.monotonic() - started < UP_S
    init = brief.host("alpha").init
    assert brief.up(1, wait=False) == []
    assert brief.up(2, wait=False) == ["beta"]
    assert brief.host("alpha").init == init
    assert _reaches(brief.host("alpha"), "beta")


def test_settings_reach_the_hosts(brief: Lab) -> None:
    """The caller's settings are in the hosts' configuration, beside the address and the key."""
    brief.up(1, settings={"freeze_slots": 1, "log_format": "json"}, wait=False)
    config = brief.host("alpha").run(["cat", "/etc/sojourn/sojourn.toml"]).stdout
    assert "freeze_slots = 1\n" in config
    assert 'log_format = "json"\n' in config
    assert f'key = "{brief.plan.key}"\n' in config


def test_two_labs_side_by_side(lab: Lab, brief: Lab) -> None:
    """Labs have separate subnets."""
    brief.up(1, wait=False)
    assert brief.plan.subnet != lab.plan.subnet
    assert (
        brief.host("alpha")
        .run(["ping", "-c1", "-W1", lab.host("alpha").address], check=False)
        .returncode
        != 0
    )


def test_down_leaves_nothing(brief: Lab) -> None:
    """Namespaces, interfaces, mounts, processes, directories are as before; safe to repeat."""
    before = _traces()
    brief.up(2, wait=False)
    brief.host("alpha").launch(["sleep", "1234"])
    assert _traces() != before
    inside = processes("brief")
    assert brief.down()
    assert _traces() == before
    assert not any(is_alive(process) for process in inside)
    assert not brief.down()


def test_down_removes_a_lab_that_lost_its_plan(brief: Lab) -> None:
    """A lab without lab.json, one host crashed and one init killed, is found by its names."""
    before = _traces()
    brief.up(2, wait=False)
    brief.crash("alpha")
    init = brief.host("beta").init
    assert init is not None
    send(init, signal.SIGKILL)
    (STATE / "brief/lab.json").unlink()
    assert brief.down()
    assert _traces() == before


def test_up_clears_what_an_interrupted_start_left(brief: Lab) -> None:
    """The remains of half a lab do not prevent a start."""
    run(["ip", "netns", "add", network.namespace("brief", "alpha")], deadline_s=5)
    (DISKS / "brief/alpha/upper/etc").mkdir(parents=True)
    assert brief.up(1, wait=False) == ["hub", "alpha"]


def test_a_name_that_cannot_be_an_interface_is_refused() -> None:
    """Names are checked before they reach a command."""
    for name in ("", "a-b", "../x", "averylongname"):
        with pytest.raises(UsageError):
            check_name(name)


def test_a_layer_is_built_once_and_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted build leaves nothing, a complete one is reused, a new recipe replaces it."""
    monkeypatch.setattr("lab.layer.CACHE", tmp_path)

    def fail(root: Path, _: object) -> None:
        (root / "half").touch()
        raise KeyboardInterrupt

    def fill(root: Path, _: object) -> None:
        (root / "whole").touch()

    with pytest.raises(KeyboardInterrupt):
        Layer("kind", "1", fail).ready(print)
    assert not list(tmp_path.glob("kind-*"))
    first = Layer("kind", "1", fill).ready(print)
    assert Layer("kind", "1", fail).ready(print) == first
    second = Layer("kind", "2", fill).ready(print)
    assert list(tmp_path.glob("kind-*")) == [second]


def _sound(lab: Lab, name: str) -> Host:
    lab.boot(name)
    lab.heal(name)
    return lab.host(name)


def _reaches(host: Host, other: str) -> bool:
    return host.run(["ping", "-c1", "-W1", other], check=False).returncode == 0


def _states(lab: Lab) -> dict[str, str]:
    return {status.host: status.state for status in lab.status()}


def _boot_id(host: Host) -> str:
    return host.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout


def _number(status: workload.Status, name: str) -> int:
    value = status.details[name]
    assert isinstance(value, int)
    return value


def _traces() -> dict[str, list[str]]:
    """Return what the lab ``brief`` might leave on this machine; other labs may come and go."""
    links = json.loads(run(["ip", "-json", "link"], deadline_s=5).stdout)
    mounts = [
        line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    traces = {
        "netns": [path.name for path in Path("/run/netns").glob("*")],
        "links": [link["ifname"] for link in links],
        # ip(8) itself keeps one mount on /run/netns once it has made its first namespace.
        "mounts": [mount for mount in mounts if not mount.startswith("/run/netns ")],
        "directories": [str(path) for directory in (STATE, DISKS) for path in directory.glob("*")],
    }
    return {
        kind: sorted(trace for trace in found if not OTHER_LAB.search(trace))
        for kind, found in traces.items()
    }
