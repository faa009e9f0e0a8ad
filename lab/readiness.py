"""Waits for the hub's Redis and for what the workers write there, in Redis's own protocol."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from lab.host import within
from lab.plan import HUB, OUTSIDE, Plan
from sojourn.errors import ChannelFailed
from sojourn.security.tls import Certificates, TlsIdentity

REDIS_PORT = 6379
ANSWER_S = 1


def redis_answers(plan: Plan, seconds: float) -> bool:
    """Whether the hub's Redis answered a ping in time."""
    return within(seconds, lambda: _ask(plan, "PING") == "+PONG")


def announced(plan: Plan, hosts: Sequence[str], seconds: float) -> list[str]:
    """Wait until the workers have announced themselves; return the hosts whose worker has not."""
    missing = list(hosts)

    def all_there() -> bool:
        missing[:] = [host for host in missing if _ask(plan, f"EXISTS sojourn:host:{host}") != ":1"]
        return not missing

    within(seconds, all_there)
    return missing


def _ask(plan: Plan, command: str) -> str | None:
    """Return the last line of Redis's answer, or None if there is none."""
    try:
        with _connected(plan) as connection:
            # QUIT makes Redis close the connection, which ends the reading below.
            connection.sendall(f"AUTH {plan.password}\r\n{command}\r\nQUIT\r\n".encode())
            answers = b"".join(iter(lambda: connection.recv(4096), b""))
    except (OSError, ChannelFailed):
        return None
    lines = answers.decode().splitlines()
    # The first line answers AUTH.
    return lines[1] if len(lines) > 1 else None


def _connected(plan: Plan) -> socket.socket:
    connection = socket.create_connection((plan.address(HUB), REDIS_PORT), timeout=ANSWER_S)
    if plan.encrypted:
        return TlsIdentity(Certificates(plan.authority / OUTSIDE), HUB).connect(connection)
    return connection
