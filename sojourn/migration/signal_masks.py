"""Blocked signals, on the source: given back to threads in which a killed CRIU was at work.

CRIU runs a piece of its own code in each process that it dumps, and blocks signals meanwhile. If it
is killed at some instants, the process runs on with nearly all signals blocked: it does its work,
and heeds no SIGTERM, SIGCHLD or the like any more (``docs/criu-deaths.md``). What a thread had
blocked is noted before the freeze, so that it can be put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.migration.context import Migration
from sojourn.model import Member
from sojourn.system import json_file, ptrace, waits

#: What CRIU's code blocks: all signals but SIGKILL, SIGSTOP and SIGTRAP.
OF_CRIU = 0xFFFF_FFFF_FFFB_FEEF


def remember(migration: Migration) -> None:
    """Note which signals the threads of the tree block, just before the freeze."""
    blocked = {}
    for tid in _threads(migration.entry.tree):
        with contextlib.suppress(ProcessGone):
            blocked[tid] = waits.status(tid).blocked
    json_file.write(_file(migration), blocked)


def put_back(migration: Migration, members: Iterable[Member]) -> int:
    """Give threads their mask back that have CRIU's; return how many. Safe to repeat."""
    noted = json_file.read(_file(migration)) or {}
    # CRIU itself has done so where it came to its end.
    if migration.facts.get("dump_exit") == 0:
        return 0
    before = {int(tid): mask for tid, mask in noted.items()}
    return sum(_put_back(tid, before.get(tid, OF_CRIU)) for tid in _threads(members))


def _put_back(tid: int, mask: int) -> bool:
    with contextlib.suppress(ProcessGone, OSError):
        if mask != OF_CRIU and waits.status(tid).blocked == OF_CRIU:
            with ptrace.seized(tid, interrupt=True):
                ptrace.set_signal_mask(tid, mask)
            return True
    return False


def _threads(members: Iterable[Member]) -> Iterator[int]:
    for member in members:
        yield from waits.threads(member.identity.pid)


def _file(migration: Migration) -> Path:
    return migration.directory.work / "masks.json"
