"""System V semaphores, queues and memory of the host's IPC namespace, which stay behind.

CRIU dumps them only with an IPC namespace of the tree's own. No process holds them: they are used
by their numbers, and ``/proc`` does not show by whom. But the kernel remembers which process did
the last operation (semctl(2) ``GETPID``, msgctl(2), shmctl(2)), and a program that has used one
will use it again. PIDs are those of this host; one that a new process has got since could be taken
for the old one, which only a restart of that process corrects.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import Tree, read
from sojourn.system.process import PROC

#: ``GETPID`` of semctl(2).
GETPID = 11

#: The columns of ``/proc/sysvipc`` with the PIDs of those that used a thing last (proc(5)).
USERS = {"msg": ("message queue", ("lspid", "lrpid")), "shm": ("memory", ("cpid", "lpid"))}


def check(tree: Tree, *, own_ipc: bool) -> Iterator[Finding]:
    """Yield what a tree used last in the host's IPC namespace."""
    ours = tree.pids
    for what, pid in [] if own_ipc else sorted({*_semaphores(), *_others()}):
        if pid in ours:
            yield blocks(
                "SYSV_IPC",
                f"Process {pid} uses a System V {what} of the host's IPC namespace, which CRIU "
                "does not dump.",
                "Start it in an IPC namespace of its own: `unshare --ipc CMD`.",
            )


def _semaphores() -> Iterator[tuple[str, int]]:
    for row in _table("sem"):
        for number in range(row["nsems"]):
            yield f"semaphore (id {row['semid']})", _libc.semctl(row["semid"], number, GETPID)


def _others() -> Iterator[tuple[str, int]]:
    for table, (what, columns) in USERS.items():
        for row in _table(table):
            # Memory that is mapped is found by its mapping.
            if not row.get("nattch"):
                number = row["msqid" if table == "msg" else "shmid"]
                yield from ((f"{what} (id {number})", row[column]) for column in columns)


def _table(name: str) -> Iterator[dict[str, int]]:
    head, *lines = read(f"{PROC}/sysvipc/{name}").splitlines()
    columns = head.split()
    for line in lines:
        yield dict(zip(columns, map(int, line.split()), strict=True))


_libc = ctypes.CDLL(None, use_errno=True)
