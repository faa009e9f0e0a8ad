"""A Docker engine of the tests' own: its data, its socket and its networks are apart, and all of it goes with it.

An engine that runs on this machine already is not touched, unless ``SOJOURN_DOCKER=present`` says that it may be used.

The engine lives in a mount and a PID namespace: with it end its containers, and its mounts. It writes no rules for a
firewall, so its containers reach each other and nothing else, and images are built in the machine's own network.
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
from lab.layer import Layer
from sojourn.errors import CommandFailed
from sojourn.run import Argument, Child, Completed, run, spawn
from sojourn.settings import environment, variable

CHECKOUT = Path(__file__).parents[2]

#: Where ``bin/setup docker`` puts the programs of an engine that is not installed.
PROGRAMS = CHECKOUT / ".venv/docker"

SEARCHED = os.pathsep.join([str(PROGRAMS), *os.get_exec_path(), "/usr/local/sbin", "/usr/sbin", "/sbin"])

#: What the Dockerfile calls its base, made here since no image can be relied on to be pulled.
BASE = "debian:trixie-slim"

BRIDGE = "sj-compose"
NETWORKS = "base=10.214.0.0/16,size=24"

START_S = 60
BUILD_S = 900
COMMAND_S = 120

#: Where the outside's certificates lie in the base, so that pip reaches its index from where it is intercepted.
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
OUTSIDE = Path("/etc/outside/ca.crt")

#: A bind mount of ``/proc`` is not enough: the engine finds its containers by their numbers in its own namespace.
APART = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork")
ENDS_WITH_US = ("--kill-child", "--mount-proc", "--")


class Engine:
    """An engine and a copy of the checkout, so that the ``.env`` of people is left alone."""

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
        """Start it, give it the base image, and copy the checkout. Skips if the engine can not start here."""
        shutil.copytree(CHECKOUT, self.checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "dist"))
        shutil.copy(CHECKOUT / ".dockerignore", self.checkout)
        if self.present:
            return
        (self.place / "daemon.json").write_text("{}")
        self.daemon = spawn([*APART, *ENDS_WITH_US, *self._dockerd()], output=self.log, env={"PATH": SEARCHED})
        self._wait()
        self._import_base()
        self.files += f":{self._outside()}"

    def stop(self) -> None:
        """Take everything away."""
        self.compose("down", "--volumes", "--timeout", "1", check=False)
        if self.daemon:
            self.daemon.kill()
            run(["ip", "link", "delete", BRIDGE], deadline_s=COMMAND_S, check=False)
        until = time.monotonic() + START_S
        while self.place.exists() and time.monotonic() < until:  # what the kernel still ends may hold files
            shutil.rmtree(self.place, ignore_errors=True)

    def docker(self, *words: str, check: bool = True, deadline_s: float = COMMAND_S) -> Completed:
        """Run ``docker``."""
        return self._run(["docker", *words], check=check, deadline_s=deadline_s)

    def compose(self, *words: str, check: bool = True, deadline_s: float = COMMAND_S) -> Completed:
        """Run ``docker compose``, under the name that it has here; without a terminal, which there is none of."""
        first, *rest = words
        without = ["-T"] if first == "exec" else []
        return self._run([*_compose(), first, *without, *rest], check=check, deadline_s=deadline_s)

    def inside(self, service: str, *words: str, check: bool = True) -> Completed:
        """Run a command in a container; faster than Compose, which is slow to start."""
        return self.docker("exec", self.container(service), *words, check=check)

    def container(self, service: str) -> str:
        """Return the id of a service's container; it stays through restarts."""
        if service not in self.containers:
            self.containers[service] = self.compose("ps", "-q", service).stdout.strip()
        return self.containers[service]

    def follow(self, line: str) -> Completed:
        """Run a command line of the documentation, in the checkout."""
        words = shlex.split(line)
        if words[:2] == ["docker", "compose"]:
            return self.compose(*words[2:], deadline_s=BUILD_S)
        return self._run(words, check=True, deadline_s=COMMAND_S)

    def _run(self, argv: Sequence[Argument], *, check: bool, deadline_s: float) -> Completed:
        done = run(argv, deadline_s=deadline_s, check=False, env=self._environment(), cwd=self.checkout)
        assert done.returncode == 0 or not check, f"{done.describe()}: {(done.stdout + done.stderr)[-3000:]}"
        return done

    def _environment(self) -> dict[str, str]:
        there = {} if self.present else {"DOCKER_HOST": f"unix://{self.place}/docker.sock"}
        # Stages that nothing needs are left out, and others built side by side: newer versions do that by themselves.
        builder = {"DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}
        project = {"COMPOSE_PROJECT_NAME": "sojourn-test", "COMPOSE_FILE": self.files, "FLOWER_PORT": str(self.port)}
        return {**environment(), **builder, **project, **there, "PATH": SEARCHED, "HOME": str(self.place)}

    def _dockerd(self) -> list[Argument]:
        return [
            *("dockerd", f"--host=unix://{self.place}/docker.sock", "--config-file", self.place / "daemon.json"),
            *("--data-root", self.place / "data", "--exec-root", self.place / "exec"),
            *("--pidfile", self.place / "dockerd.pid", "--log-level=warn"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
            *("--default-address-pool", NETWORKS),
        ]

    def _wait(self) -> None:
        """Skip, with the engine's last words, if it does not come up: a kernel or a sandbox may not let it."""
        assert self.daemon
        until = time.monotonic() + START_S
        while self.docker("version", check=False).returncode != 0:
            if self.daemon.poll() is not None or time.monotonic() > until:
                lines = self.log.read_text(errors="replace").strip().splitlines()
                pytest.skip(f"no Docker engine can start on this machine: {lines[-1] if lines else 'it said nothing'}")
            time.sleep(0.2)

    def _import_base(self) -> None:
        root = _base().ready(lambda _: None)
        archive = self.place / "base.tar"
        run(["tar", "--create", "--file", archive, "--directory", root, "."], deadline_s=COMMAND_S)
        self.docker("import", "--change", f"ENV PIP_CERT={OUTSIDE}", str(archive), BASE)
        archive.unlink()

    def _outside(self) -> Path:
        """Write what this machine adds to the compose file: where images are built, and the name of the bridge."""
        build = {"network": "host"}
        services = {name: {"build": build} for name in ("redis", "alpha", "beta", "flower")}
        bridge = {"default": {"driver_opts": {"com.docker.network.bridge.name": BRIDGE}}}
        file = self.place / "outside.yml"
        file.write_text(json.dumps({"services": services, "networks": bridge}))  # JSON is YAML
        return file


def require_docker() -> Engine:
    """Return an engine, not started. Skips, with the reason, where there can be none."""
    present = variable("SOJOURN_DOCKER") == "present"
    if os.geteuid() != 0 and not present:
        pytest.skip("a Docker engine needs root")
    if not Path("/proc/sys/kernel/ns_last_pid").exists():
        pytest.skip("this kernel was built without CONFIG_CHECKPOINT_RESTORE")
    wanted = ["docker"] if present else ["docker", "dockerd", "containerd", "runc", "debootstrap"]
    missing = [name for name in wanted if not shutil.which(name, path=SEARCHED)]
    if not _compose():
        missing.append("docker-compose")
    if missing:
        pytest.skip(f"{', '.join(missing)} are not installed: bin/setup docker")
    return Engine(present=present)


def _compose() -> list[str]:
    """Return how Compose is called here: as a plugin of ``docker``, as a program of its own, or not at all."""
    plugin = ["docker", "compose"]
    if shutil.which("docker", path=SEARCHED):
        asked = run([*plugin, "version"], deadline_s=COMMAND_S, check=False, env={"PATH": SEARCHED})
        if asked.returncode == 0:
            return plugin
    return ["docker-compose"] if shutil.which("docker-compose", path=SEARCHED) else []


def _base() -> Layer:
    """Return what stands for ``debian:trixie-slim``: the smallest Debian, with what the outside's apt and pip need."""
    return Layer("slim", f"{base.SUITE} minbase {OUTSIDE}", _fill)


def _fill(root: Path, report: object) -> None:
    try:
        run(["debootstrap", "--variant=minbase", base.SUITE, root, base.mirror()], deadline_s=BUILD_S)
    except CommandFailed as error:
        pytest.skip(f"the base image can not be had: {error.message}")
    shutil.rmtree(root / "var/cache/apt")
    settings = base.network_settings() + 'Acquire::Languages "none";\n'
    (root / "etc/apt/apt.conf.d/90outside").write_text(settings)
    (root / OUTSIDE.relative_to("/")).parent.mkdir()
    shutil.copy(variable("PIP_CERT") or CERTIFICATES, root / OUTSIDE.relative_to("/"))
