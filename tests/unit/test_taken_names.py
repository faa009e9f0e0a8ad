"""What a destination does about names of Unix sockets, on real sockets of this machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sojourn.errors import CriuFailed
from sojourn.migration import names
from sojourn.migration.context import Host, Migration
from sojourn.model import Plan, Role
from sojourn.preflight.names import Name, named
from sojourn.settings import Settings
from tests.images import image, message

ID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def migration(tmp_path: Path) -> Migration:
    """Return a migration to this host, the destination."""
    settings = {"host": "beta", "key": "k" * 32, "state_dir": tmp_path}
    host = Host(Settings.model_validate(settings | {"runtime_dir": tmp_path / "run"}))
    made = Migration(host, host.journal.open(ID, Role.DESTINATION, Plan(7, "alpha", "beta")))
    made.directory.images.mkdir(parents=True)
    return made


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a path for a socket."""
    return str(tmp_path / "socket")


def _leave(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


def test_a_name_that_is_taken_since_the_check(migration: Migration, path: str) -> None:
    """It stops the restore before anything is touched."""
    migration.learn(names=[Name(path, 0).to_json()])
    names.check(migration)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        with pytest.raises(CriuFailed, match="is taken by process"):
            names.check(migration)


def test_a_name_without_a_second_link(migration: Migration, path: str) -> None:
    """One that the tree has bound since the checks would be lost by a rollback."""
    _leave(path)
    migration.learn(names=[named(path).to_json()])
    with pytest.raises(CriuFailed, match="is a Unix socket's since the checks were made"):
        names.check(migration)
    migration.learn(shared_names=[path])
    names.check(migration)


def test_a_message_that_was_lost(migration: Migration, path: str) -> None:
    """The images have the names too, but not whose files are there: nothing is replaced."""
    unix = message((1, 5), (16, message((2, 99), (11, path.encode()))))
    (migration.directory.images / "files.img").write_bytes(image(unix))
    names.check(migration)
    _leave(path)
    with pytest.raises(CriuFailed, match="may belong to a program of another host"):
        names.check(migration)


def test_what_a_failed_restore_has_made(migration: Migration, path: str, tmp_path: Path) -> None:
    """It goes; the original's own file, another kind of file and a living socket stay."""
    own, other, living = (str(tmp_path / name) for name in ("own", "other", "living"))
    _leave(path)
    _leave(own)
    Path(other).touch()
    wanted = [Name(path, 1), named(own), Name(other, 0), Name(living, 0)]
    migration.learn(names=[name.to_json() for name in wanted])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(living)
        names.clear_away(migration)
        assert Path(path).exists()  # no restore has begun
        migration.learn(restore_began=1)
        for _ in range(2):
            names.clear_away(migration)
    assert [Path(one).exists() for one in (path, own, other, living)] == [False, True, True, True]
