"""Network namespaces (network_namespaces(7)): whose they are, and commands inside them."""

from __future__ import annotations

from sojourn.system.process import PROC
from sojourn.system.run import Argument


def has_own_network(pid: int) -> bool:
    """Return whether a process is in another network namespace than we are; False if it is gone."""
    try:
        return (PROC / str(pid) / "ns/net").readlink() != (PROC / "self/ns/net").readlink()
    except OSError:
        return False


def inside(pid: int | None, command: list[Argument]) -> list[Argument]:
    """Return the command that runs another one in the network namespace of a process, if given."""
    return [*(["nsenter", f"--net={PROC}/{pid}/ns/net"] if pid else []), *command]
