"""A separate Docker engine for the tests, with its own data, socket and networks.

An engine that runs on this machine already is not touched, unless ``SOJOURN_DOCKER=present``
permits its use.

The engine lives in a mount and a PID namespace: its containers and its mounts end with it. It
writes no firewall rules, so its containers reach each other and nothing else, and images are built
in the machine's own network.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab import base
from lab.errors import LabFailed
from lab.layer import Layer, Report
from sojourn.settings import environment, variable
from sojourn.system.run import Argument, Child, Completed, run, spawn

CHECKOUT = Path(__file__).parents[2]

#: Where ``bin/setup docker`` puts the programs of an engine that is not installed.
PROGRAMS = CHECKOUT / ".venv/docker"

SEARCHED = os.pathsep.join(
    [str(PROGRAMS), *os.get_exec_path(), "/usr/local/sbin", "/usr/sbin", "/sbin"]
)

#: The Dockerfile's base image. It is made here, since a machine may have no registry to pull from.
BASE = "debian:trixie-slim"

BRIDGE = "sj-compose"
NETWORKS = "base=10.214.0.0/16,size=24"

START_S = 60
BUILD_S = 900
COMMAND_S = 120

#: This machine's certificates, and where the base image has them: pip must trust a proxy that
#: intercepts TLS, where there is one.
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
OUTSIDE = Path("/etc/outside/ca.crt")

#: Runs the engine in its own namespaces. With ``--mount-proc`` it gets a new ``/proc``, in which it
#: finds its containers by their PIDs in its namespace.
APART = (
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "--pid",
    "--fork",
)
ENDS_WITH_US = ("--kill-child", "--mount-proc", "--")


class Engine:
    """An engine and a copy of the checkout, so that a user's ``.env`` is left alone."""

    def __init__(self, *, present: bool) -> None:
        self.present = present
        self.place = Path(tempfile.mkdtemp(prefix="sojourn-docker-", dir="/var/tmp"))
        self.checkout = self.place / "sojourn"
        self.log = self.place / "dockerd.log"
        self.daemon: Child | None = None
        self.containers: dict[str, str] = {}
        self.files = "docker-compose.yml"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def start(self) -> None:
        """Start it, import the base image, and copy the checkout; skip if it cannot start here."""
        shutil.copytree(
            CHECKOUT,
            self.checkout,
            ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "dist"),
        )
        shutil.copy(CHECKOUT / ".dockerignore", self.checkout)
        if self.present:
            return
        (self.place / "daemon.json").write_text("{}")
        self.daemon = spawn(
            [*APART, *ENDS_WITH_US, *self._dockerd()], output=self.log, env={"PATH": SEARCHED}
        )
        self._wait()
        self._import_base()
        self.files += f":{self._outside()}"

    def stop(self) -> None:
        """Remove everything."""
        self.compose("down", "--volumes", "--timeout", "1", check=False)
        if self.daemon:
            self.daemon.kill()
            run(["ip", "link", "delete", BRIDGE], deadline_s=COMMAND_S, check=False)
        until = time.monotonic() + START_S
        # Processes that the kernel is still ending may hold files, so one attempt may not suffice.
        while self.place.exists() and time.monotonic() < until:
            shutil.rmtree(self.place, ignore_errors=True)

    def docker(
        self, *arguments: str, check: bool = True, deadline_s: float = COMMAND_S
    ) -> Completed:
        """Run ``docker``."""
        return self._run(["docker", *arguments], check=check, deadline_s=deadline_s)

    def compose(
        self, *arguments: str, check: bool = True, deadline_s: float = COMMAND_S
    ) -> Completed:
        """Run ``docker compose``, by the name that it has here, and without a terminal."""
        first, *rest = arguments
        without = ["-T"] if first == "exec" else []
        return self._run([*_compose(), first, *without, *rest], check=check, deadline_s=deadline_s)

    def inside(self, service: str, *arguments: str, check: bool = True) -> Completed:
        """Run a command in a container, without Compose, which is slow to start."""
        return self.docker("exec", self.container(service), *arguments, check=check)

    def container(self, service: str) -> str:
        """Return the id of a service's container; it stays through restarts."""
        if service not in self.containers:
            self.containers[service] = self.compose("ps", "-q", service).stdout.strip()
        return self.containers[service]

    def follow(self, line: str) -> Completed:
        """Run a command line of the documentation, in the checkout."""
        arguments = shlex.split(line)
        if arguments[:2] == ["docker", "compose"]:
            return self.compose(*arguments[2:], deadline_s=BUILD_S)
        return self._run(arguments, check=True, deadline_s=COMMAND_S)

    def _run(self, argv: Sequence[Argument], *, check: bool, deadline_s: float) -> Completed:
        done = run(
            argv, deadline_s=deadline_s, check=False, env=self._environment(), cwd=self.checkout
        )
        assert done.returncode == 0 or not check, (
            f"{done.describe()}: {(done.stdout + done.stderr)[-3000:]}"
        )
        return done

    def _environment(self) -> dict[str, str]:
        there = {} if self.present else {"DOCKER_HOST": f"unix://{self.place}/docker.sock"}
        # BuildKit skips stages that are not needed and builds others in parallel. Newer versions
        # use it by default.
        builder = {"DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}
        project = {
            "COMPOSE_PROJECT_NAME": "sojourn-test",
            "COMPOSE_FILE": self.files,
            "FLOWER_PORT": str(self.port),
        }
        return {
            **environment(),
            **builder,
            **project,
            **there,
            "PATH": SEARCHED,
            "HOME": str(self.place),
        }

    def _dockerd(self) -> list[Argument]:
        return [
            *(
                "dockerd",
                f"--host=unix://{self.place}/docker.sock",
                "--config-file",
                self.place / "daemon.json",
            ),
            *("--data-root", self.place / "data", "--exec-root", self.place / "exec"),
            *("--pidfile", self.place / "dockerd.pid", "--log-level=warn"),
            *(
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
                "--ip-masq=false",
            ),
            *("--default-address-pool", NETWORKS),
        ]

    def _wait(self) -> None:
        """Wait for the engine; skip, with its last log line, if the machine does not permit it."""
        assert self.daemon
        until = time.monotonic() + START_S
        while self.docker("version", check=False).returncode != 0:
            if self.daemon.poll() is not None or time.monotonic() > until:
                lines = self.log.read_text(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else "its log is empty"
                pytest.skip(f"no Docker engine can start on this machine: {reason}")
            time.sleep(0.2)

    def _import_base(self) -> None:
        root = _base().ready(lambda _: None)
        archive = self.place / "base.tar"
        run(["tar", "--create", "--file", archive, "--directory", root, "."], deadline_s=COMMAND_S)
        self.docker("import", "--change", f"ENV PIP_CERT={OUTSIDE}", str(archive), BASE)
        archive.unlink()

    def _outside(self) -> Path:
        """Write this machine's additions to the compose file: build network and bridge name."""
        build = {"network": "host"}
        services = {name: {"build": build} for name in ("redis", "alpha", "beta", "flower")}
        bridge = {"default": {"driver_opts": {"com.docker.network.bridge.name": BRIDGE}}}
        file = self.place / "outside.yml"
        file.write_text(json.dumps({"services": services, "networks": bridge}))  # JSON is YAML
        return file


def require_docker() -> Engine:
    """Return an engine, not started; skip, with the reason, where there cannot be one."""
    present = variable("SOJOURN_DOCKER") == "present"
    if os.geteuid() != 0 and not present:
        pytest.skip("a Docker engine needs root")
    if not Path("/proc/sys/kernel/ns_last_pid").exists():
        pytest.skip("this kernel was built without CONFIG_CHECKPOINT_RESTORE")
    wanted = ["docker"] if present else ["docker", "dockerd", "containerd", "runc", "mmdebstrap"]
    missing = [name for name in wanted if not shutil.which(name, path=SEARCHED)]
    if not _compose():
        missing.append("docker-compose")
    if missing:
        pytest.skip(f"{', '.join(missing)} are not installed: bin/setup docker")
    return Engine(present=present)


def _compose() -> list[str]:
    """Return Compose's command: a plugin of ``docker``, a separate program, or empty if missing."""
    plugin = ["docker", "compose"]
    if shutil.which("docker", path=SEARCHED):
        answer = run(
            [*plugin, "version"], deadline_s=COMMAND_S, check=False, env={"PATH": SEARCHED}
        )
        if answer.returncode == 0:
            return plugin
    return ["docker-compose"] if shutil.which("docker-compose", path=SEARCHED) else []


def _base() -> Layer:
    """Return the layer for ``debian:trixie-slim``: a minimal Debian with our settings."""
    recipe = [base.SUITE, "mmdebstrap", *base.DPKG_OPTIONS, str(OUTSIDE)]
    return Layer("slim", "\n".join(recipe), _fill)


def _fill(root: Path, report: Report) -> None:
    try:
        base.bootstrap(root, report)
    except LabFailed as error:
        pytest.skip(f"the base image cannot be made: {error.message}")
    (root / OUTSIDE.relative_to("/")).parent.mkdir()
    shutil.copy(variable("PIP_CERT") or CERTIFICATES, root / OUTSIDE.relative_to("/"))
