"""The lab as an operator sees it: hosts, workloads, and the real command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import network, outside
from lab.errors import LabUnsuitable
from lab.host import Host, within
from lab.lab import Lab
from lab.plan import OUTSIDE
from lab.workload import Workload
from sojourn.messaging.application import shared_queue
from sojourn.security.tls import for_redis
from sojourn.settings import Settings, variable
from sojourn.system.run import Completed, run, spawn

MIGRATION_S = 90

#: Takes a PID: has the kernel assign it to the next process, and starts a program with it. Another
#: process may come first, so it tries until it succeeds. Then the kernel goes on where it was: else
#: the host's next processes would take the PIDs of the host whose process this one stands in for.
OCCUPY = """
import os, sys
LAST = "/proc/sys/kernel/ns_last_pid"
pid, before = int(sys.argv[1]), open(LAST).read()
while True:
    open(LAST, "w").write(str(pid - 1))
    child = os.fork()
    if child == 0 and os.getpid() == pid:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.execvp("sleep", ["sleep", "1000"])
    if child == 0:
        os._exit(0)
    if child == pid:
        break
    os.waitpid(child, 0)
open(LAST, "w").write(before)
"""

#: CRIU on a host, and where a test puts it away.
CRIU, AWAY = "/usr/sbin/criu", "/var/tmp/criu"

FAILPOINTS = "/var/lib/sojourn/failpoints"

#: A host, and the name of a fail point there.
Instant = tuple[Host, str]


@dataclass(frozen=True)
class Ended:
    """How a ``sojourn`` command ended: its exit code, and the JSON that it printed."""

    code: int
    answer: dict[str, Any]


class Site:
    """The lab as an operator sees it: hosts, workloads, and the real command line."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @property
    def shared_queue(self) -> str:
        """The queue that all workers of the lab consume."""
        return shared_queue(Settings.model_validate({"key": self.lab.plan.key}))

    def host(self, name: str) -> Host:
        """Return a host that is up, plugged in and has a worker."""
        if not self.lab.host(name).is_up:
            self.lab.boot(name)
        self.lab.heal(name)
        return self.lab.host(name)

    def sojourn(self, *arguments: str) -> Completed:
        """Run the command line outside the hosts."""
        command = [sys.executable, "-m", "sojourn", *arguments]
        return run(
            command,
            deadline_s=MIGRATION_S,
            check=False,
            env={"SOJOURN_CONFIG": str(self.lab.config)},
        )

    def migrate(self, pid: int, source: str, destination: str, *options: str) -> Ended:
        """Migrate and return how it ended."""
        ended = self.sojourn(
            "migrate", str(pid), "--from", source, "--to", destination, "--json", *options
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return Ended(ended.returncode, json.loads(ended.stdout))

    def migrate_meanwhile(
        self, pid: int, at: Instant, act: Callable[[], object], *options: str
    ) -> Ended:
        """Migrate from alpha to beta, and act at an instant while the migration pauses there."""
        host, name = at
        ended: list[Ended] = []
        migration = threading.Thread(
            target=lambda: ended.append(self.migrate(pid, "alpha", "beta", *options))
        )
        host.run(
            ["sh", "-c", f"mkdir -p {FAILPOINTS}; rm -f {FAILPOINTS}/*; touch {FAILPOINTS}/{name}"]
        )
        migration.start()
        try:
            assert within(MIGRATION_S / 2, lambda: self._pauses(host, name)), (
                f"never came to {name}"
            )
            act()
        finally:
            host.run(["sh", "-c", f"rm -f {FAILPOINTS}/*"])
            migration.join()
        return ended[0]

    def _pauses(self, host: Host, name: str) -> bool:
        return host.run(["test", "-e", f"{FAILPOINTS}/{name}.reached"], check=False).returncode == 0

    def configure(self, host: Host, **settings: object) -> None:
        """Change the settings of a host's worker and restart it."""
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        host.run(
            ["sh", "-c", "cat /etc/sojourn/site.toml - > /etc/sojourn/sojourn.toml"], stdin=lines
        )
        self.restart_worker(host)

    def restart_worker(self, host: Host) -> None:
        """Restart a host's worker and wait until it answers."""
        host.service("worker", "restart")
        assert within(20, lambda: self.answers(host)), host.log("worker")

    def answers(self, host: Host) -> bool:
        """Whether a host's worker answers requests."""
        return self.sojourn("ps", host.name, "--json").returncode == 0


@contextlib.contextmanager
def killed_at_write(host: Host, criu: int, number: int) -> Iterator[None]:
    """Kill a CRIU, given by the host's PID, at its ``number``-th write(2) from now.

    CRIU writes a line of its log with one write. Leaving the context waits until CRIU has ended.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: bin/setup browser")
    pid = _outside_pid(host, criu)
    arguments = [
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=write",
        "-e",
        f"inject=write:signal=KILL:when={number}",
    ]
    tracer = spawn([*arguments, "-p", str(pid)])
    try:
        assert within(
            5, lambda: f"TracerPid:\t{tracer.pid}\n" in Path(f"/proc/{pid}/status").read_text()
        )
        yield
        tracer.wait(20)
    finally:
        tracer.kill()


def _outside_pid(host: Host, pid: int) -> int:
    """Return the PID that a host's process has outside (``NSpid`` of proc_pid_status(5))."""
    for outside_pid in network.pids(host.plan.name, host.name):
        status = Path(f"/proc/{outside_pid}/status")
        if status.exists() and re.search(rf"^NSpid:.*\t{pid}$", status.read_text(), re.MULTILINE):
            return outside_pid
    raise AssertionError(f"{host.name} has no process {pid}")


def rolled_back(site: Site, pid: int, *options: str, act: Callable[[], object] = bool) -> Ended:
    """Migrate, act inside the freeze, and let the restore fail: beta has lost its CRIU.

    Also the one that waits for the restore.
    """
    alpha, beta = site.host("alpha"), site.host("beta")

    def meanwhile() -> None:
        act()
        beta.run(["mv", CRIU, AWAY])
        beta.run(["pkill", "-KILL", "-f", "[s]ojourn.transfer.rebuilder"])

    try:
        return site.migrate_meanwhile(pid, (alpha, "copy_images.begin"), meanwhile, *options)
    finally:
        beta.run(["mv", AWAY, CRIU])


def require_lab() -> None:
    """Skip, with the reason, where there can be no lab; fail where there must be one."""
    try:
        outside.check()
    except LabUnsuitable as error:
        if variable("CI"):
            raise
        pytest.skip(str(error))


@contextlib.contextmanager
def fresh_lab(name: str, hosts: int = 2, **how: Any) -> Iterator[Lab]:
    """Yield a lab made from scratch, whatever an earlier one left, and remove it afterwards.

    ``LAB_SUFFIX`` makes its name another one, so that two checkouts can run their tests at once.
    """
    lab = Lab(name + os.environ.get("LAB_SUFFIX", ""))
    lab.down()
    try:
        lab.up(hosts, **how)
        yield lab
    finally:
        lab.down()


def redis_tls(lab: Lab) -> dict[str, str]:
    """Return redis-py's arguments to connect to a lab's Redis from outside."""
    return for_redis(lab.plan.authority / OUTSIDE) if lab.plan.encrypted else {}


def left_behind(host: Host) -> list[str]:
    """Return what no migration may leave: image directories, CRIU, holders, network locks."""
    mounts = host.run(["findmnt", "-rno", "TARGET", "-t", "tmpfs"]).stdout.splitlines()
    programs = host.run(["ps", "-eo", "args="]).stdout.splitlines()
    tables = host.run(["nft", "list", "tables"]).stdout.splitlines()
    return [
        *(line for line in mounts if "/run/sojourn/" in line),
        *(line for line in programs if "sojourn.transfer.holder" in line or _is_working(line)),
        *(line for line in tables if "CRIU" in line),
    ]


def runs_on(host: Host, workload: Workload) -> bool:
    """Whether the workload's process exists there and is not stopped."""
    state = host.run(["ps", "-o", "stat=", "-p", str(workload.pid)], check=False).stdout.strip()
    return bool(state) and not state.startswith("T")


def _is_working(command: str) -> bool:
    """Whether a command line is CRIU at work; a worker runs it for its version now and then."""
    return command.startswith(CRIU) and "--version" not in command
