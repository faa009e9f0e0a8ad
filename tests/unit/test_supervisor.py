"""What the supervisors' own files say, and which parents are masters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.preflight import restart_policy, supervisor
from sojourn.system import process, service_directory, supervisord, systemd
from sojourn.system.service_directory import SUITES
from tests.conftest import eventually

#: ``supervise/status`` of runit as its runsv wrote it for PID 10056: up, and after ``sv once``.
UP = bytes.fromhex("400000006b0bbafd037b172448270000 00750001")
ONCE = bytes.fromhex("400000006b0bbafd037b172448270000 00640001")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a service's directory."""
    (tmp_path / "supervise").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("status", "again"),
    [
        (UP, True),
        (ONCE, False),
        (UP[:18], True),
        (ONCE[:18], False),
        (b"", True),
        (b"u" * 99, True),
    ],
)
@pytest.mark.parametrize("suite", ["runit", "daemontools"])
def test_a_status_file(directory: Path, suite: str, status: bytes, again: bool) -> None:
    """The byte ``want`` counts, in both formats; a malformed file counts as supervised."""
    (directory / "supervise/status").write_bytes(status)
    assert service_directory.starts_again(SUITES[suite], directory) is again


def test_without_a_status_file(directory: Path) -> None:
    """Without one it is not known, so it counts as supervised."""
    assert service_directory.starts_again(SUITES["runit"], directory)


def test_a_directory_of_others(directory: Path) -> None:
    """What others can write to is never acted upon by root."""
    directory.chmod(0o777)
    assert not service_directory.is_roots_own(str(directory))


def test_a_link_in_place_of_the_file(directory: Path) -> None:
    """Root makes no file where somebody else's link leads."""
    (directory / "down").symlink_to(directory / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        service_directory.run_once(SUITES["runit"], str(directory))
    assert not (directory / "elsewhere").exists()


def test_put_back_without_a_supervisor(directory: Path) -> None:
    """A supervisor that is gone cannot be asked; it finds the file gone when it comes."""
    (directory / "down").touch()
    os.mkfifo(directory / "supervise/control")
    service_directory.put_back(SUITES["runit"], str(directory))
    service_directory.put_back(SUITES["runit"], str(directory))
    assert not (directory / "down").exists()


@pytest.mark.parametrize(
    ("group", "unit"),
    [
        ("/", None),
        ("/init.scope", None),
        ("/system.slice/cron.service", systemd.Unit("cron.service")),
        ("/system.slice/system-pg.slice/pg@17.service/sub", systemd.Unit("pg@17.service")),
        ("/user.slice/user-1000.slice/session-3.scope", None),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", None),
        ("/user.slice/user-1000.slice/user@1000.service", None),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service",
            systemd.Unit("sync.service", 1000),
        ),
        ("/system.slice/docker-0a1b.scope", None),
        ("/system.slice/a b.service", None),
    ],
)
def test_the_unit_of_a_group(group: str, unit: systemd.Unit | None) -> None:
    """The innermost unit counts if it is a service; a manager of a user is none."""
    assert systemd._unit_in(group) == unit


@pytest.mark.parametrize(
    ("shown", "again"),
    [
        ({"Restart": "always"}, True),
        ({"Restart": "on-failure"}, True),
        ({"Restart": "on-abort"}, True),
        ({"Restart": "on-success"}, False),
        ({"Restart": "on-watchdog"}, False),
        ({"Restart": "no"}, False),
        ({"Restart": "no", "RestartForceExitStatus": "3 KILL"}, True),
        ({"Restart": "always", "RestartPreventExitStatus": "KILL"}, False),
        ({"Restart": "on-failure", "SuccessExitStatus": "4 KILL"}, False),
        ({"Restart": "on-success", "SuccessExitStatus": "KILL"}, True),
        ({}, True),
    ],
)
def test_restart(shown: dict[str, str], again: bool) -> None:
    """A killed main process is a failure, unless the unit says otherwise."""
    assert systemd.starts_again(shown) is again


def test_spans() -> None:
    """A span of systemd in seconds."""
    assert systemd._seconds("1min 30s") == 90
    assert systemd._seconds("500ms") == 0.5
    assert systemd._seconds("0") == 0
    assert systemd._seconds("infinity") == 0


@pytest.mark.parametrize("name", ["../x.service", "a/b.service", "", "x.socket"])
def test_a_malformed_unit(name: str) -> None:
    """No file is written for what is no name of a service."""
    with pytest.raises(ValueError, match="not a name"):
        systemd.drop_in(name)


