"""Undoing what CRIU does to established TCP connections when it leaves a tree stopped after a dump.

Such sockets stay in repair mode and CRIU's network lock stays in place (https://criu.org/TCP_connection), so
a SIGCONT alone would wake a process whose connections are dead. Only dumps with ``--tcp-established`` do this.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from sojourn import process
from sojourn.model import Member
from sojourn.run import run

#: ``TCP_REPAIR`` of include/uapi/linux/tcp.h.
TCP_REPAIR = 19

NFT_DEADLINE_S = 5


def unlock(run_id: str) -> bool:
    """Remove the network lock of one dump, its nftables table; False if there is none."""
    table = table_of(run_id)
    if table not in locks():
        return False
    run(["nft", "delete", "table", "inet", table], deadline_s=NFT_DEADLINE_S)
    return True


def table_of(run_id: str) -> str:
    """Return the name of a dump's table, cut as CRIU cuts it: ``inet CRIU-<run id>`` in a buffer of 32 bytes.

    See nftables_get_table in CRIU's netfilter.c.
    """
    return f"inet CRIU-{run_id}"[:31].removeprefix("inet ")


def locks() -> list[str]:
    """Return the names of CRIU's tables on this host."""
    tables = run(["nft", "list", "tables", "inet"], deadline_s=NFT_DEADLINE_S).stdout.split()
    return [name for name in tables if name.startswith("CRIU-")]


def leave_repair_mode(members: Iterable[Member]) -> int:
    """Take the TCP sockets of these processes out of repair mode; return how many were in it."""
    return sum(_leave_repair_mode(member.identity.pid) for member in members)


def _leave_repair_mode(pid: int) -> int:
    return sum(_repaired(pid, descriptor) for descriptor in process.sockets(pid))


def _repaired(pid: int, descriptor: int) -> bool:
    """Switch one socket back to normal; False if it is no TCP socket or was not in repair mode."""
    with process.borrowed(pid, descriptor) as copy:
        if copy is None:
            return False
        with socket.socket(fileno=os.dup(copy)) as theirs:
            is_tcp = theirs.type == socket.SOCK_STREAM and theirs.family in {socket.AF_INET, socket.AF_INET6}
            if not is_tcp or not theirs.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                return False
            theirs.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    return True
