"""Sockets: what the tree has, read from ``/proc/PID/net`` and the kernel's socket diagnosis; what is free here.

The destination does not guess from tables whether a port is free: it binds one, with the options that CRIU's restore
sets, and closes it at once. Nobody can connect to it meanwhile, since it never listens.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from os import getxattr
from pathlib import Path

from sojourn import process
from sojourn.errors import ProcessGone
from sojourn.model import Json
from sojourn.preflight.finding import Finding, blocks, named, needs_option
from sojourn.preflight.scan import VANISHED, Handle, Tree
from sojourn.process import PROC

#: States of TCP in ``/proc/net/tcp`` (include/net/tcp_states.h).
LISTENING = 10
CONNECTED = {1, 2, 3, 4, 5, 8, 9, 11}

#: How long a connection must wait until that is not called a moment, and how often it is looked at, in seconds.
PENDING_S = 0.3
LOOK_S = 0.02

#: The kernel's names of the protocols that CRIU knows (the extended attribute that lsof(8) reads too).
KNOWN = {"TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "PING", "PINGv6", "RAW", "RAWv6"} | {
    "UNIX",
    "UNIX-STREAM",
    "PACKET",
    "NETLINK",
}


@dataclass(frozen=True)
class Inet:
    """One TCP or UDP socket. ``table`` is its file in ``/proc/net``."""

    table: str
    address: str
    port: int
    peer: str
    peer_port: int
    state: int
    inode: int
    queued: bool = False

    @property
    def connected(self) -> bool:
        """Whether it is one end of a TCP connection."""
        return self.table.startswith("tcp") and self.state in CONNECTED

    @property
    def place(self) -> str:
        """Where it is bound, for sentences."""
        return f"{self.table} {_joined(self.address, self.port)}"


@dataclass(frozen=True)
class Bound:
    """A socket that the restore will bind on the destination; ``name`` is an abstract unix one instead."""

    table: str
    address: str = ""
    port: int = 0
    only_v6: bool = False

    def to_json(self) -> list[Json]:
        """Return it as a short list."""
        return list(astuple(self))


STOP_USER = "Stop what uses it, or choose another destination."

TABLES = ("tcp", "tcp6", "udp", "udp6")


def inodes(tree: Tree) -> dict[int, Handle]:
    """Return the tree's sockets by their inodes."""
    return {handle.stat.st_ino: handle for handle in tree.handles if handle.target.startswith("socket:")}


def inet(pid: int | str) -> Iterator[Inet]:
    """Yield the TCP and UDP sockets of a process's network namespace."""
    for table in TABLES:
        with contextlib.suppress(FileNotFoundError):
            for line in (PROC / str(pid) / "net" / table).read_text().splitlines()[1:]:
                yield _inet(table, line.split())


def check(tree: Tree, *, tcp_established: bool, same_network: bool) -> Iterator[Finding]:
    """Yield what speaks against the sockets on the source."""
    ours = inodes(tree)
    if not ours:
        return
    established = [each for each in inet(tree.root.pid) if each.inode in ours and each.connected]
    if established:
        lines = [f"{each.place} to {_joined(each.peer, each.peer_port)}" for each in established]
        yield needs_option(
            "TCP_ESTABLISHED",
            f"TCP connections are established: {named(lines)}.",
            "--tcp-established",
            given=tcp_established,
        )
    yield from _pending(tree, ours)
    yield from _types(ours)
    if same_network:
        yield from _peers(ours)


def bound(tree: Tree) -> list[Bound]:
    """Return what the restore will bind: ports, and abstract names of unix sockets."""
    ours = inodes(tree)
    if not ours:
        return []
    mine = [each for each in inet(tree.root.pid) if each.inode in ours and each.port]
    ports = {(each.table, each.port) for each in mine}
    places = {_bound(each, ports) for each in mine}
    return [*sorted(places, key=astuple), *(Bound("unix", name) for name in _abstract(tree.root.pid, set(ours)))]


def places(tree: Tree) -> list[str]:
    """Return the directories in which the restore will make the files of unix sockets."""
    ours = inodes(tree)
    names = _unix_names(tree.root.pid) if ours else {}
    return sorted({str(Path(names[inode]).parent) for inode in ours if names.get(inode, "").startswith("/")})


def _bound(each: Inet, ports: set[tuple[str, int]]) -> Bound:
    """Return what to bind. A port that the tree has bound for IPv4 too can only be bound for IPv6 alone."""
    only_v6 = each.table.endswith("6") and (each.table.removesuffix("6"), each.port) in ports
    return Bound(each.table, each.address, 0 if each.connected else each.port, only_v6)


def taken(wanted: Iterable[Bound]) -> Iterator[Finding]:
    """Yield what can not be bound on this host, the destination."""
    names = set(_abstract("self", None))
    for each in wanted:
        if each.table == "unix":
            if each.address in names:
                yield blocks("SOCKET_TAKEN", f"The name {each.address} of a unix socket is taken.", STOP_USER)
            continue
        error = _bind(each)
        if error == errno.EADDRINUSE:
            place = f"{each.table} {_joined(each.address, each.port)}"
            yield blocks("PORT_TAKEN", f"{place} is taken{_owner(each)}.", STOP_USER)
        elif error in {errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL}:
            yield blocks(
                "ADDRESS_MISSING",
                f"{each.table} {each.address} is no address of this host.",
                "Move the address to the destination before the process, or let the program listen on all addresses.",
            )


