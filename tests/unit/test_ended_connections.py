"""Connections that have ended, whose address stays behind: how their images are changed."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from sojourn.criu import ended_connections, files_image
from sojourn.criu.protobuf import entries, fields
from sojourn.preflight.sockets import is_address
from tests.images import image, message

INET, TCP, CLOSED, ESTABLISHED, UDP = 4, 6, 7, 1, 17
PORT, PEER_PORT = 7, 8


def _connection(
    inode: int, address: str, state: int = CLOSED, protocol: int = TCP, peer_port: int = 443
) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    words = struct.unpack("=4I" if ":" in address else "=I", socket.inet_pton(family, address))
    entry = message(
        *((1, inode), (2, inode), (3, family), (4, 1), (5, protocol), (6, state)),
        *((PORT, 40000), (PEER_PORT, peer_port), (9, 2), (10, 0)),
        *((11, word) for word in words),
        *((12, word) for word in words),
        *((14, message((7, 1))), (19, 1)),
    )
    return message((1, INET), (2, inode), (4, entry))


def _ports(images: Path) -> dict[int, tuple[object, object]]:
    """Return both ports of each socket, by its inode."""
    content = (images / "files.img").read_bytes()
    found: dict[int, tuple[object, object]] = {}
    for begin, end in entries(content):
        (outer,) = (field for field in fields(content, begin, end) if field.number == INET)
        entry = {one.number: one.value for one in fields(content, outer.begin, outer.end)}
        found[int(entry[2])] = (entry[PORT], entry[PEER_PORT])
    return found


def _unread(images: Path, inode: int, count: int) -> None:
    stream = image(message((1, count), (2, 9)))
    (images / f"tcp-stream-{inode:x}.img").write_bytes(stream)


def test_which_become_plain_sockets(tmp_path: Path) -> None:
    """Those without an address here and with nothing unread; the image keeps its size."""
    sockets = {
        20: _connection(20, "192.0.2.1"),
        21: _connection(21, "2001:db8::1"),
        22: _connection(22, "127.0.0.1"),
        23: _connection(23, "192.0.2.1"),
        24: _connection(24, "192.0.2.1", ESTABLISHED),
        25: _connection(25, "192.0.2.1", protocol=UDP),
        26: _connection(26, "192.0.2.1", peer_port=0),
    }
    file = tmp_path / "files.img"
    file.write_bytes(image(*sockets.values()))
    size = file.stat().st_size
    for inode in sockets:
        _unread(tmp_path, inode, int(inode == 23))
    for _ in range(2):
        ended_connections.make_plain(tmp_path, is_address)
        plain = {inode for inode, ports in _ports(tmp_path).items() if ports == (0, 0)}
        assert plain == {20, 21}
        assert file.stat().st_size == size
    assert files_image.reused_addresses(tmp_path)[20]


@pytest.mark.parametrize(("address", "here"), [("127.0.0.1", True), ("192.0.2.1", False)])
def test_whether_an_address_is_here(address: str, *, here: bool) -> None:
    """It is tried."""
    assert is_address(address) == here
