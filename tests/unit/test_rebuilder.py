"""The rebuilder as a program, and what it answers when CRIU asks.

CRIU itself is played by a few lines that ask what it asks (``sojourn.criu.rpc``): a real one needs
root and the images of a tree. Every restore in the lab is by the real one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sojourn.criu.commands import Restore
from sojourn.model import Phase, Plan, Role
from sojourn.state.journal import Journal
from sojourn.system import process
from sojourn.system.run import Child
from sojourn.transfer import pair, program, rebuilder
from tests.conftest import eventually
from tests.images import image, message

ID = "0123abcd-4567"

#: Asks at these moments, ends with 1 where the answer is no, and with 0 after the last one.
AS_CRIU = """#!{python}
import socket, sys, time
sys.path.insert(0, {checkout!r})
from tests.images import message
line = socket.socket(fileno=int(sys.argv[-1]))
assert line.recv(2**16).startswith(message((1, 2)))
for moment in {moments!r}:
    if moment == "hang":
        time.sleep(60)
    line.send(message((1, 6), (2, 1), (5, message((1, moment.encode()), (2, {root})))))
    if line.recv(2**16) != message((1, 6), (3, 1)):
        sys.exit(1)
line.send(message((1, 2), (2, 1), (3, message((1, {root})))))
"""

MOMENTS = ("pre-restore", "post-restore", "pre-resume", "post-resume")


@dataclass
class Place:
    """A work directory with a journal, and a rebuilder for a tree that is this very process."""

    work: Path
    journal: Journal
    child: Child | None = None

    def start(
        self, *moments: str, awaited: str = "", phase: Phase = Phase.RESTORING, torn: bool = False
    ) -> None:
        """Start a rebuilder for a tree of one process, which may have had a child."""
        self.journal.open(ID, Role.DESTINATION, Plan(5, "alpha", "beta"), phase)
        root, group, session = os.getpid(), os.getpgid(0), os.getsid(0)
        rows = [(root, 0, group, session), *([(2**22, root, group, session)] if torn else [])]
        entries = [message(*enumerate(row, 1)) for row in rows]
        (self.work / "pstree.img").write_bytes(image(*entries))
        checkout = str(Path(__file__).parents[2])
        criu = self.work / "criu"
        criu.write_text(
            AS_CRIU.format(python=sys.executable, checkout=checkout, moments=moments, root=root)
        )
        criu.chmod(0o700)
        where = str(self.work)
        restore = Restore(
            where, where, auto_dedup=False, lazy=False, shell_job=False, file_locks=False
        )
        waited_for = str(self.work / awaited) if awaited else ""
        assignment = rebuilder.Assignment(
            ID, str(self.journal.path), str(criu), restore, waited_for
        )
        self.child = rebuilder.start(assignment, self.work / "rebuilder.log")
        assert program.first_report(self.child) == {"waits": True}, self.log

    def heard(self) -> str:
        """Begin, and return what the step hears until the end."""
        with self.called() as connection:
            return connection.makefile().read()

    def called(self) -> socket.socket:
        """Begin."""
        connection = rebuilder.call(self.work)
        assert connection is not None, self.log
        return connection

    def criu(self) -> int:
        """Return CRIU's PID, whose environment is not there at once."""
        assert self.child is not None
        rebuilders = {self.child.pid}
        return eventually(
            lambda: {one.pid for one in process.carrying([rebuilder.VARIABLE], ID)} - rebuilders
        ).pop()

    @property
    def log(self) -> str:
        """What the rebuilder has logged."""
        return (self.work / "rebuilder.log").read_text()

    @property
    def phase(self) -> Phase:
        """The phase in the journal."""
        entry = self.journal.entry(ID, Role.DESTINATION)
        assert entry is not None
        return entry.phase


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Return a place whose rebuilder, if there is one, is ended."""
    place = Place(tmp_path, Journal(tmp_path / "journal.db"))
    yield place
    if place.child:
        place.child.kill()
    eventually(lambda: process.carrying([rebuilder.VARIABLE], ID) == [])


def test_a_restore(place: Place) -> None:
    """Both phases are written, and the time of the file marks the end of the freeze."""
    place.start(*MOMENTS)
    assert not (place.work / rebuilder.RESUMED).exists()
    assert place.heard() == "0\n"
    assert place.phase is Phase.RESTORED
    assert (place.work / rebuilder.RESUMED).exists()


@pytest.mark.parametrize("phase", [Phase.RESERVED, Phase.REFUSED, Phase.RESTORED])
def test_the_journal_does_not_permit_it(place: Place, phase: Phase) -> None:
    """CRIU hears no, and nothing is written but its exit code."""
    place.start(*MOMENTS, phase=phase)
    assert place.heard() == "1\n"
    assert place.phase is phase
    assert not (place.work / rebuilder.VETO).exists()


def test_a_torn_tree(place: Place) -> None:
    """How it differs is written down, and the journal stays as it is."""
    place.start(*MOMENTS, torn=True)
    assert place.heard() == "1\n"
    veto = (place.work / rebuilder.VETO).read_text()
    assert veto == f"TREE_TORN process {2**22} is not below process {os.getpid()} any more"
    assert place.phase is Phase.RESTORING


@pytest.mark.parametrize("pids", ["", "4194304 4194304"])
def test_memory_that_would_never_come(place: Place, pids: str) -> None:
    """Nothing runs without a pager and its guard."""
    (place.work / pair.PAIR).write_text(pids)
    (place.work / "pager.ready").touch()
    place.start(*MOMENTS, awaited="pager.ready")
    assert place.heard() == "1\n"
    assert (place.work / rebuilder.VETO).read_text() == "PAGER_ENDED"
    assert place.phase is Phase.RESTORING


def test_it_waits_for_the_memory(place: Place) -> None:
    """While one of the two is alive there is time, until both are and the file is there."""
    pair.name(place.work, os.getpid(), 4194304)
    place.start(*MOMENTS, awaited="pager.filled")
    with place.called() as connection:
        time.sleep(0.3)
        pair.name(place.work, os.getpid(), os.getppid())
        time.sleep(0.2)
        assert place.phase is Phase.RESTORING
        (place.work / "pager.filled").touch()
        assert connection.makefile().read() == "0\n"


def test_what_cannot_be_written(place: Place) -> None:
    """Before the commit that is a no; the log has the reason."""
    place.start(*MOMENTS)
    with contextlib.closing(sqlite3.connect(place.journal.path)) as damaged:
        damaged.execute("DROP TABLE migration")
    assert place.heard() == "1\n"
    assert "no such table" in place.log
    assert not (place.work / rebuilder.RESUMED).exists()


def test_it_is_at_work_once_it_was_called(place: Place) -> None:
    """The socket is there for as long as it waits, and for one caller."""
    place.start("pre-restore", "hang")
    assert (place.work / rebuilder.SOCKET).exists()
    eventually(lambda: len(process.carrying([rebuilder.VARIABLE], ID)) == 2)
    with place.called():
        eventually(lambda: not (place.work / rebuilder.SOCKET).exists())
        assert rebuilder.call(place.work) is None


def test_it_outlives_the_caller(place: Place) -> None:
    """The worker may die meanwhile."""
    place.start(*MOMENTS)
    place.called().close()
    eventually(lambda: place.phase is Phase.RESTORED)


@pytest.mark.parametrize("victim", ["rebuilder", "CRIU"])
def test_a_death_while_it_waits(place: Place, victim: str) -> None:
    """Neither waits alone, and whoever calls finds nobody."""
    place.start(*MOMENTS)
    assert place.child is not None
    os.kill(place.child.pid if victim == "rebuilder" else place.criu(), signal.SIGKILL)
    place.child.wait(10)
    eventually(lambda: process.carrying([rebuilder.VARIABLE], ID) == [])
    assert rebuilder.call(place.work) is None


def test_criu_is_killed_in_a_restore(place: Place) -> None:
    """The step hears by which signal."""
    place.start("pre-restore", "hang")
    with place.called() as connection:
        eventually(lambda: not (place.work / rebuilder.SOCKET).exists())
        os.kill(place.criu(), signal.SIGKILL)
        assert connection.makefile().read() == "-9\n"


def test_without_criu(place: Place) -> None:
    """Its failure is what the step reports, before the freeze."""
    where = str(place.work)
    restore = Restore(where, where, auto_dedup=False, lazy=False, shell_job=False, file_locks=False)
    assignment = rebuilder.Assignment(ID, str(place.journal.path), "/no/such/criu", restore)
    place.child = rebuilder.start(assignment, place.work / "rebuilder.log")
    report = program.first_report(place.child)
    assert (report["code"], "/no/such/criu" in report["message"]) == ("COMMAND_MISSING", True)


def test_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a socket, or with one that nobody listens at, there is no connection."""
    assert rebuilder.call(tmp_path) is None
    monkeypatch.chdir(tmp_path)  # who listens stays there
    listener = program.listen(tmp_path, rebuilder.SOCKET)
    listener.close()
    assert (tmp_path / rebuilder.SOCKET).exists()
    assert rebuilder.call(tmp_path) is None
