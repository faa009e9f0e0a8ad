"""A crowd of strangers at the page channel of a migration: it goes well all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from lab import workload
from lab.host import Host
from tests.lab.site import Site, left_behind, runs_on
from tests.lab.test_migrate import end

pytestmark = pytest.mark.lab

#: Takes an address: calls every port at which Sojourn's programs listen there, again and again, and
#: keeps 300 connections open; some are silent, some send garbage, some a byte now and then.
CROWD = """
import collections, contextlib, re, socket, subprocess, sys
kept = collections.deque(maxlen=300)
def ports():
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True).stdout
    return [int(port) for port in re.findall(re.escape(sys.argv[1]) + r":(\\d+) ", listening)]
while True:
    for port in ports():
        for _ in range(50):
            with contextlib.suppress(OSError):
                stranger = socket.create_connection((sys.argv[1], port), timeout=1)
                if len(kept) == kept.maxlen:
                    kept[0].close()
                kept.append(stranger)
                if len(kept) % 3:
                    stranger.sendall(b"sojourn2" + b"x" * (len(kept) % 200))
    for stranger in kept:
        with contextlib.suppress(OSError):
            stranger.send(b".")
"""


@contextlib.contextmanager
def crowd(host: Host) -> Iterator[None]:
    """Let strangers call at a host."""
    address = host.run(["hostname", "-I"]).stdout.split()[0]
    pid = host.launch(["python3", "-c", CROWD, address])
    try:
        yield
    finally:
        host.run(["kill", "-KILL", str(pid)])


@pytest.mark.parametrize("mode", ["stop-and-copy", "post-copy"])
def test_a_crowd_at_both_hosts(site: Site, alpha: Host, beta: Host, mode: str) -> None:
    """Neither the memory nor the images, nor what comes later, wait for strangers to hang up."""
    counter = workload.start(alpha, "counter", mb=32)
    try:
        with crowd(alpha), crowd(beta):
            ended = site.migrate(counter.pid, "alpha", "beta", "--mode", mode)
        assert ended.code == 0, ended.answer
        assert runs_on(beta, counter)
        assert not runs_on(alpha, counter)
        counter.wait_for_beats()
        assert (left_behind(alpha), left_behind(beta)) == ([], [])
    finally:
        end(counter, alpha, beta)
