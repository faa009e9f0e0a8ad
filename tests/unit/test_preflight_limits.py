"""Limits: what a real process uses, and what another kernel would not permit."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sojourn.preflight.limits import Limits, exceeded, here, needed
from sojourn.preflight.scan import scan
from sojourn.system import process
from tests.conftest import eventually

#: A program with a large pipe, and with as many files allowed as its argument.
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
    """Return the limits that a test program needs."""
    program = [
        sys.executable,
        "-c",
        PROGRAM,
        str(resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1),
    ]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield needed(scan(child.pid))
        child.kill()


def test_what_a_process_uses(limits: Limits) -> None:
    """Its hard limit of open files counts, and its largest pipe."""
    assert limits.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1
    assert limits.pipe_bytes == 262144
    assert limits.capability <= here().capability


def test_this_host_permits_what_it_has_permitted(limits: Limits) -> None:
    """A migration back to the same kernel is always possible."""
    assert list(exceeded(limits, here())) == []


@pytest.mark.parametrize(
    ("field", "given", "code", "sentence"),
    [
        ("open_files", 1023, "LIMIT", "may open 1024 files; this host permits at most 1023"),
        ("pipe_bytes", 65536, "LIMIT", "A pipe has 262144 bytes; this host permits at most 65536"),
        ("capability", 37, "CAPABILITY", "has capability 39; this host's kernel has none above 37"),
    ],
)
def test_what_a_kernel_does_not_permit(field: str, given: int, code: str, sentence: str) -> None:
    """Every limit has its own finding, and one that is just high enough has none."""
    wanted = Limits(open_files=1024, pipe_bytes=262144, capability=39)
    narrow = Limits(**{**vars(wanted), field: given})
    (finding,) = exceeded(wanted, narrow)
    assert (finding.code, finding.stops) == (code, True)
    assert sentence in finding.sentence
    assert list(exceeded(wanted, wanted)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give capabilities away")
def test_a_single_capability() -> None:
    """A process with some capabilities needs the highest of them; one with all needs none."""
    keep = [
        "setpriv",
        "--bounding-set=-all,+net_bind_service",
        "sh",
        "-c",
        "echo ready; exec sleep 60",
    ]
    with subprocess.Popen(keep, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert needed(scan(child.pid)).capability == 10  # CAP_NET_BIND_SERVICE
        child.kill()


#: Prints what is found of a process by root without CAP_SYS_RESOURCE, as containers have it.
ASK = (
    "import sys; from sojourn.preflight import limits, scan; "
    "print(*(one.code for one in limits.unreadable(scan.scan(int(sys.argv[1])))))"
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(("user", "codes"), [("0", []), ("65534", ["PRIVILEGES"])])
def test_limits_that_root_may_not_read(user: str, codes: list[str]) -> None:
    """Without the capability, another user's process is refused, and one of root's is not."""
    as_user = ["setpriv", "--reuid", user, "--clear-groups", "sleep", "60"]
    with subprocess.Popen(as_user) as program:
        eventually(lambda: process.stat(program.pid).name == "sleep")
        confined = ["setpriv", "--bounding-set=-sys_resource", sys.executable, "-c", ASK]
        found = subprocess.check_output([*confined, str(program.pid)], text=True)
        program.kill()
    assert found.split() == codes
