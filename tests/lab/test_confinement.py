"""No process is less confined after its arrival, and no thread has lost what is its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.host import Host, within
from tests.lab.site import Site, left_behind

pytestmark = pytest.mark.lab

PROGRAM = "/opt/sojourn/src/tests/lab/restrain.py"
LOG = "/shared/restrain.log"
FILE = "/shared/restrain.begin"

#: A program in a control group of its own, which is removed when it has ended.
GROUPED = "/opt/sojourn/src/tests/lab/grouped.py"
GROUP = "/sys/fs/cgroup/sojourn-confinement"

#: By what the program does: the code with which it is refused, and what its attempt comes to.
KINDS = {
    "landlock_files": ("LANDLOCK", "Permission denied"),
    "landlock_network": ("LANDLOCK", "Permission denied"),
    "landlock_thread": ("LANDLOCK", "Permission denied"),
    "denies_executable": ("RESTRAINT", "Permission denied"),
    "intercepts": ("RESTRAINT", "done"),
    "sealed": ("MEMORY_PROTECTION", "Operation not permitted"),
    "keyed": ("MEMORY_PROTECTION", "done"),
    "secret": ("MEMORY_PROTECTION", "done"),
    "own_descriptors": ("THREAD_APART", "Bad file descriptor"),
    "own_directory": ("THREAD_APART", "/usr"),
    "own_network": ("THREAD_APART", "1"),
    "own_children": ("NAMESPACE", "done"),
}


@pytest.fixture(autouse=True)
def nothing_left(alpha: Host, beta: Host) -> Iterator[None]:
    """Begin without the program's files, and end it on both hosts after each test."""
    alpha.run(["rm", "-f", FILE, LOG])
    yield
    for host in (alpha, beta):
        host.run(["pkill", "-KILL", "-f", PROGRAM], check=False)


@pytest.fixture
def grouped(alpha: Host) -> Iterator[Host]:
    """Return alpha, where control groups can be seen; removes the one of the test."""
    alpha.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"])
    yield alpha
    alpha.run(["pkill", "-KILL", "-f", GROUPED], check=False)
    removed = ["sh", "-c", f"[ ! -d {GROUP} ] || rmdir {GROUP}"]
    assert within(10, lambda: alpha.run(removed, check=False).returncode == 0)
    alpha.run(["umount", "/sys/fs/cgroup"])


def started(alpha: Host, what: str, *more: str) -> int:
    """Start the program, and return its PID when it is restrained, or waits to be."""
    pid = alpha.launch(["python3", PROGRAM, LOG, what, *more])
    assert within(10, lambda: last_line(alpha))
    if last_line(alpha).startswith("cannot"):
        pytest.skip(last_line(alpha))
    return pid


def last_line(alpha: Host) -> str:
    """Return the last line that the program has written, wherever it runs."""
    lines = alpha.run(["cat", LOG], check=False).stdout.splitlines()
    refused = [line for line in lines if line.startswith("cannot")]
    return [*lines, *refused][-1] if lines else ""


@pytest.mark.parametrize("what", KINDS)
def test_what_would_be_lost(site: Site, alpha: Host, what: str) -> None:
    """It is refused before the freeze, names the process, and runs on as it was."""
    code, outcome = KINDS[what]
    pid = started(alpha, what)
    ended = site.migrate(pid, "alpha", "beta")
    failure = ended.answer["failure"]
    assert (ended.code, failure["code"]) == (10, code), failure
    assert f"rocess {pid} (" in failure["message"]
    assert failure["hint"]
    assert last_line(alpha) == f"alpha {outcome}"


def test_the_way_out(site: Site, alpha: Host) -> None:
    """The same program without its restraint moves."""
    pid = started(alpha, "nothing")
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    assert within(10, lambda: last_line(alpha) == "beta done")


def test_what_criu_carries(site: Site, alpha: Host) -> None:
    """A thread's own credentials, and its own filter of seccomp, arrive with it."""
    pid = started(alpha, "filtered_thread")
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    assert within(10, lambda: last_line(alpha) == "beta Permission denied")
    statuses = site.host("beta").run(["sh", "-c", f"cat /proc/{pid}/task/*/status"]).stdout
    for key, of_process, of_thread in (
        ("Uid", "0", "65534"),
        ("NoNewPrivs", "0", "1"),
        ("Seccomp", "0", "2"),
    ):
        lines = [line.split()[1] for line in statuses.splitlines() if line.startswith(f"{key}:")]
        assert lines == [of_process, of_thread], key


@pytest.mark.parametrize("what", ["landlock_files", "denies_executable", "sealed"])
def test_a_program_that_confines_itself_after_the_check(site: Site, alpha: Host, what: str) -> None:
    """It is looked at once more when it is frozen: it is resumed, and is as confined as it was."""
    code, outcome = KINDS[what]
    pid = started(alpha, what, FILE)

    def confine() -> None:
        alpha.run(["touch", FILE])
        assert within(10, lambda: last_line(alpha) == f"alpha {outcome}")

    ended = site.migrate_meanwhile(pid, (alpha, "dump.begin"), confine)
    assert (ended.code, ended.answer["failure"]["code"]) == (11, code), ended.answer["failure"]
    alpha.run(["sh", "-c", f": > {LOG}"])
    assert within(10, lambda: last_line(alpha) == f"alpha {outcome}")
    assert left_behind(alpha) == left_behind(site.host("beta")) == []


def test_the_check_disturbs_nobody(site: Site, alpha: Host) -> None:
    """A program in a system call that any stop would end is checked, and stays in it."""
    program = (
        "import select, sys\npoll = select.epoll()\n"
        "import ctypes\nevents = ctypes.create_string_buffer(64)\n"
        "libc = ctypes.CDLL(None)\n"
        f"print('waits', file=open('{LOG}', 'w'), flush=True)\n"
        "libc.epoll_wait(poll.fileno(), events, 1, -1)\n"
        f"print('woke', file=open('{LOG}', 'w'), flush=True)\n"
        f"# {PROGRAM}\n"
    )
    pid = alpha.launch(["python3", "-c", program])
    assert within(10, lambda: last_line(alpha) == "waits")
    for _ in range(3):
        site.sojourn("check", str(pid), "--from", "alpha", "--to", "beta")
    assert last_line(alpha) == "waits"


@pytest.mark.parametrize(("what", "code"), [("filtered", 10), ("plain", 0)])
def test_a_control_group(site: Site, grouped: Host, what: str, code: int) -> None:
    """Its programs stay behind, for the tree joins the group of the destination's worker.

    So one with programs that deny is refused; to start the program outside of it helps.
    """
    name = GROUP.rpartition("/")[2]
    pid = grouped.launch(["python3", GROUPED, name, what], log=LOG)
    assert within(10, lambda: "ready" in grouped.run(["cat", LOG], check=False).stdout)
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == code, ended.answer["failure"]
    if code:
        assert ended.answer["failure"]["code"] == "CONTROL_GROUP"
        assert f"the control group {GROUP} deny" in ended.answer["failure"]["message"]
    else:
        beta = site.host("beta")
        assert name not in beta.run(["cat", f"/proc/{pid}/cgroup"]).stdout
        beta.run(["kill", "-KILL", str(pid)])
