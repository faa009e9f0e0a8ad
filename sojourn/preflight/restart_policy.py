"""Whether a container's engine starts it again: Docker, Podman, Kubernetes.

The first process of a container is a child of a monitor of its own, whose arguments name it.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

from sojourn.errors import CommandFailed, CommandMissing, CommandTimedOut
from sojourn.system import process
from sojourn.system.run import run

DOCKERS = Path("/var/lib/docker/containers")

#: What Docker and Podman call a container that is not started again.
NEVER = {"", "no"}

CONTAINER_ID = re.compile(r"[0-9a-f]{12,64}")
ASK_S = 10.0


def of(monitor: int, child: int, names: set[str]) -> tuple[str, str] | None:
    """Return how an engine supervises a process, and the way out; None if it does not.

    ``names`` are those of the monitor's program.
    """
    if not _is_first(child):
        return None
    arguments = process.arguments(monitor)
    if any(name.startswith("containerd-shim") for name in names):
        return _of_containerd(arguments)
    return _of_podman(arguments) if "conmon" in names else None


def _is_first(pid: int) -> bool:
    """Return whether a process is its container's first; others come by ``exec``."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    ids = next((line.split()[1:] for line in status if line.startswith("NSpid:")), [])
    return len(ids) < 2 or ids[-1] == "1"


def _of_containerd(arguments: list[str]) -> tuple[str, str] | None:
    container, engine = _after(arguments, "-id"), _after(arguments, "-namespace")
    if engine == "k8s.io":
        return (
            f"is the container {container[:12]} of Kubernetes, whose kubelet keeps it running",
            "Drain the node with `kubectl drain`: Kubernetes moves what it has started.",
        )
    if engine != "moby" or not CONTAINER_ID.fullmatch(container):
        return None
    return _by_policy("docker", container, _docker_policy(container))


def _docker_policy(container: str) -> str:
    try:
        file = DOCKERS / container / "hostconfig.json"
        return str(json.loads(file.read_text())["RestartPolicy"]["Name"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _of_podman(arguments: list[str]) -> tuple[str, str] | None:
    container = _after(arguments, "-c")
    if not CONTAINER_ID.fullmatch(container):
        return None
    wanted = "{{.HostConfig.RestartPolicy.Name}}"
    try:
        policy = run(["podman", "inspect", "--format", wanted, container], deadline_s=ASK_S).stdout
    except (CommandFailed, CommandMissing, CommandTimedOut):
        policy = "unknown"
    return _by_policy("podman", container, policy.strip())


def _by_policy(engine: str, container: str, policy: str) -> tuple[str, str] | None:
    if policy in NEVER:
        return None
    return (
        f"is the container {container[:12]} of {engine} (restart policy {policy})",
        f"`{engine} update --restart=no {container[:12]}`",
    )


def _after(arguments: list[str], option: str) -> str:
    """Return the value of an option; empty without it."""
    following = dict(pairwise(arguments))
    return following.get(option, "")
