"""System calls that the freeze ends: the program does not notice, on either host."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from lab.host import Host, within
from tests.lab.site import AWAY, CRIU, Site, rolled_back

pytestmark = pytest.mark.lab

WAITING = "/opt/sojourn/src/tests/lab/waiting.py"
LOG = "/shared/waiting.log"
FOLLOWED = "/shared/followed.log"

#: How long each wait takes, how long it has waited when it is frozen, and how much later than asked
#: for, or than it was thawed, it may end, in seconds: less than any wait would if it began anew. It
#: does end later where a hypervisor keeps the CPU, since the kernel's clock of a thread leaves that
#: out (``sojourn.system.waits``).
WAIT_S, BEFORE_S, LATE_S = 14, 10, 8

#: Waits that end when their time is over, with what they return then.
ON_TIME = {
    "poll": (0, 0),
    "epoll_wait": (0, 0),
    "nanosleep": (0, 0),
    "nanosleep with remainder": (0, 0),
    "clock_nanosleep": (0, 0),
    "clock_nanosleep with remainder": (0, 0),
    "futex until": (-1, 110),
    "sleep": (0, 0),
}

#: Those that the kernel itself restarts when a program is stopped and continued.
RESTARTED = ("poll", "nanosleep", "nanosleep with remainder", "clock_nanosleep", "futex until")

PROGRAM_32 = "/shared/sleeper-32"

#: Follows a file through a pipe: a shell and two processes below it, all of which must live on.
FOLLOWS = f"tail -n 0 -F {FOLLOWED} | while read line; do echo $line >> {LOG}; done"


@pytest.fixture
def waiting(alpha: Host, beta: Host) -> Iterator[tuple[int, float]]:
    """Start all waits at once; return the program's PID, and since when they wait."""
    began = time.monotonic()
    pid = _launch(alpha, ["python3", WAITING, str(WAIT_S)])
    time.sleep(BEFORE_S)
    yield pid, began
    _end(pid, alpha, beta)


@pytest.fixture
def following(alpha: Host, beta: Host) -> Iterator[int]:
    """Start a shell that follows a file; return its PID when it does."""
    alpha.run(["sh", "-c", f"echo begin > {FOLLOWED}"])
    pid = _launch(alpha, ["sh", "-c", FOLLOWS])
    assert within(10, lambda: _follows(alpha, "first"))
    yield pid
    _end(pid, alpha, beta)


def _launch(host: Host, command: list[str]) -> int:
    host.run(["sh", "-c", f": > {LOG}"])
    return host.launch(command, log=LOG)


def _end(pid: int, *hosts: Host) -> None:
    for host in hosts:
        host.run(["pkill", "-KILL", "-s", str(pid)], check=False)


def _follows(host: Host, line: str) -> bool:
    """Add a line to the file, and return whether it comes through the pipe."""
    host.run(["sh", "-c", f"echo {line} >> {FOLLOWED}"])
    return within(2, lambda: line in host.run(["cat", LOG]).stdout.split())


def _ended_waits(host: Host) -> dict[str, dict[str, Any]]:
    lines = host.run(["cat", LOG]).stdout.splitlines()
    return {wait["kind"]: wait for wait in map(json.loads, lines)}


def _latest(began: float) -> float:
    """Return how long a wait may have lasted that is running again: not as if it began anew."""
    return max(WAIT_S, time.monotonic() - began) + LATE_S


def _assert_on_time(host: Host, latest: float, kinds: Iterable[str] = ON_TIME) -> None:
    """Check that no wait saw an error, and that each ended when its time was over."""
    assert within(WAIT_S + LATE_S, lambda: set(kinds) <= set(_ended_waits(host)))
    waits = _ended_waits(host)
    found = {kind: (waits[kind]["result"], waits[kind]["error"]) for kind in kinds}
    assert found == {kind: ON_TIME[kind] for kind in kinds}
    for kind in kinds:
        assert WAIT_S - 0.01 <= waits[kind]["seconds"] < latest, waits[kind]
    # These end early, as woken, or later: but never with EINTR.
    assert not any(wait["error"] == 4 for wait in waits.values()), waits
    # What waits without limit still does.
    assert not any("without limit" in kind or kind == "sigwaitinfo" for kind in waits), waits


def test_waits_end_in_time_after_a_migration(
    site: Site, waiting: tuple[int, float], beta: Host
) -> None:
    """No call returns EINTR; each ends when its time is over, not before and not twice as late."""
    pid, began = waiting
    assert site.migrate(pid, "alpha", "beta").code == 0
    _assert_on_time(beta, _latest(began))