def child_of_supervisord(tmp_path: Path, section: str) -> tuple[int, int, subprocess.Popen[bytes]]:
    """Start what looks like supervisord and its child; return their PIDs."""
    conf = tmp_path / "supervisord.conf"
    conf.write_text("[supervisord]\n[include]\nfiles = conf.d/*.conf\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/nap.conf").write_text(f"[program:nap]\ncommand=sleep 1\n{section}\n")
    environment = {**os.environ, "SUPERVISOR_PROCESS_NAME": "nap"}
    script = tmp_path / "supervisord"
    script.write_text(
        "import subprocess; p = subprocess.Popen(['sleep', '100']); print(p.pid, flush=True); "
        "p.wait()"
    )
    # A start time counts in whole ticks.
    eventually(lambda: process.started(os.getpid()) < conf.stat().st_mtime)
    for file in (conf, tmp_path / "conf.d/nap.conf"):
        os.utime(file, (1, 1))
    running = subprocess.Popen(
        [sys.executable, script, "-c", conf], stdout=subprocess.PIPE, env=environment
    )
    assert running.stdout
    return running.pid, int(running.stdout.readline()), running


@pytest.mark.parametrize(
    ("section", "again"),
    [("", True), ("autorestart=unexpected", True), ("autorestart = false ; never", False)],
)
def test_supervisord(tmp_path: Path, section: str, again: bool) -> None:
    """``autorestart`` counts, in an included file too; a file that was changed since does not."""
    parent, child, running = child_of_supervisord(tmp_path, section)
    try:
        # The environment of a program that was started just now is not there at once.
        eventually(lambda: supervisord.program_of(child) == "nap")
        found = supervisor.of(child, {child}, 120)
        assert (found is not None) is again
        if found:
            assert f"supervisord, process {parent}, as the program nap" in found.relation
            assert found.stop is None
        (tmp_path / "conf.d/nap.conf").touch()
        assert supervisord.starts_again(parent, child)
    finally:
        os.kill(child, 9)
        running.wait()


def test_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's restart policy is in Docker's own file; without that it is not known."""
    monkeypatch.setattr(restart_policy, "DOCKERS", tmp_path)
    container = "0a1b2c3d4e5f" * 5
    shim = ["containerd-shim-runc-v2", "-namespace", "moby", "-id", container]
    found = restart_policy._of_containerd(shim)
    assert found
    assert "restart policy unknown" in found[0]
    (tmp_path / container).mkdir()
    policy = tmp_path / container / "hostconfig.json"
    policy.write_text('{"RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}}')
    assert restart_policy._of_containerd(shim) is None
    policy.write_text('{"RestartPolicy": {"Name": "unless-stopped"}}')
    found = restart_policy._of_containerd(shim)
    assert found
    assert found[1] == "`docker update --restart=no 0a1b2c3d4e5f`"
    assert restart_policy._of_containerd([*shim[:1], "-namespace", "k8s.io", "-id", container])
    assert restart_policy._of_containerd([*shim[:3], "-id", "../../etc"]) is None


@pytest.mark.parametrize("name", ["circusd", "mysqld_safe"])
def test_another_supervisor(tmp_path: Path, name: str) -> None:
    """A known supervisor is recognised by its program or by the script that its shell runs."""
    script = tmp_path / name
    script.write_text("sleep 100 & echo $!; wait")
    with subprocess.Popen(["sh", script], stdout=subprocess.PIPE) as running:
        assert running.stdout
        child = int(running.stdout.readline())
        found = supervisor.of(child, {child}, 120)
        assert found
        assert found.verdict == (
            f"is supervised by {name}, process {running.pid}, which would start it again"
        )
        os.kill(child, 9)


def test_an_ordinary_parent() -> None:
    """A child of a test, of a shell, and of a shell of that, is nobody's worker."""
    for command in (["sleep", "100"], ["sh", "-c", "sleep 100; true"]):
        with subprocess.Popen(command) as child:
            assert supervisor.of(child.pid, {child.pid}, 120) is None
            below = Path(f"/proc/{child.pid}/task/{child.pid}/children")
            if command[0] == "sh":
                eventually(below.read_text)
                inner = int(below.read_text())
                assert supervisor.of(inner, {inner}, 120) is None
                os.kill(inner, 9)
            child.kill()


def test_a_fork_and_an_exec() -> None:
    """A fork is a worker of its parent; the same program started again is not."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as started:
        eventually(lambda: process.program(started.pid) == process.program(os.getpid()))
        assert not process.is_fork_of(started.pid, os.getpid())
        started.kill()
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        assert process.is_fork_of(pid, os.getpid())
        found = supervisor.of(pid, {pid}, 120)
        assert found
        assert found.relation.startswith(f"is a worker of process {os.getpid()} (")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
