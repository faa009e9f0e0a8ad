"""What a tree writes is the same file on both hosts, or has the same content, or it stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.host import Host, within
from tests.lab.site import Site, left_behind
from tests.lab.test_check import check, stopping

pytestmark = pytest.mark.lab

#: Where the hosts have files of their own, and where they see the same.
OWN, SHARED = "/srv/written", "/shared/written"

#: Opens a file for reading and writing, as a database does, and keeps it.
KEEPS = "import sys, time; file = open(sys.argv[1], 'r+b'); time.sleep(10000)"

#: Writes rows into an SQLite database, and keeps it open; for each line of a FIFO one row more.
SQLITE = """
import os, sqlite3
file = sqlite3.connect("/srv/rows.db", isolation_level=None)
file.execute("PRAGMA journal_mode=WAL")
file.execute("CREATE TABLE rows (text)")
file.execute("INSERT INTO rows VALUES ('row')")
orders = os.fdopen(os.open("/srv/orders", os.O_RDWR))
for line in orders:
    file.execute("INSERT INTO rows VALUES (?)", [line])
    open("/shared/rows", "w").write(str(len(file.execute("SELECT * FROM rows").fetchall())))
"""

#: The SQLite database, and a data directory like PostgreSQL's.
ROWS, DATA = "/srv/rows.db", "/srv/data"


@pytest.fixture(autouse=True)
def nothing_left(alpha: Host, beta: Host) -> Iterator[None]:
    """End the program on both hosts after each test."""
    yield
    for host in (alpha, beta):
        host.run(["pkill", "-KILL", "-f", "file = "], check=False)
        host.run(["sh", "-c", f"rm -rf {ROWS}* {DATA} /srv/orders /srv/read /shared/rows"])


def write(host: Host, path: str, text: str) -> None:
    """Write a file of a host."""
    host.run(["sh", "-c", f"printf %s '{text}' > {path}; chmod 644 {path}"])


def keep(host: Host, path: str) -> int:
    """Start a program that keeps a file open for writing."""
    pid = host.launch(["/usr/bin/python3", "-c", KEEPS, path])
    links = ["sh", "-c", f"readlink /proc/{pid}/fd/*"]
    assert within(10, lambda: path in host.run(links, check=False).stdout)
    return pid


def test_a_copy_of_other_content_is_no_copy(site: Site, alpha: Host, beta: Host) -> None:
    """Equal size and mode do not let a program write into a file that it has never read."""
    write(alpha, OWN, "page 1 of the database")
    write(beta, OWN, "page 0 of the database")
    pid = keep(alpha, OWN)
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 11, ended.answer
    assert ended.answer["failure"]["code"] == "FILE_DIFFERS"
    assert (
        f"{OWN}, which process {pid} writes, has another content than on alpha"
        in (ended.answer["failure"]["message"])
    )
    assert "storage that both hosts see" in ended.answer["failure"]["hint"]
    assert alpha.run(["ps", "-o", "stat=", "-p", str(pid)]).stdout[0] == "S"
    assert left_behind(alpha) == left_behind(beta) == []


def test_a_copy_of_the_same_content_will_do(site: Site, alpha: Host, beta: Host) -> None:
    """It was compared while nobody could write."""
    for host in (alpha, beta):
        write(host, OWN, "page 2 of the database")
    pid = keep(alpha, OWN)
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    assert beta.run(["readlink", f"/proc/{pid}/fd/3"]).stdout.strip() == OWN


def test_a_file_that_both_hosts_see(site: Site, alpha: Host, beta: Host) -> None:
    """It is the same object however large it is; this is the hint followed."""
    alpha.run(["sh", "-c", f"truncate -s 100M {SHARED}"])
    pid = keep(alpha, SHARED)
    ended = site.migrate(pid, "alpha", "beta")
    beta.run(["rm", SHARED])
    assert ended.code == 0, ended.answer["failure"]


def test_a_large_file_is_refused_before_the_freeze(site: Site, alpha: Host, beta: Host) -> None:
    """A tree is not frozen for as long as it takes to read a whole database."""
    for host in (alpha, beta):
        host.run(["sh", "-c", f"truncate -s 100M {OWN}; chmod 644 {OWN}"])
    ((code, _, sentence),) = stopping(check(site, keep(alpha, OWN)))
    assert code == "FILE_DIFFERS"
    assert f"The program writes {OWN}, and this host has another file of that name" in sentence


def test_a_file_of_somebody_else(site: Site, alpha: Host, beta: Host) -> None:
    """A file that only another user may read is not opened for the program."""
    for host, owner in ((alpha, "33:33"), (beta, "34:34")):
        write(host, OWN, "secret")
        host.run(["sh", "-c", f"chown {owner} {OWN}; chmod 600 {OWN}"])
    ((code, _, sentence),) = stopping(check(site, keep(alpha, OWN)))
    assert (code, sentence) == (
        "FILE_DIFFERS",
        f"{OWN} belongs to 34:34 (user:group) here and to 33:33 on the source.",
    )


def copy(source: Host, destination: Host, *paths: str) -> None:
    """Copy files as they are, with owners and times."""
    archive = "/shared/copied.tar"
    source.run(["tar", "-cPf", archive, *paths])
    destination.run(["tar", "-xPf", archive])
    source.run(["rm", archive])


def test_a_database_that_was_copied_while_it_ran(site: Site, alpha: Host, beta: Host) -> None:
    """Rows that were committed since are not lost, and none is if there are no such rows."""
    for host in (alpha, beta):
        host.run(["mkfifo", "/srv/orders"])
    pid = alpha.launch(["/usr/bin/python3", "-c", SQLITE])
    order(alpha, "2")
    # SQLite keeps one write of each page in the log: to replace it by another leaves its size.
    copy(alpha, beta, ROWS, f"{ROWS}-wal", f"{ROWS}-shm")
    beta.run(["sh", "-c", f"printf x | dd of={ROWS}-wal bs=1 seek=4200 conv=notrunc status=none"])
    assert stopping(check(site, pid, "--file-locks")) == []
    ended = site.migrate(pid, "alpha", "beta", "--file-locks")
    assert (ended.code, ended.answer["failure"]["code"]) == (11, "FILE_DIFFERS")
    assert f"{ROWS}-wal, which process" in ended.answer["failure"]["message"]
    order(alpha, "3")
    copy(alpha, beta, ROWS, f"{ROWS}-wal", f"{ROWS}-shm")
    ended = site.migrate(pid, "alpha", "beta", "--file-locks")
    assert ended.code == 0, ended.answer["failure"]
    order(beta, "4")


def order(host: Host, rows: str) -> None:
    """Have the program write a row, after which it has so many."""
    assert within(10, lambda: host.run(["test", "-p", "/srv/orders"], check=False).returncode == 0)
    host.run(["timeout", "10", "sh", "-c", "echo row > /srv/orders"])
    assert within(10, lambda: host.run(["cat", "/shared/rows"], check=False).stdout == rows)


def test_files_of_equal_size(site: Site, alpha: Host, beta: Host) -> None:
    """Neither a closed file of a data directory nor one that is only read may be another."""
    alpha.run(["sh", "-c", f"mkdir {DATA}; cd {DATA}; echo 17 > PG_VERSION; echo open > relation"])
    alpha.run(["sh", "-c", f"echo closed > {DATA}/other; echo version 1 > /srv/read"])
    copy(alpha, beta, DATA, "/srv/read")
    keeps = "import sys, time; file = open(sys.argv[1], 'r+b'), open('/srv/read'); time.sleep(1000)"
    pid = alpha.launch(["/usr/bin/python3", "-c", keeps, f"{DATA}/relation"])
    opened = ["sh", "-c", f"readlink /proc/{pid}/fd/*"]
    assert within(10, lambda: "/srv/read" in alpha.run(opened, check=False).stdout)
    assert stopping(check(site, pid)) == []
    # The database goes on, and the other host has another version of what is read.
    alpha.run(["sh", "-c", f"echo newer! > {DATA}/other"])
    beta.run(["sh", "-c", "echo version 2 > /srv/read"])
    ((code, _, sentence),) = stopping(check(site, pid))
    assert (code, sentence) == (
        "FILE_DIFFERS",
        "/srv/read has another content here than on the source.",
    )
    copy(alpha, beta, "/srv/read")
    ended = site.migrate(pid, "alpha", "beta")
    assert (ended.code, ended.answer["failure"]["code"]) == (11, "FILE_DIFFERS")
    assert f"{DATA}/other, which process" in ended.answer["failure"]["message"]
    copy(alpha, beta, DATA)
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