def _pending(tree: Tree, ours: dict[int, Handle]) -> Iterator[Finding]:
    """Name listeners where a connection waits to be accepted. It seldom does for long, so it is looked at again."""
    waiting = {each for each in inet(tree.root.pid) if each.inode in ours and each.queued}
    until = time.monotonic() + PENDING_S
    while waiting and time.monotonic() < until:
        time.sleep(LOOK_S)
        waiting &= {each for each in inet(tree.root.pid) if each.queued}
    for each in waiting:
        yield blocks(
            "TCP_IN_FLIGHT",
            f"A connection to {each.place} waits for the program to accept it; CRIU can not take it along.",
            "Try again when the program has accepted it.",
        )


def _types(ours: dict[int, Handle]) -> Iterator[Finding]:
    for handle in ours.values():
        with contextlib.suppress(OSError):
            kind = getxattr(f"/proc/{handle.pid}/fd/{handle.number}", "system.sockprotoname").rstrip(b"\0").decode()
            if kind not in KNOWN:
                hint = "Of a Go program: GODEBUG=multipathtcp=0." if kind.startswith("MPTCP") else ""
                yield blocks("SOCKET_UNSUPPORTED", f"A socket of type {kind} ({handle.user}) can not be dumped.", hint)


def _peers(ours: dict[int, Handle]) -> Iterator[Finding]:
    """Name unix sockets that are connected to one outside of the tree."""
    peers = unix_peers()
    names = _unix_names("self")
    for inode, handle in ours.items():
        peer = peers.get(inode, 0)
        if peer and peer not in ours:
            to = f" to {names[peer]}" if names.get(peer) else ""
            yield blocks(
                "UNIX_PEER_OUTSIDE",
                f"A unix socket ({handle.user}) is connected{to}, outside of the tree.",
                "Let the program close it, or migrate the tree that has both ends.",
            )


def _inet(table: str, words: list[str]) -> Inet:
    (address, port), (peer, peer_port) = _place(words[1]), _place(words[2])
    state, waiting = int(words[3], 16), int(words[4].split(":")[1], 16)
    is_queued = table.startswith("tcp") and state == LISTENING and waiting > 0
    return Inet(table, address, port, peer, peer_port, state, int(words[9]), is_queued)


def _place(text: str) -> tuple[str, int]:
    """Read an address as ``/proc/net`` writes it: 32-bit words in the order of this host."""
    digits, port = text.split(":")
    raw = b"".join(struct.pack("=I", int(digits[at : at + 8], 16)) for at in range(0, len(digits), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw), int(port, 16)


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _bind(wanted: Bound) -> int:
    """Bind as CRIU does (``open_inet_sk`` and ``inet_bind`` in its sk-inet.c); return the error, or 0."""
    family = socket.AF_INET6 if wanted.table.endswith("6") else socket.AF_INET
    kind = socket.SOCK_STREAM if wanted.table.startswith("tcp") else socket.SOCK_DGRAM
    try:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(wanted.only_v6))
            probe.bind((wanted.address, wanted.port))
    except OSError as error:
        return error.errno or 0
    return 0


def _owner(wanted: Bound) -> str:
    """Return who has a port on this host, for a sentence; nothing if it can not be told."""
    here = {each.inode for each in inet("self") if each.port == wanted.port and each.table[:3] == wanted.table[:3]}
    for stat in process.everything():
        with contextlib.suppress(*VANISHED, ProcessGone, PermissionError):
            for link in process.descriptors(stat.pid, "socket:"):
                if link.stat().st_ino in here:
                    return f" by process {stat.pid} ({stat.name})"
    return ""


def _abstract(pid: int | str, ours: set[int] | None) -> list[str]:
    """Return the abstract names, ``@name``, of unix sockets; of these inodes only, if they are given."""
    names = _unix_names(pid).items()
    return sorted({name for inode, name in names if name.startswith("@") and (ours is None or inode in ours)})


def _unix_names(pid: int | str) -> dict[int, str]:
    lines = (PROC / str(pid) / "net/unix").read_text(errors="replace").splitlines()[1:]
    rows = (line.split(maxsplit=7) for line in lines)
    return {int(row[6]): row[7] for row in rows if len(row) > 7}


#: ``sock_diag(7)``: the message, its flags (request, dump), and what is asked of unix sockets.
DIAG_BY_FAMILY, REQUEST_DUMP, SHOW_PEER, ATTRIBUTE_PEER = 20, 0x301, 4, 2
NLMSG_ERROR, NLMSG_DONE = 2, 3
ALL_STATES = 0xFFFFFFFF


def unix_peers() -> dict[int, int]:
    """Return the peer's inode of every connected unix socket of this network namespace; empty if the kernel can not."""
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, ALL_STATES, 0, SHOW_PEER, 0, 0)
    header = struct.pack("=IHHII", 16 + len(request), DIAG_BY_FAMILY, REQUEST_DUMP, 1, 0)
    peers: dict[int, int] = {}
    with contextlib.suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:
        kernel.settimeout(2)
        kernel.sendto(header + request, (0, 0))
        while _take(kernel.recv(2**16), peers):
            pass
    return peers


def _take(data: bytes, peers: dict[int, int]) -> bool:
    """Take the peers out of one answer; False after the last one."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if kind in {NLMSG_DONE, NLMSG_ERROR}:
            return False
        (inode,) = struct.unpack_from("=I", data, 20)
        at = 32
        while at + 4 <= length:
            size, attribute = struct.unpack_from("=HH", data, at)
            if attribute == ATTRIBUTE_PEER:
                (peers[inode],) = struct.unpack_from("=I", data, at + 4)
            at += max(4, (size + 3) // 4 * 4)
        data = data[(length + 3) // 4 * 4 :]
    return True
