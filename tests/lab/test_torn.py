"""A tree arrives in its shape, with its parents, groups and sessions, or does not leave."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.host import Host, within
from tests.lab.site import Site, left_behind

pytestmark = pytest.mark.lab

PROGRAM = "/opt/sojourn/src/tests/lab/adopt.py"
LOG = "/shared/adopt.log"
FILE = "/shared/adopt.begin"

#: In a PID namespace the program is the first process.
IN_NAMESPACE = ("unshare", "--fork", "--pid", "setsid")


@pytest.fixture(autouse=True)
def nothing_left(alpha: Host, beta: Host) -> Iterator[None]:
    """Begin without the program's files, and end it on both hosts after each test."""
    alpha.run(["rm", "-f", FILE, LOG])
    yield
    for host in (alpha, beta):
        host.run(["pkill", "-KILL", "-f", PROGRAM], check=False)


def started(alpha: Host, shape: str, *more: str, inside: tuple[str, ...] = ()) -> int:
    """Start the program, and return the PID of its root when all of its tree is there."""
    pid = alpha.launch([*inside, "python3", PROGRAM, shape, *more], log=LOG)
    if not more:
        assert within(10, lambda: "ready" in alpha.run(["cat", LOG]).stdout)
    return int(alpha.run(["pgrep", "-P", str(pid)]).stdout) if inside else pid


def shape_of(host: Host, root: int) -> list[tuple[int, int, int, int]]:
    """Return PID, parent, group and session of a process and its descendants."""
    listed = host.run(["ps", "-eo", "pid=,ppid=,pgid=,sid="]).stdout.splitlines()
    rows = [tuple(map(int, line.split())) for line in listed]
    found = [row for row in rows if row[0] == root]
    for pid, *_ in found:  # grows while it is walked
        found += [row for row in rows if row[1] == pid]
    return sorted((pid, 0 if pid == root else parent, *rest) for pid, parent, *rest in found)  # type: ignore[misc]


TORN = ["daemon", "ended_daemon", "deep_daemon", "orphan_of_a_leader"]
WHOLE = ["orphan_in_session", "leading_orphan", "born_before", "group_without_leader"]


@pytest.mark.parametrize("shape", TORN)
def test_a_tree_that_would_be_torn(site: Site, alpha: Host, shape: str) -> None:
    """It is refused before the freeze, with the process, who adopted it, and what helps."""
    root = started(alpha, shape)
    before = shape_of(alpha, root)
    ended = site.migrate(root, "alpha", "beta")
    assert (ended.code, ended.answer["failure"]["code"]) == (10, "TREE_TORN")
    assert "was adopted by process" in ended.answer["failure"]["message"]
    assert "in the foreground" in ended.answer["failure"]["hint"]
    assert shape_of(alpha, root) == before


@pytest.mark.parametrize("shape", WHOLE)
def test_a_tree_that_stays_whole(site: Site, alpha: Host, shape: str) -> None:
    """Other orphans are adopted too, and come back to the process that adopted them."""
    root = started(alpha, shape)
    before = shape_of(alpha, root)
    assert len(before) > 1
    ended = site.migrate(root, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    assert shape_of(site.host("beta"), root) == before


@pytest.mark.parametrize("shape", ["daemon", "ended_daemon", "orphan_of_a_leader"])
def test_in_a_pid_namespace(site: Site, alpha: Host, shape: str) -> None:
    """That is the way out: its first process is given orphans back by the kernel itself."""
    root = started(alpha, shape, inside=IN_NAMESPACE)
    count = len(shape_of(alpha, root))
    ended = site.migrate(root, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    beta = site.host("beta")
    arrived = int(beta.run(["pgrep", "-f", PROGRAM, "--oldest"]).stdout)
    assert len(shape_of(beta, arrived)) == count


def test_a_tree_that_changes_after_the_check(site: Site, alpha: Host) -> None:
    """The images of the frozen tree show it, so it is resumed before anything is restored."""
    root = started(alpha, "daemon", FILE)

    def start_daemon() -> None:
        alpha.run(["touch", FILE])
        assert within(10, lambda: "ready" in alpha.run(["cat", LOG]).stdout)

    ended = site.migrate_meanwhile(root, (alpha, "dump.begin"), start_daemon)
    assert (ended.code, ended.answer["failure"]["code"]) == (11, "TREE_TORN")
    assert len(shape_of(alpha, root)) == 2
    # It looks for its file all the time: asleep or running, but not stopped.
    assert alpha.run(["ps", "-o", "stat=", "-p", str(root)]).stdout[0] in "RS"
    assert left_behind(alpha) == left_behind(site.host("beta")) == []


#: Gives the last process of the newest images the group of the root, which it has not.
ANOTHER_GROUP = """
import struct
from pathlib import Path
from sojourn.criu.protobuf import entries, replaced
from sojourn.criu.pstree import GROUP, read
every = Path("/run/sojourn").glob("*/images/pstree.img")
newest = max(every, key=lambda path: path.stat().st_mtime)
image = newest.read_bytes()
parts = [image[begin:end] for begin, end in entries(image)]
parts[-1] = replaced(parts[-1], GROUP, read(newest.parent)[0].group)
newest.write_bytes(image[:8] + b"".join(struct.pack("<I", len(part)) + part for part in parts))
"""


def test_a_tree_that_was_rebuilt_otherwise(site: Site, alpha: Host) -> None:
    """It is compared before the commit: none of its instructions has run, and the source resumes.

    CRIU is made to build another tree: none is known that it builds wrong by itself, after the
    checks.
    """
    program = "import os, time; os.fork() or os.setpgid(0, 0); time.sleep(1000)"
    root, beta = alpha.launch(["python3", "-c", program]), site.host("beta")
    assert within(10, lambda: len({group for _, _, group, _ in shape_of(alpha, root)}) == 2)
    before = shape_of(alpha, root)
    ended = site.migrate_meanwhile(
        root,
        (beta, "rebuild.begin"),
        lambda: beta.run(["/opt/sojourn/bin/python3", "-c", ANOTHER_GROUP]),
    )
    assert (ended.code, ended.answer["failure"]["code"]) == (11, "TREE_TORN"), ended.answer
    assert "in another shape on beta" in ended.answer["failure"]["message"]
    assert "has parent" in ended.answer["failure"]["message"]
    assert shape_of(alpha, root) == before
    assert shape_of(beta, root) == []
    assert left_behind(alpha) == left_behind(beta) == []
    alpha.run(["sh", "-c", f"kill -KILL -- -{root} $(pgrep -P {root})"], check=False)


def test_ordinary_supervisors(site: Site, alpha: Host) -> None:
    """Tini adopts orphans as well; what runs under it in its session, or leads one, moves."""
    inside = [
        "tini",
        "-s",
        "--",
        "sh",
        "-c",
        "setsid python3 -c 'import time\nwhile 1: time.sleep(1)' & wait",
    ]
    root = alpha.launch(inside)
    assert within(10, lambda: len(shape_of(alpha, root)) == 3)
    before = shape_of(alpha, root)
    checked = site.sojourn("check", str(root), "--from", "alpha", "--to", "beta", "--json")
    assert json.loads(checked.stdout)["migratable"], checked.stdout
    ended = site.migrate(root, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    assert shape_of(site.host("beta"), root) == before
