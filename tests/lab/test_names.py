"""Names of Unix sockets: nobody loses theirs, and a rollback leaves each as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.host import Host, within
from tests.lab.site import Ended, Site, left_behind
from tests.lab.test_check import check, stopping

pytestmark = pytest.mark.lab

HOLDING = "/opt/sojourn/src/tests/lab/holding.py"

#: Where each host has files of its own, and where both see the same.
OWN, SHARED = "/run/named.socket", "/shared/named.socket"

#: Asks the server at a path who it is.
ASK = "import socket, sys; s = socket.socket(1); s.connect(sys.argv[1]); print(s.recv(99).decode())"


@pytest.fixture(autouse=True)
def nothing_left(alpha: Host, beta: Host) -> Iterator[None]:
    """End the programs and remove their names after each test."""
    yield
    for host in (alpha, beta):
        host.run(["pkill", "-KILL", "-f", HOLDING], check=False)
        host.run(["rm", "-rf", OWN, SHARED])


def hold(host: Host, *what: str) -> int:
    """Start a program that has a name; return its PID."""
    log = f"/shared/holding-{host.name}.log"
    host.run(["sh", "-c", f": > {log}"])
    pid = host.launch(["/usr/bin/python3", HOLDING, *what], log=log)
    assert within(10, lambda: "ready" in host.run(["cat", log]).stdout), host.run(["cat", log])
    return pid


def answer(host: Host, path: str) -> str:
    """Return who answers at a path: its PID and host, or the error."""
    asked = host.run(["/usr/bin/python3", "-c", ASK, path], check=False)
    return asked.stdout.strip() or asked.stderr.strip().splitlines()[-1]


def hidden(host: Host, directory: str) -> list[str]:
    """Return what a migration may not leave beside a name."""
    return host.run(
        ["sh", "-c", f"ls -A {directory} | grep ^.sojourn-"], check=False
    ).stdout.split()


def failed_after_binding(site: Site, pid: int) -> Ended:
    """Migrate, and let CRIU die when it has bound every name and asks whether the tree may run."""
    beta = site.host("beta")
    dies = lambda: beta.run(["pkill", "-KILL", "-x", "criu"])  # noqa: E731
    return site.migrate_meanwhile(pid, (beta, "accepted.before"), dies)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("stream", OWN), ("stream", OWN)),
        (("relative", "/run", "named.socket"), ("relative", "/run", "named.socket")),
        (("datagram", OWN), ("stream", OWN)),
    ],
    ids=["stream", "relative", "datagram"],
)
def test_a_name_that_another_program_has(
    site: Site, alpha: Host, beta: Host, ours: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    """It is refused, naming who has it; when that has ended, its dead file is replaced."""
    pid, other = hold(alpha, *ours), hold(beta, *theirs)
    ((code, _, sentence),) = stopping(check(site, pid))
    assert code == "SOCKET_TAKEN"
    assert sentence == f"The name {OWN} of a Unix socket is taken by process {other} (python3)."
    ended = site.migrate(pid, "alpha", "beta")
    assert (ended.code, ended.answer["failure"]["code"]) == (10, "SOCKET_TAKEN")
    assert answer(beta, OWN) == f"{other} beta"
    beta.run(["kill", "-KILL", str(other)])
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    if ours[0] != "datagram":
        assert answer(beta, OWN) == f"{pid} alpha"


@pytest.mark.parametrize("how", ["renamed", "linked"])
def test_a_name_that_was_given_later(site: Site, alpha: Host, beta: Host, how: str) -> None:
    """Programs bind another name first; the socket is restored at the name that it has now."""
    pid = hold(alpha, how, OWN)
    assert answer(alpha, OWN) == f"{pid} alpha"
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    assert answer(beta, OWN) == f"{pid} alpha"
    assert beta.run(["ls", f"{OWN}.new"], check=False).returncode != 0


def test_a_file_that_is_no_socket(site: Site, alpha: Host, beta: Host) -> None:
    """It is somebody's, whatever it is."""
    pid = hold(alpha, "stream", OWN)
    beta.run(["touch", OWN])
    ((code, _, sentence),) = stopping(check(site, pid))
    assert (code, sentence) == (
        "SOCKET_TAKEN",
        f"The tree has a Unix socket named {OWN}, where this host has another kind of file.",
    )


