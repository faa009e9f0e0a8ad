"""Limits: what a real process uses of its kernel's, and what another kernel would not give."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sojourn.preflight.limits import Limits, exceeded, here, needed
from sojourn.preflight.scan import scan

#: A program with a wide pipe, and with as many files allowed as it is told.
PROGRAM = """
import fcntl, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))
reading, writing = os.pipe()
fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 262144)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def limits() -> Iterator[Limits]:
    """Return the limits that a program of ours needs."""
    program = [sys.executable, "-c", PROGRAM, str(resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield needed(scan(child.pid))
        child.kill()


def test_what_a_process_uses(limits: Limits) -> None:
    """Its limit of open files is the hard one, and its widest pipe counts."""
    assert limits.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1
    assert limits.pipe_bytes == 262144
    assert limits.capability <= here().capability


def test_this_host_gives_what_it_has_given(limits: Limits) -> None:
    """Nothing speaks against going back to the same kernel."""
    assert list(exceeded(limits, here())) == []


@pytest.mark.parametrize(
    ("field", "given", "code", "sentence"),
    [
        ("open_files", 1023, "LIMIT", "may open 1024 files, and this host gives 1023"),
        ("pipe_bytes", 65536, "LIMIT", "A pipe has 262144 bytes, and this host gives 65536"),
        ("capability", 37, "CAPABILITY", "has capability 39, and this kernel knows none above 37"),
    ],
)
def test_what_a_kernel_does_not_give(field: str, given: int, code: str, sentence: str) -> None:
    """Each limit has its own finding, and one that is just wide enough has none."""
    wanted = Limits(open_files=1024, pipe_bytes=262144, capability=39)
    narrow = Limits(**{**vars(wanted), field: given})
    (finding,) = exceeded(wanted, narrow)
    assert (finding.code, finding.stops) == (code, True)
    assert sentence in finding.sentence
    assert list(exceeded(wanted, wanted)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give capabilities away")
def test_a_single_capability() -> None:
    """A process that keeps some capabilities needs a kernel that knows the highest of them; one with all needs none."""
    keep = ["setpriv", "--bounding-set=-all,+net_bind_service", "sh", "-c", "echo ready; exec sleep 60"]
    with subprocess.Popen(keep, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert needed(scan(child.pid)).capability == 10  # CAP_NET_BIND_SERVICE
        child.kill()
