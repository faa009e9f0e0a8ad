"""A program whose every page is checked, and the pager that puts its memory into place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lab.host import Host, within
from tests.faults.fault import PAGERS_AWAY

SCRAMBLING = "/opt/sojourn/src/tests/lab/scrambling.py"
LOG = "/shared/scrambling.log"
MB = 48

#: Instants of a pager: before it fills, half-way, and before it reports.
INSTANTS = ("fill.begin", "fill.middle", "fill.end")


@contextlib.contextmanager
def started(alpha: Host, beta: Host) -> Iterator[int]:
    """Start the program on alpha; yield its PID, and end it wherever it is then."""
    alpha.run(["sh", "-c", f": > {LOG}"])
    found = alpha.launch(["/usr/bin/python3", "-W", "ignore", SCRAMBLING, str(MB)], log=LOG)
    assert within(20, lambda: "ready" in alpha.run(["cat", LOG]).stdout), alpha.run(["cat", LOG])
    yield found
    for host in (alpha, beta):
        host.run(["kill", "-KILL", str(found)], check=False)


def look(host: Host, pid: int) -> list[int]:
    """Have the program compare every page: how many are right, and wrong; see scrambling.py."""
    host.run(["sh", "-c", f": > {LOG}"])
    host.run(["kill", "-USR1", str(pid)])
    assert within(20, lambda: host.run(["cat", LOG]).stdout.endswith("\n"))
    return [int(number) for number in host.run(["cat", LOG]).stdout.split()]


def is_damaged(host: Host, pid: int) -> bool:
    """Whether a page is wrong, or was when it was read, or the program has ended by it."""
    if host.run(["kill", "-USR1", str(pid)], check=False).returncode:
        return True
    words = host.run(["cat", LOG]).stdout.split()
    return len(words) >= 4 and any(int(word) for word in words[1:3])


def assert_right(host: Host, pid: int) -> int:
    """Check every page of the program; return how many rounds it has done."""
    right, wrong, damaged, rounds = look(host, pid)
    assert (right, wrong, damaged) == (MB * 256, 0, 0)
    return rounds


def pair(host: Host) -> list[int]:
    """Return the PIDs of pager and guard on a host, without those that have ended."""
    named = host.run(["sh", "-c", "cat /run/sojourn/*/work/pager.pids 2>/dev/null"], check=False)
    ps = ["ps", "-o", "pid=,stat=,args=", "-p", named.stdout.strip().replace("\n", " ") or "0"]
    lines = host.run([*ps], check=False).stdout.splitlines()
    # Those of earlier migrations have ended, and others may have their PIDs.
    found = [line.split() for line in lines if "sojourn.transfer.pager" in line]
    return [int(pid) for pid, state, *_ in found if state[0] != "Z"]


def kill(host: Host, which: int) -> None:
    """Kill the pager (0) or its guard (1)."""
    host.run(["kill", "-KILL", str(pair(host)[which])])


def kill_both(host: Host) -> None:
    """Kill them both."""
    assert len(pair(host)) == 2
    host.run(["sh", "-c", PAGERS_AWAY])
