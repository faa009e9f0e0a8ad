"""Files on a tmpfs that only the tree uses are memory: they move with it, or stay with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.host import Host, within
from tests.lab.site import Site, left_behind
from tests.lab.test_check import check, stopping

pytestmark = pytest.mark.lab

#: Shares memory with its child by a file in /dev/shm, keeps a file and a FIFO in a directory of its
#: own below /tmp, and a large file that has no name any more. For each line of the FIFO it writes
#: down what it finds in all of them.
USES = """
import mmap, os
os.umask(0o027)
shared = os.open("/dev/shm/carried", os.O_RDWR | os.O_CREAT)
os.ftruncate(shared, 40 << 20)
memory = mmap.mmap(shared, 40 << 20)
os.close(shared)
memory[30 << 20:(30 << 20) + 6] = b"shared"
os.mkdir("/tmp/carried")
notes = open("/tmp/carried/notes", "w+")
notes.write("noted"), notes.flush()
os.setxattr("/tmp/carried/notes", "user.origin", b"alpha")
os.utime("/tmp/carried/notes", (1000000000, 1000000000))
ghost = open("/dev/shm/ghost", "w+b", 0)
os.unlink("/dev/shm/ghost")
ghost.write(b"g" * (3 << 20))
os.mkfifo("/tmp/carried/orders")
if os.fork() == 0:
    while True:
        if memory[0] == 1:
            memory[1] = 2
        os.sched_yield()
orders = os.fdopen(os.open("/tmp/carried/orders", os.O_RDWR))
for line in orders:
    notes.seek(0), ghost.seek(0)
    memory[0] = 1
    while memory[1] != 2:
        os.sched_yield()
    found = [memory[30 << 20:(30 << 20) + 6].decode(), notes.read(), str(len(ghost.read()))]
    memory[0] = memory[1] = 0
    open("/shared/carried.out", "a").write(" ".join(found) + "\\n")
"""

JOURNAL = "/var/lib/sojourn/journal.db"

NAMES = ("/dev/shm/carried", "/tmp/carried/notes", "/tmp/carried/orders")


@pytest.fixture(autouse=True)
def nothing_left(alpha: Host, beta: Host) -> Iterator[None]:
    """End the program on both hosts after each test, and remove its files."""
    yield
    for host in (alpha, beta):
        host.run(["pkill", "-KILL", "-f", "/shared/carried.out"], check=False)
        host.run(["sh", "-c", "rm -rf /dev/shm/carried* /tmp/carried* /shared/carried.out"])


def use(host: Host) -> int:
    """Start the program, and return when it has done all once."""
    host.run(["rm", "-f", "/shared/carried.out"])
    pid = host.launch(["/usr/bin/python3", "-c", USES])
    assert answers(host) == "shared noted 3145728", lines(host)
    return pid


def answers(host: Host) -> str:
    """Have the program look at its memory, and return what it finds."""
    before = lines(host)
    host.run(["sh", "-c", "until test -p /tmp/carried/orders; do sleep 0.05; done"])
    host.run(["timeout", "10", "sh", "-c", "echo look > /tmp/carried/orders"])
    assert within(10, lambda: len(lines(host)) > len(before))
    return lines(host)[-1]


def lines(host: Host) -> list[str]:
    """Return what the program has written down."""
    return host.run(["cat", "/shared/carried.out"], check=False).stdout.splitlines()


def held(host: Host) -> list[str]:
    """Return what the host's journal holds."""
    code = "import sqlite3; print(*sqlite3.connect(sys.argv[1]).execute('SELECT * FROM held'))"
    return host.run(["/usr/bin/python3", "-c", f"import sys; {code}", JOURNAL]).stdout.split()


def names(host: Host) -> list[str]:
    """Return what there is in the host's memory of the program, temporary names too."""
    found = host.run(
        ["find", "/tmp", "/dev/shm", "-name", "*sojourn-*", "-o", "-path", "*carried*"]
    )
    return sorted(found.stdout.split())


