"""The holder as a program, on the loopback; CRIU's use of its socket is tested in the lab."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sojourn.errors import ChannelFailed
from sojourn.model import Identity, Json, Plan, Role
from sojourn.state.entry import Entry
from sojourn.state.journal import Journal
from sojourn.system import process
from sojourn.system.run import Child
from sojourn.transfer import channel
from sojourn.transfer.holder import Assignment, start
from sojourn.transfer.image_directory import ImageDirectory

PLAN = Plan(4242, "alpha", "beta")
ID = "0123abcd-4567"
HOST = "127.0.0.1"
SECRET = channel.secret_for("the cluster's key", ID)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Give each test a journal of its own."""
    return Journal(tmp_path / "state" / "journal.db")


@pytest.fixture
def entry(journal: Journal) -> Entry:
    """Open a migration of which this host is the destination."""
    return journal.open(ID, Role.DESTINATION, PLAN)


@pytest.fixture
def place(tmp_path: Path) -> ImageDirectory:
    """Create the directories of a reservation, without a tmpfs."""
    directory = ImageDirectory(tmp_path / "run" / ID)
    directory.images.mkdir(parents=True)
    directory.work.mkdir()
    return directory


@pytest.fixture
def assignment(journal: Journal, place: ImageDirectory) -> Assignment:
    """Assign only the small images, which need no CRIU."""
    return Assignment(
        migration=ID,
        role=Role.DESTINATION,
        journal=str(journal.path),
        place=str(place.place),
        criu="/no/such/criu",
        secret=SECRET.hex(),
        certificates="",
        peer="alpha",
        address=HOST,
        port=0,
        purposes=("images",),
        deadline_s=10,
    )


@contextlib.contextmanager
def _started(assignment: Assignment) -> Iterator[Child]:
    """Run a holder, and end it."""
    child = start(assignment, Path(assignment.place) / "work" / "holder.out")
    try:
        with child.stdout:
            yield child
    finally:
        child.kill()


def _report(child: Child) -> Json:
    """Read the holder's next report; an empty line is its end."""
    report: Json = json.loads(child.stdout.readline())
    return report


def _at_work() -> list[Identity]:
    return process.carrying([process.MIGRATION_VARIABLE], ID)


def _log(assignment: Assignment) -> str:
    return (Path(assignment.place) / "work" / "holder.out").read_text()


def test_the_deadline(assignment: Assignment, journal: Journal, entry: Entry) -> None:
    """Without a caller it ends, and reports why in one line of JSON and one of its log."""
    assignment = replace(assignment, deadline_s=0.5)
    with _started(assignment) as child:
        assert set(_report(child)) == {"port"}
        assert [who.pid for who in _at_work()] == [child.pid]
        assert _report(child) == {
            "code": "CHANNEL_FAILED",
            "message": "The source did not connect in time.",
            "hint": "",
        }
        assert child.wait(5) == 1
        assert child.stdout.read() == ""
    assert _at_work() == []
    assert _log(assignment) == "The source did not connect in time.\n"


def test_an_unknown_migration(assignment: Assignment, journal: Journal) -> None:
    """A holder of an unknown migration reports so in one sentence, and does not listen."""
    with _started(assignment) as child:
        assert _report(child)["message"] == f"This host's journal has no migration {ID}."
        assert child.wait(5) == 1
        assert child.stdout.read() == ""
    assert journal.entry(ID, Role.DESTINATION) is None
    assert _log(assignment) == f"This host's journal has no migration {ID}.\n"


def test_the_other_role(assignment: Assignment, journal: Journal) -> None:
    """The source's row of the same migration is not the destination's."""
    journal.open(ID, Role.SOURCE, PLAN)
    with _started(assignment) as child:
        assert _report(child)["message"] == f"This host's journal has no migration {ID}."
        assert child.wait(5) == 1


def test_small_images_arrive(
    assignment: Assignment, journal: Journal, entry: Entry, place: ImageDirectory, tmp_path: Path
) -> None:
    """A stranger is rejected, the source's images are written and recorded; then it ends."""
    sent = tmp_path / "core-4242.img"
    sent.write_bytes(os.urandom(5000))
    with _started(assignment) as child:
        port = _report(child)["port"]
        with pytest.raises(ChannelFailed):
            channel.connect(HOST, port, channel.secret_for("another key", ID), "images")
        with channel.connect(HOST, port, SECRET, "images") as source:
            assert channel.send_files(source, [sent], 5) == {"core-4242.img": 5000}
        assert child.wait(5) == 0
    assert (place.images / sent.name).read_bytes() == sent.read_bytes()
    now = journal.entry(ID, Role.DESTINATION)
    assert now is not None
    assert now.facts["manifest"] == {"core-4242.img": 5000}
    assert abs((now.facts["images_at"] or 0) - time.time()) < 10
    assert _at_work() == []


def test_the_images_are_there_when_they_are_confirmed(
    assignment: Assignment, journal: Journal, entry: Entry, tmp_path: Path
) -> None:
    """What the journal takes to write before is the source's time, and is not counted twice."""
    sent, written = tmp_path / "core-4242.img", list[float]()
    sent.write_bytes(b"1")
    busy = sqlite3.connect(journal.path, isolation_level=None, check_same_thread=False)

    def let_go() -> None:
        written.append(time.time())
        busy.execute("ROLLBACK")

    with _started(assignment) as child, contextlib.closing(busy):
        port = _report(child)["port"]
        with channel.connect(HOST, port, SECRET, "images") as source:
            busy.execute("BEGIN IMMEDIATE")
            threading.Timer(0.5, let_go).start()
            channel.send_files(source, [sent], 5)
        assert child.wait(5) == 0
    now = journal.entry(ID, Role.DESTINATION)
    assert now is not None
    assert now.facts["images_at"] is not None
    assert now.facts["images_at"] >= written[0]


def test_a_source_that_breaks_off(
    assignment: Assignment, journal: Journal, entry: Entry, place: ImageDirectory
) -> None:
    """Images that did not arrive completely are a failure, and are not in the journal."""
    with _started(assignment) as child:
        with channel.connect(HOST, _report(child)["port"], SECRET, "images") as source:
            source.sendall(b"\0\0\0\x0d" + b'{"a.img": 10}' + b"short")
        assert "ended the connection" in _report(child)["message"]
        assert child.wait(5) == 1
    now = journal.entry(ID, Role.DESTINATION)
    assert now is not None
    assert "manifest" not in now.facts
    assert _at_work() == []


def test_a_source_that_cannot_connect(assignment: Assignment, journal: Journal) -> None:
    """A port without a listener is reported in one sentence with the address."""
    journal.open(ID, Role.SOURCE, PLAN)
    listener = channel.Listener(HOST, SECRET)
    listener.close()
    with _started(replace(assignment, role=Role.SOURCE, port=listener.port)) as child:
        report = _report(child)
        assert report["code"] == "CHANNEL_FAILED"
        assert f"Cannot connect to {HOST} port {listener.port}" in report["message"]
        assert child.wait(5) == 1
    assert _at_work() == []
