"""Names of Unix sockets in file systems: whose they are, and whether they may be taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.preflight import names
from sojourn.preflight.names import Name
from sojourn.preflight.scan import scan
from sojourn.system.unix_socket import file_of, is_bound, name_of


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a path for a socket."""
    return str(tmp_path / "socket")


@pytest.fixture
def bound(path: str) -> Iterator[socket.socket]:
    """Return a socket that listens there."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        yield server


def _sentences(*wanted: Name) -> list[str]:
    return [finding.sentence for finding in names.taken(wanted)]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_whether_a_file_is_bound(path: str, kind: socket.SocketKind) -> None:
    """Of every type, listening or not; and a server does not see that it was asked."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(path)
        assert is_bound(path)
        if kind != socket.SOCK_DGRAM:
            server.listen()
            assert is_bound(path)
            server.settimeout(0)
            with pytest.raises(BlockingIOError):
                server.accept()
    assert not is_bound(path)


def test_the_file_of_a_socket(path: str, bound: socket.socket) -> None:
    """By the path that it has now, whatever it was bound to; a deleted one is called so."""
    assert file_of(os.getpid(), bound.fileno()) == (path, Path(path).stat().st_ino)
    inode = Path(path).stat().st_ino
    Path(path).unlink()
    assert file_of(os.getpid(), bound.fileno()) == (f"{path} (deleted)", inode)
    with socket.socket() as other:
        assert file_of(os.getpid(), other.fileno()) is None


def test_another_name_of_a_file(path: str, bound: socket.socket, tmp_path: Path) -> None:
    """One that was renamed, and one that has a link beside its first name, which is gone."""
    inode, other = Path(path).stat().st_ino, str(tmp_path / "other")
    Path(path).rename(other)
    assert name_of(path, (other, inode)) == other
    assert names.of_tree(scan(os.getpid()))[0].path == other
    os.link(other, path)
    Path(other).unlink()
    assert file_of(os.getpid(), bound.fileno()) == (f"{other} (deleted)", inode)
    assert name_of(other, (f"{other} (deleted)", inode)) == path
    Path(path).unlink()
    assert name_of(other, (f"{other} (deleted)", inode)) == ""


def test_the_names_of_a_tree(path: str, bound: socket.socket, tmp_path: Path) -> None:
    """With the inode of the file, or 0 where the socket has lost it; an abstract name is none."""
    lost = str(tmp_path / "lost")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as abstract:
        other.bind(lost)
        Path(lost).unlink()
        abstract.bind("\0sojourn-abstract")
        found = {name.path: name.inode for name in names.of_tree(scan(os.getpid()))}
    assert {key: found[key] for key in (path, lost)} == {path: Path(path).stat().st_ino, lost: 0}
    assert not any("abstract" in name for name in found)


def test_a_name_that_is_free(path: str) -> None:
    """Nothing is there."""
    assert _sentences(Name(path, 0)) == []


def test_a_name_that_is_taken(path: str, bound: socket.socket) -> None:
    """The process is named, whatever the path that it has used."""
    assert "is taken by process" in _sentences(Name(path, 0))[0]
    assert f"process {os.getpid()} (" in _sentences(Name(path, 0))[0]


def test_the_own_file_on_shared_storage(path: str, bound: socket.socket) -> None:
    """It is recognised as the very same, and may be replaced: the original has a second link."""
    ours = names.named(path)
    assert ours.inode == Path(path).stat().st_ino
    assert _sentences(ours) == []
    assert names.shared([ours]) == [path]
    assert Name.from_json(ours.to_json()) == ours


def test_a_dead_file(path: str) -> None:
    """On storage of this host alone nobody can be bound to it; on shared storage somebody can."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    lost = names.named(path, 0)
    assert (lost.inode, lost.marks) == (0, ())
    assert _sentences(Name(path, 0)) == []
    assert "may belong to a program of another host" in _sentences(lost)[0]


def test_another_kind_of_file(path: str) -> None:
    """It is somebody's; a link to a socket is too, since CRIU would remove the link."""
    Path(path).touch()
    assert "another kind of file" in _sentences(Name(path, 0))[0]
    Path(path).unlink()
    Path(path).symlink_to("/nowhere")
    assert "another kind of file" in _sentences(Name(path, 0))[0]