def test_a_name_that_is_taken_after_the_check(site: Site, alpha: Host, beta: Host) -> None:
    """It is looked at once more before anything is restored: both programs keep theirs."""
    pid = hold(alpha, "stream", OWN)
    others: list[int] = []
    take = lambda: others.append(hold(beta, "stream", OWN))  # noqa: E731
    ended = site.migrate_meanwhile(pid, (alpha, "copy_images.begin"), take)
    assert (ended.code, ended.answer["failure"]["code"]) == (11, "SOCKET_TAKEN")
    assert answer(alpha, OWN) == f"{pid} alpha"
    assert answer(beta, OWN) == f"{others[0]} beta"
    assert left_behind(alpha) == left_behind(beta) == []


def test_a_name_of_somebody_else_on_shared_storage(site: Site, alpha: Host) -> None:
    """A program whose name was taken over by its successor does not take that one's with it."""
    pid, successor = hold(alpha, "stream", SHARED), hold(alpha, "stream", SHARED)
    ((code, _, sentence),) = stopping(check(site, pid))
    assert code == "SOCKET_TAKEN"
    assert sentence.startswith(f"The name {SHARED} of a Unix socket may belong to a program of")
    assert answer(alpha, SHARED) == f"{successor} alpha"
    alpha.run(["kill", "-KILL", str(successor)])
    alpha.run(["rm", SHARED])
    assert stopping(check(site, pid)) == []


def test_a_rollback_leaves_the_name(site: Site, alpha: Host, beta: Host) -> None:
    """The restore had taken it away on storage that both hosts see."""
    pid = hold(alpha, "stream", SHARED)
    inode = ["stat", "-c", "%i", SHARED]
    before = alpha.run(inode).stdout
    ended = failed_after_binding(site, pid)
    assert ended.code == 11, ended.answer
    assert answer(alpha, SHARED) == f"{pid} alpha"
    assert alpha.run(inode).stdout == before
    assert hidden(alpha, "/shared") == []
    assert left_behind(alpha) == left_behind(beta) == []
    ended = site.migrate(pid, "alpha", "beta")
    assert ended.code == 0, ended.answer["failure"]
    assert answer(beta, SHARED) == f"{pid} alpha"
    assert hidden(alpha, "/shared") == []


def test_a_rollback_without_the_worker(site: Site, alpha: Host, beta: Host) -> None:
    """A worker that dies when it has kept the name: its reconciler gives it back."""
    pid = hold(alpha, "stream", SHARED)
    kept: list[str] = []

    def die() -> None:
        kept.extend(hidden(alpha, "/shared"))
        alpha.run(["sh", "-c", "kill -KILL $(pgrep -f '[s]ojourn worker')"], check=False)
        alpha.run(["rm", SHARED])  # as a restore would

    site.migrate_meanwhile(pid, (alpha, "frozen.before"), die)
    assert len(kept) == 1
    assert within(60, lambda: answer(alpha, SHARED) == f"{pid} alpha")
    assert hidden(alpha, "/shared") == []
    assert within(60, lambda: site.answers(alpha))


def test_nothing_is_left_of_a_failed_restore(site: Site, alpha: Host, beta: Host) -> None:
    """Neither a socket file on the destination, nor anything on the source."""
    pid = hold(alpha, "stream", OWN)
    assert failed_after_binding(site, pid).code == 11
    assert beta.run(["ls", OWN], check=False).returncode != 0
    assert answer(alpha, OWN) == f"{pid} alpha"
    assert hidden(alpha, "/run") == []