def test_waits_end_in_time_after_two_migrations(
    site: Site, waiting: tuple[int, float], alpha: Host
) -> None:
    """What was put in place of the first call is itself interrupted, and goes on."""
    pid, began = waiting
    assert site.migrate(pid, "alpha", "beta").code == 0
    assert site.migrate(pid, "beta", "alpha").code == 0
    _assert_on_time(alpha, _latest(began))


def test_waits_end_in_time_after_a_rollback(
    site: Site, waiting: tuple[int, float], alpha: Host
) -> None:
    """The original goes on as the copy would have."""
    pid, began = waiting
    assert rolled_back(site, pid).code == 11
    _assert_on_time(alpha, _latest(began))


def test_waits_end_in_time_after_a_dump_that_failed(site: Site, alpha: Host, beta: Host) -> None:
    """CRIU lets the tree run by itself, and the kernel restarts what it restarts after a stop."""
    began = time.monotonic()
    pid = _launch(alpha, ["python3", WAITING, str(WAIT_S), *RESTARTED])
    time.sleep(BEFORE_S)
    with _page_server_that_dies(beta):
        ended = site.migrate(pid, "alpha", "beta")
    assert (ended.code, ended.answer["failure"]["step"]) == (11, "dump"), ended.answer
    _assert_on_time(alpha, _latest(began), RESTARTED)
    _end(pid, alpha)


@contextlib.contextmanager
def _page_server_that_dies(host: Host) -> Iterator[None]:
    """Have a script stand in for CRIU, whose page server ends once the dump is at work."""
    script = f'#!/bin/sh\n[ $1 = page-server ] && sleep 0.3 && exit 1\nexec {AWAY} "$@"\n'
    host.run(["mv", CRIU, AWAY])
    try:
        host.run(["sh", "-c", f"cat > {CRIU}; chmod +x {CRIU}"], stdin=script)
        yield
    finally:
        host.run(["mv", AWAY, CRIU])


@pytest.mark.parametrize("arrives", [True, False])
def test_waits_that_were_stopped_before(site: Site, alpha: Host, beta: Host, arrives: bool) -> None:
    """A call that was restarted has no number of its own any more: it is known all the same."""
    began = time.monotonic()
    pid = _launch(alpha, ["python3", WAITING, str(WAIT_S), *RESTARTED])
    time.sleep(1)
    alpha.run(["kill", "-STOP", str(pid)])
    alpha.run(["kill", "-CONT", str(pid)])
    time.sleep(BEFORE_S - 1)
    ended = site.migrate(pid, "alpha", "beta") if arrives else rolled_back(site, pid)
    assert ended.code == (0 if arrives else 11)
    _assert_on_time(beta if arrives else alpha, _latest(began), RESTARTED)
    _end(pid, alpha, beta)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_32_bit_program_sleeps_on(site: Site, alpha: Host, beta: Host, arrives: bool) -> None:
    """It has registers, numbers and an instruction of its own."""
    alpha.run(["python3", WAITING, str(WAIT_S), "i386", PROGRAM_32])
    began, clock = time.monotonic(), time.time()
    pid = _launch(alpha, [PROGRAM_32])
    time.sleep(BEFORE_S)
    ended = site.migrate(pid, "alpha", "beta") if arrives else rolled_back(site, pid)
    latest = _latest(began)
    assert ended.code == (0 if arrives else 11)
    assert within(2 * WAIT_S, lambda: "on time" in alpha.run(["cat", LOG]).stdout)
    # By when it was written: a busy machine may show it seconds later.
    written = float(alpha.run(["stat", "-c", "%.Y", LOG]).stdout)
    assert WAIT_S <= written - clock < latest
    _end(pid, alpha, beta)


def test_a_signal_that_comes_in_the_freeze(site: Site, alpha: Host, beta: Host) -> None:
    """Its handler ends the call after a rollback: the program may wait for just that."""
    pid = _launch(alpha, ["python3", WAITING, "0", "handler"])
    time.sleep(1)
    signal = ["kill", "-USR2", str(pid)]
    assert rolled_back(site, pid, act=lambda: alpha.run(signal)).code == 11
    assert within(5, lambda: "poll without limit" in _ended_waits(alpha))
    assert _ended_waits(alpha)["poll without limit"]["error"] == 4
    _end(pid, alpha, beta)


def test_a_pipeline_follows_its_file(site: Site, following: int, alpha: Host, beta: Host) -> None:
    """``tail -F`` waits in poll without limit, and ends at EINTR: it lives on, there and back."""
    assert site.migrate(following, "alpha", "beta").code == 0
    assert _follows(beta, "second")
    assert site.migrate(following, "beta", "alpha").code == 0
    assert _follows(alpha, "third")


def test_a_pipeline_follows_its_file_after_a_rollback(
    site: Site, following: int, alpha: Host
) -> None:
    """It lives on where it was, too."""
    assert rolled_back(site, following).code == 11
    assert _follows(alpha, "second")
