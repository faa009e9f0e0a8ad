"""The holder as the program that it is, on the loopback; what CRIU does with its socket is the lab's."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sojourn import channel, process
from sojourn.errors import ChannelFailed
from sojourn.holder import Errand, start
from sojourn.images import ImageDirectory
from sojourn.journal import Entry, Journal
from sojourn.model import Json, Plan, Role
from sojourn.run import Child

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
    """Open a migration that this host is the destination of."""
    return journal.open(ID, Role.DESTINATION, PLAN)


@pytest.fixture
def place(tmp_path: Path) -> ImageDirectory:
    """Make the directories that a reservation makes, without a tmpfs."""
    directory = ImageDirectory(tmp_path / "run" / ID)
    directory.images.mkdir(parents=True)
    directory.work.mkdir()
    return directory


@pytest.fixture
def errand(journal: Journal, place: ImageDirectory) -> Errand:
    """Ask for the small images only, which need no CRIU."""
    return Errand(
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
def _started(errand: Errand) -> Iterator[Child]:
    """Run a holder, and leave nothing of it behind."""
    child = start(errand, Path(errand.place) / "work" / "holder.out")
    try:
        with child.stdout:
            yield child
    finally:
        child.kill()


def _told(child: Child) -> Json:
    """Read what the holder says next; an empty line is its end."""
    words: Json = json.loads(child.stdout.readline())
    return words


def _log(errand: Errand) -> str:
    return (Path(errand.place) / "work" / "holder.out").read_text()


def test_the_deadline(errand: Errand, journal: Journal, entry: Entry) -> None:
    """When nobody comes it ends itself, says why in one line of JSON and one of its log, and holds nothing more."""
    errand = replace(errand, deadline_s=0.5)
    with _started(errand) as child:
        assert set(_told(child)) == {"port"}
        assert [who.pid for who in process.carrying(process.MIGRATION_VARIABLE, ID)] == [child.pid]
        assert _told(child) == {"code": "CHANNEL_FAILED", "message": "The source did not connect in time.", "hint": ""}
        assert child.wait(5) == 1
        assert child.stdout.read() == ""
    assert process.carrying(process.MIGRATION_VARIABLE, ID) == []
    assert _log(errand) == "The source did not connect in time.\n"


def test_an_unknown_migration(errand: Errand, journal: Journal) -> None:
    """A holder of a migration that the journal does not know fails in one sentence, and listens nowhere."""
    with _started(errand) as child:
        assert _told(child)["message"] == f"This host's journal knows no migration {ID}."
        assert child.wait(5) == 1
        assert child.stdout.read() == ""
    assert journal.entry(ID, Role.DESTINATION) is None
    assert _log(errand) == f"This host's journal knows no migration {ID}.\n"


def test_the_other_role(errand: Errand, journal: Journal) -> None:
    """The source's row of the same migration is not the destination's."""
    journal.open(ID, Role.SOURCE, PLAN)
    with _started(errand) as child:
        assert _told(child)["message"] == f"This host's journal knows no migration {ID}."
        assert child.wait(5) == 1


def test_small_images_arrive(
    errand: Errand, journal: Journal, entry: Entry, place: ImageDirectory, tmp_path: Path
) -> None:
    """A stranger is turned away, the source's images are written, and the journal knows them; then it ends."""
    sent = tmp_path / "core-4242.img"
    sent.write_bytes(os.urandom(5000))
    with _started(errand) as child:
        port = _told(child)["port"]
        with pytest.raises(ChannelFailed):
            channel.connect(HOST, port, channel.secret_for("another key", ID), "images")
        with channel.connect(HOST, port, SECRET, "images") as source:
            assert channel.send_files(source, [sent], 5) == {"core-4242.img": 5000}
        assert child.wait(5) == 0
    assert (place.images / sent.name).read_bytes() == sent.read_bytes()
    now = journal.entry(ID, Role.DESTINATION)
    assert now is not None
    assert now.facts["manifest"] == {"core-4242.img": 5000}
    assert abs(now.facts["images_at"] - time.time()) < 10
    assert process.carrying(process.MIGRATION_VARIABLE, ID) == []


def test_a_source_that_breaks_off(errand: Errand, journal: Journal, entry: Entry, place: ImageDirectory) -> None:
    """Images that did not arrive whole are a failure, and are in no manifest of the journal."""
    with _started(errand) as child:
        with channel.connect(HOST, _told(child)["port"], SECRET, "images") as source:
            source.sendall(b"\0\0\0\x0d" + b'{"a.img": 10}' + b"short")
        assert "ended the connection" in _told(child)["message"]
        assert child.wait(5) == 1
    now = journal.entry(ID, Role.DESTINATION)
    assert now is not None
    assert "manifest" not in now.facts
    assert process.carrying(process.MIGRATION_VARIABLE, ID) == []


def test_a_source_that_reaches_nobody(errand: Errand, journal: Journal) -> None:
    """On the source's side nobody at the port is one sentence with the address in it."""
    journal.open(ID, Role.SOURCE, PLAN)
    listener = channel.Listener(HOST, SECRET)
    listener.close()
    with _started(replace(errand, role=Role.SOURCE, port=listener.port)) as child:
        told = _told(child)
        assert told["code"] == "CHANNEL_FAILED"
        assert f"Can not connect to {HOST} port {listener.port}" in told["message"]
        assert child.wait(5) == 1
    assert process.carrying(process.MIGRATION_VARIABLE, ID) == []