def test_files_in_memory_move(site: Site, alpha: Host, beta: Host) -> None:
    """With content, holes, owner, times and attributes; and back again."""
    pid = use(alpha)
    alpha.run(["chown", "33:34", "/tmp/carried/notes"])
    note = next(each for each in check(site, pid)["findings"] if each["code"] == "MEMORY_FILE")
    assert note["verdict"] == "ok", note
    assert "/dev/shm/carried" in note["sentence"]
    assert "will be carried along" in note["sentence"]
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer
    assert answers(beta) == "shared noted 3145728"
    assert names(beta) == ["/dev/shm/carried", "/tmp/carried", *NAMES[1:]]
    looks = ["stat", "-c", "%a %u:%g %Y", "/tmp/carried/notes"]
    assert beta.run(looks).stdout.split() == ["640", "33:34", "1000000000"]
    assert int(beta.run(["stat", "-c", "%b", "/dev/shm/carried"]).stdout) < 1000
    # What the tree wrote has left the source with it.
    assert names(alpha) == []
    back = site.migrate(pid, "beta", "alpha")
    assert back.code == 0, back.answer
    assert answers(alpha) == "shared noted 3145728"
    assert left_behind(alpha) == left_behind(beta) == []


def test_a_rollback_leaves_nothing(site: Site, alpha: Host, beta: Host) -> None:
    """What was made on the destination is removed, and the original keeps its own."""
    pid = use(alpha)

    def end_criu() -> None:
        assert names(beta) == ["/dev/shm/carried", "/tmp/carried", *NAMES[1:]]
        beta.run(["pkill", "-KILL", "-x", "criu"])

    ended = site.migrate_meanwhile(pid, (beta, "accepted.before"), end_criu)
    assert ended.code == 11, ended.answer
    assert names(beta) == []
    assert answers(alpha) == "shared noted 3145728"
    assert left_behind(alpha) == left_behind(beta) == []


def test_a_second_attempt(site: Site, alpha: Host, beta: Host) -> None:
    """A worker that dies when all is made leaves it to the reconciler, which makes it anew."""
    pid = use(alpha)
    site.configure(beta, reconcile_s=0.5, stall_s=1)

    def kill_the_worker() -> None:
        assert names(beta) == ["/dev/shm/carried", "/tmp/carried", *NAMES[1:]]
        beta.run(["sh", "-c", "kill -KILL $(pgrep -f '[s]ojourn worker')"])

    site.migrate_meanwhile(pid, (beta, "restoring.before"), kill_the_worker)
    assert within(60, lambda: names(alpha) == [] and held(beta) == []), held(beta)
    assert answers(beta) == "shared noted 3145728"
    assert names(beta) == ["/dev/shm/carried", "/tmp/carried", *NAMES[1:]]


def test_a_path_that_is_taken(site: Site, alpha: Host, beta: Host) -> None:
    """Stale bytes of equal size are never taken for the program's, nor replaced."""
    pid = use(alpha)
    beta.run(["sh", "-c", "truncate -s 40M /dev/shm/carried; chmod 750 /dev/shm/carried"])
    alpha.run(["touch", "/tmp/carried/closed"])
    (taken, rest) = stopping(check(site, pid))
    assert taken[0] == rest[0] == "MEMORY_FILE"
    assert taken[2].startswith("/dev/shm/carried is a file in memory that the tree writes, and an")
    assert rest[2].startswith("/tmp/carried is in the memory of alpha only, and cannot be carried")
    assert rest[2].endswith("it has more in it than the tree uses, like closed.")
    # The hints are followed.
    beta.run(
        ["sh", "-c", "rm /dev/shm/carried; mkdir -m 750 /tmp/carried; touch /tmp/carried/closed"]
    )
    alpha.run(["rm", "/tmp/carried/closed"])
    with_reader = alpha.launch(["sh", "-c", "exec sleep 1000 < /dev/shm/carried"])
    ((_, _, shared),) = stopping(check(site, pid))
    assert f"process {with_reader} (sleep) uses it too" in shared
    alpha.run(["kill", str(with_reader)])
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer
    assert answers(beta) == "shared noted 3145728"
