"""Undo what CRIU does to TCP connections when it leaves a tree stopped after a dump.

Such sockets stay in repair mode, without the SO_REUSEADDR that they had, and CRIU's network lock
stays in place (https://criu.org/TCP_connection), so SIGCONT alone would resume a process whose
connections are dead. Connections that have ended are among them, with or without
``--tcp-established``, as long as the program has not closed its socket. For a tree in a network
namespace of its own the lock is in there, and keeps all packets away.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping

from sojourn.model import Member
from sojourn.system import process
from sojourn.system.network import inside
from sojourn.system.run import run

#: ``TCP_REPAIR`` of include/uapi/linux/tcp.h.
TCP_REPAIR = 19

NFT_DEADLINE_S = 5


def unlock(run_id: str, pid: int | None = None) -> bool:
    """Remove the network lock of one dump, its nftables table; False if there is none.

    With a PID, in the network namespace of that process.
    """
    table = table_of(run_id)
    # A dump that died before it locked the network has left no table, and to delete one that does
    # not exist is an error of nft.
    if table not in locks(pid):
        return False
    run(inside(pid, ["nft", "delete", "table", "inet", table]), deadline_s=NFT_DEADLINE_S)
    return True


def table_of(run_id: str) -> str:
    """Return the name of a dump's table, truncated as CRIU truncates it.

    CRIU writes ``inet CRIU-<run id>`` to a buffer of 32 bytes (nftables_get_table in its
    netfilter.c).
    """
    return f"inet CRIU-{run_id}"[:31].removeprefix("inet ")


def locks(pid: int | None = None) -> list[str]:
    """Return the names of CRIU's tables on this host, or in a process's network namespace."""
    listing = inside(pid, ["nft", "list", "tables", "inet"])
    tables = run(listing, deadline_s=NFT_DEADLINE_S).stdout.split()
    return [name for name in tables if name.startswith("CRIU-")]


def leave_repair_mode(members: Iterable[Member], reused: Mapping[int, bool]) -> int:
    """Take the TCP sockets of these processes out of repair mode; return how many were in it.

    ``reused``: whether each socket, by its inode, had SO_REUSEADDR set.
    """
    pids = [member.identity.pid for member in members]
    return sum(_repaired(pid, one, reused) for pid in pids for one in process.sockets(pid))


def _repaired(pid: int, descriptor: int, reused: Mapping[int, bool]) -> bool:
    """Take one socket out of repair mode; False if it is not TCP or was not in repair mode."""
    with process.borrowed(pid, descriptor) as copy:
        if copy is None:
            return False
        # The socket object closes its descriptor, and ``borrowed`` closes ``copy``: hence the dup.
        with socket.socket(fileno=os.dup(copy)) as theirs:
            is_tcp = theirs.type == socket.SOCK_STREAM and theirs.family in {
                socket.AF_INET,
                socket.AF_INET6,
            }
            if not is_tcp or not theirs.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                return False
            # With 0 the kernel sends a window probe as well, by which the peer sees that we are
            # back; with -1 it would not (TCP_REPAIR_OFF_NO_WP).
            theirs.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
            reuse = reused.get(os.fstat(theirs.fileno()).st_ino, False)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    return True
