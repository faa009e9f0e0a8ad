"""What a tree shares with processes outside is found, named, and can be moved as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.host import Host, within
from tests.lab.site import Site, left_behind
from tests.lab.test_check import check, codes, stopping

pytestmark = pytest.mark.lab

SHARE = "/opt/sojourn/src/tests/lab/share.py"


@pytest.fixture(autouse=True)
def nothing_left(alpha: Host, beta: Host) -> Iterator[None]:
    """End the program on both hosts after each test."""
    yield
    for host in (alpha, beta):
        host.run(["pkill", "-KILL", "-f", SHARE], check=False)


@dataclass(frozen=True)
class Pair:
    """A parent and its child, which share something."""

    parent: int
    child: int


def share(host: Host, what: str) -> Pair:
    """Start a pair of processes that share something."""
    log = f"/shared/share-{what}.log"
    host.run(["rm", "-f", log])
    parent = host.launch(["/usr/bin/python3", SHARE, what], log=log)
    assert within(20, lambda: "ready" in host.run(["cat", log]).stdout), host.run(["cat", log])
    return Pair(parent, int(host.run(["cat", log]).stdout.split()[1]))


#: What is shared, the code of its finding, and a part of its sentence. The parent's PID follows.
SHARED = [
    ("pipe", "HELD_OUTSIDE", "A pipe (descriptor"),
    ("fifo", "HELD_OUTSIDE", "The FIFO /shared/"),
    ("memory", "HELD_OUTSIDE", "Shared memory (mapped by process"),
    ("memfd", "HELD_OUTSIDE", "A memfd (descriptor"),
    ("memfd_mapped", "HELD_OUTSIDE", "A memfd (mapped by process"),
    ("file_mapped", "HELD_OUTSIDE", "/shared/"),
    ("eventfd", "HELD_OUTSIDE", "An eventfd (descriptor"),
    ("epoll", "HELD_OUTSIDE", "An epoll instance (descriptor"),
    ("timerfd", "HELD_OUTSIDE", "A timerfd (descriptor"),
    ("signalfd", "HELD_OUTSIDE", "A signalfd (descriptor"),
    ("listener", "HELD_OUTSIDE", "A socket (descriptor"),
    ("unix", "UNIX_PEER_OUTSIDE", "A Unix socket (descriptor"),
    ("connection", "HELD_OUTSIDE", "tcp 127.0.0.1:"),
    ("connection6", "HELD_OUTSIDE", "tcp 127.0.0.1:"),
]


@pytest.mark.parametrize(("what", "code", "sentence"), SHARED, ids=[one[0] for one in SHARED])
def test_half_of_something_does_not_move(
    site: Site, alpha: Host, beta: Host, what: str, code: str, sentence: str
) -> None:
    """The finding names the thing and who shares it; with --closure both move, and run."""
    pair = share(alpha, what)
    options = ("--tcp-established",) if what.startswith("connection") else ()
    report = check(site, pair.child, "--shell-job", *options)
    found = [text for kind, _, text in stopping(report) if kind == code]
    assert any(text.lower().startswith(sentence.lower()) for text in found), stopping(report)
    assert any(f"process {pair.parent} (python3), outside the tree" in text for text in found)
    assert report["closure"]["one"] == pair.parent
    ended = site.migrate(pair.child, "alpha", "beta", "--closure", *options)
    assert ended.code == 0, ended.answer
    assert ended.answer["pid"] == pair.parent
    for pid in (pair.parent, pair.child):
        assert beta.run(["test", "-d", f"/proc/{pid}"], check=False).returncode == 0
    assert left_behind(alpha) == []


def test_the_parent_alone_shares_nothing(site: Site, alpha: Host) -> None:
    """A tree that has both ends is not refused for them."""
    assert codes(check(site, share(alpha, "pipe").parent)) == set()


@pytest.mark.parametrize(("redirection", "is_shared"), [(">", True), (">>", False)])
def test_two_writers_of_one_file(
    site: Site, alpha: Host, redirection: str, is_shared: bool
) -> None:
    """Each would overwrite the other; not if both append, and not the shell, which only waits."""
    commands = "{ setsid sleep 993 & setsid sleep 992; }"
    shell = alpha.launch(["sh", "-c", f"{commands} {redirection} /shared/written; true"])
    assert within(10, lambda: alpha.run(["pgrep", "-fx", "sleep 992"], check=False).stdout != "")
    one, other = (int(alpha.run(["pgrep", "-fx", f"sleep {n}"]).stdout) for n in (993, 992))
    found = [text for code, _, text in stopping(check(site, one)) if code == "HELD_OUTSIDE"]
    alpha.run(["kill", "-9", str(shell), str(one), str(other)])
    shared = (
        "The position in /shared/written (descriptor 1 of process {}) is shared with process {}"
    )
    expected = [f"{shared.format(one, other)} (sleep), outside the tree."] if is_shared else []
    assert found == expected


def test_a_pipeline_of_two_trees(site: Site, alpha: Host) -> None:
    """Both trees are named; none of the host holds both, so --closure is refused."""
    script = "rm -f /run/two; mkfifo /run/two; (setsid sleep 996 <>/run/two &)"
    pid = alpha.launch(["sh", "-c", f"{script}; exec sleep 999 <>/run/two"])
    assert within(10, lambda: "sleep" in alpha.run(["cat", f"/proc/{pid}/comm"]).stdout)
    report = check(site, pid)
    assert "HELD_OUTSIDE" in codes(report)
    assert report["closure"]["one"] is None
    assert len(report["closure"]["trees"]) == 2
    ended = site.sojourn("migrate", str(pid), "--from", "alpha", "--to", "beta", "--closure")
    assert ended.returncode == 10
    assert "no single tree has all that process" in ended.stderr
    alpha.run(["kill", *(str(tree["pid"]) for tree in report["closure"]["trees"])])


def test_a_namespace_with_others_inside(site: Site, alpha: Host) -> None:
    """A process that has entered a namespace of the tree is named; one that waits for it is not."""
    waiting = alpha.launch(["unshare", "--ipc", "--fork", "--pid", "setsid", "sleep", "995"])
    children = ["pgrep", "-P", str(waiting)]
    assert within(10, lambda: alpha.run(children, check=False).returncode == 0)
    pid = int(alpha.run(children).stdout)
    assert codes(check(site, pid)) == set()
    other = alpha.launch(["nsenter", "--ipc", "--target", str(pid), "sleep", "994"])
    assert within(10, lambda: "sleep" in alpha.run(["cat", f"/proc/{other}/comm"]).stdout)
    found = stopping(check(site, pid))
    alpha.run(["kill", "-9", str(pid), str(other)])
    assert [code for code, _, _ in found] == ["HELD_OUTSIDE"]
    assert f"namespace (of process {pid}) is shared with process {other} (sleep)" in found[0][2]


def test_a_fifo_in_use_there(site: Site, alpha: Host, beta: Host) -> None:
    """A process of the destination that has a FIFO of the tree open is named."""
    path = "/shared/fifo-in-use"
    alpha.run(["sh", "-c", f"rm -f {path}; mkfifo {path}"])
    here = alpha.launch(["sh", "-c", f"exec sleep 998 <>{path}"])
    there = beta.launch(["sh", "-c", f"exec sleep 997 <>{path}"])
    assert within(10, lambda: "sleep" in beta.run(["cat", f"/proc/{there}/comm"]).stdout)
    found = stopping(check(site, here))
    alpha.run(["kill", str(here)])
    beta.run(["kill", str(there)])
    assert [code for code, _, _ in found] == ["FIFO_IN_USE"]
    assert f"Process {there} (sleep 997) has the FIFO {path} open" in found[0][2]
