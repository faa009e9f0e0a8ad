"""Sockets: those of the tree, and whether their ports and names are free on the destination.

They are read from ``/proc/PID/net`` and with sock_diag(7). The destination does not guess from
tables whether a port is free: it binds the port, with the options that CRIU's restore sets, and
closes the socket at once. No client can connect to it meanwhile, since it never listens.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.model import Json
from sojourn.preflight.finding import Finding, blocks, named, needs_option
from sojourn.preflight.scan import VANISHED, Handle, Tree
from sojourn.system import process
from sojourn.system.process import PROC

#: States of TCP in ``/proc/net/tcp`` (include/net/tcp_states.h).
ESTABLISHED, CLOSED, LISTENING = 1, 7, 10
CONNECTED = {1, 2, 3, 4, 5, 8, 9, 11}

#: How an IPv6 socket has an address of IPv4 (RFC 4291, 2.5.5.2).
MAPPED = "::ffff:"

#: How long, in seconds, a connection must wait to be accepted before it is reported, and how often
#: it is looked at. A program that is well accepts it sooner.
PENDING_S = 0.3
LOOK_S = 0.02

#: The kernel's names of the protocols that CRIU supports. They are in an extended attribute of the
#: socket, which lsof(8) reads too.
KNOWN = {
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "UDP-Lite",
    "UDPLITEv6",
    "PING",
    "PINGv6",
    "RAW",
    "RAWv6",
} | {
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
        """Protocol, address and port to which it is bound, for sentences."""
        return f"{self.table} {_joined(self.address, self.port)}"


@dataclass(frozen=True)
class Bound:
    """A socket that the restore will bind on the destination.

    For an abstract Unix socket, ``table`` is ``unix`` and ``address`` is its name.
    """

    table: str
    address: str = ""
    port: int = 0
    only_v6: bool = False

    def to_json(self) -> list[Json]:
        """Return it as a short list."""
        return list(astuple(self))


STOP_USER = "Stop the program that uses it, or choose another destination."

TABLES = ("tcp", "tcp6", "udp", "udp6")


def inodes(tree: Tree) -> dict[int, Handle]:
    """Return the tree's sockets by their inodes."""
    return {
        handle.stat.st_ino: handle for handle in tree.handles if handle.target.startswith("socket:")
    }


def inet(pid: int | str) -> Iterator[Inet]:
    """Yield the TCP and UDP sockets of a process's network namespace."""
    for table in TABLES:
        with contextlib.suppress(FileNotFoundError):
            for line in (PROC / str(pid) / "net" / table).read_text().splitlines()[1:]:
                yield _inet(table, line.split())


def check(tree: Tree, *, tcp_established: bool) -> Iterator[Finding]:
    """Yield the findings for the tree's sockets, on the source."""
    ours = inodes(tree)
    if not ours:
        return
    connected = [one for one in inet(tree.root.pid) if one.inode in ours and one.connected]
    if connected:
        lines = [f"{one.place} to {_joined(one.peer, one.peer_port)}" for one in connected]
        yield needs_option(
            "TCP_ESTABLISHED",
            f"TCP connections are established: {named(lines)}.",
            "--tcp-established",
            given=tcp_established,
        )
    yield from _pending(tree, ours)
    yield from _types(ours)


def local_peers(tree: Tree) -> Iterator[tuple[Handle, int, str]]:
    """Yield the TCP connections of a tree within this host whose other end is outside the tree.

    Each is the tree's end, the inode of the other, and the connection as sentences call it. An end
    that its program has closed has no inode. One that waits to be accepted has none yet: that of
    the listener stands for it.
    """
    ours = inodes(tree)
    everything = list(inet(tree.root.pid)) if ours else []
    ends = {_end(one.address, one.port, one.peer, one.peer_port): one for one in everything}
    for one in everything:
        if one.inode in ours and one.connected:
            far = ends.get(_end(one.peer, one.peer_port, one.address, one.port))
            inode = far.inode or _listener(far, everything) if far else 0
            if inode and inode not in ours:
                yield ours[one.inode], inode, f"{one.place} to {_joined(one.peer, one.peer_port)}"


def unix_peers_outside(tree: Tree) -> Iterator[tuple[Handle, int, str]]:
    """Yield the Unix sockets of a tree whose peer is outside: the peer's inode, and its name.

    Only for a tree in this network namespace; the name is empty where it has none.
    """
    ours = inodes(tree)
    peers = unix_peers() if ours else {}
    outside = {inode: peers[inode] for inode in ours if peers.get(inode, 0) not in {0, *ours}}
    names = unix_names("self") if outside else {}
    for inode, peer in outside.items():
        yield ours[inode], peer, names.get(peer, "")


def _end(address: str, port: int, peer: str, peer_port: int) -> tuple[str, int, str, int]:
    """Return what names one end; an IPv6 socket has IPv4's addresses in a form of their own."""
    return address.removeprefix(MAPPED), port, peer.removeprefix(MAPPED), peer_port


def _listener(end: Inet, everything: list[Inet]) -> int:
    """Return the inode of the listener that has the port of an end; 0 if there is none."""
    found = (one for one in everything if one.state == LISTENING and one.port == end.port)
    return next((one.inode for one in found), 0) if end.state == ESTABLISHED else 0


def bound(tree: Tree) -> list[Bound]:
    """Return what the restore will bind: ports, and abstract names of Unix sockets."""
    ours = inodes(tree)
    if not ours:
        return []
    listed = [one for one in inet(tree.root.pid) if one.inode in ours]
    with_port = [one for one in (*listed, *_only_bound(ours, listed)) if one.port]
    ports = {(one.table, one.port) for one in with_port}
    return [
        *sorted({_bound(one, ports) for one in with_port}, key=astuple),
        *(Bound("unix", name) for name in _abstract(tree.root.pid, set(ours))),
    ]


def _only_bound(ours: dict[int, Handle], listed: list[Inet]) -> Iterator[Inet]:
    """Yield the TCP sockets that are bound, and that no file of ``/proc/net`` has.

    They neither listen nor are connected. Of one whose connection has ended only the address is
    needed, and only where the program has not read all of it (``sojourn.criu.ended_connections``).
    """
    known = {one.inode for one in listed}
    for inode, handle in ours.items():
        if inode not in known and _protocol(handle) in {"TCP", "TCPv6"}:
            with process.borrowed(handle.pid, handle.number) as copy:
                if copy is not None and (not _has_ended(copy) or _unread(copy)):
                    yield _unlisted(copy, inode)


def _unlisted(descriptor: int, inode: int) -> Inet:
    with socket.socket(fileno=os.dup(descriptor)) as theirs:
        address, port, *_ = theirs.getsockname()
        table = "tcp6" if theirs.family == socket.AF_INET6 else "tcp"
    state = ESTABLISHED if _has_ended(descriptor) else CLOSED
    return Inet(table, address, port, "", 0, state, inode)


def _has_ended(descriptor: int) -> bool:
    """Return whether a socket was connected."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return any(events & select.POLLRDHUP for _, events in poll.poll(0))


def _unread(descriptor: int) -> bool:
    return any(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))


def directories(tree: Tree) -> list[str]:
    """Return the directories in which the restore will create the files of Unix sockets."""
    ours = inodes(tree)
    names = unix_names(tree.root.pid) if ours else {}
    return sorted(
        {str(Path(names[inode]).parent) for inode in ours if names.get(inode, "").startswith("/")}
    )


def _bound(inet: Inet, ports: set[tuple[str, int]]) -> Bound:
    """Return what to bind for a socket; of a connected one, only the address."""
    # An IPv6 socket takes the port of IPv4 too, so it must be bound for IPv6 alone if the tree has
    # another socket on that port.
    only_v6 = inet.table.endswith("6") and (inet.table.removesuffix("6"), inet.port) in ports
    return Bound(inet.table, inet.address, 0 if inet.connected else inet.port, only_v6)


def is_address(address: str) -> bool:
    """Return whether a socket can be bound to an address of this host."""
    return _bind(Bound("tcp6" if ":" in address else "tcp", address)) == 0


def taken(wanted: Iterable[Bound]) -> Iterator[Finding]:
    """Yield what cannot be bound on this host, the destination."""
    names = unix_names("self")
    for one in wanted:
        users = {inode for inode, name in names.items() if name == one.address}
        if one.table != "unix":
            yield from _port_taken(one)
        elif users:
            sentence = f"The name {one.address} of a Unix socket is taken{_user_of(users)}."
            yield blocks("SOCKET_TAKEN", sentence, STOP_USER)


def _port_taken(wanted: Bound) -> Iterator[Finding]:
    error = _bind(wanted)
    if error == errno.EADDRINUSE:
        place = f"{wanted.table} {_joined(wanted.address, wanted.port)}"
        yield blocks("PORT_TAKEN", f"{place} is taken{_owner(wanted)}.", STOP_USER)
    elif error in {errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL}:
        yield blocks(
            "ADDRESS_MISSING",
            f"{wanted.table} {wanted.address} is not an address of this host.",
            "Move the address to the destination before the process, or have the program listen "
            "on all addresses.",
        )


def _pending(tree: Tree, ours: dict[int, Handle]) -> Iterator[Finding]:
    """Yield the listeners on which a connection waits to be accepted for ``PENDING_S``."""
    waiting = {one for one in inet(tree.root.pid) if one.inode in ours and one.queued}
    until = time.monotonic() + PENDING_S
    # At any instant a busy listener may have a connection in its queue: only one that stays counts.
    while waiting and time.monotonic() < until:
        time.sleep(LOOK_S)
        waiting &= {one for one in inet(tree.root.pid) if one.queued}
    for listener in waiting:
        yield blocks(
            "TCP_IN_FLIGHT",
            f"A connection to {listener.place} is waiting for the program to accept it; CRIU "
            "cannot migrate it.",
            "Try again when the program has accepted it.",
        )


def _types(ours: dict[int, Handle]) -> Iterator[Finding]:
    for handle in ours.values():
        kind = _protocol(handle)
        if kind and kind not in KNOWN:
            sentence = f"A socket of type {kind} ({handle.user}) cannot be dumped."
            hint = "For Go programs, set GODEBUG=multipathtcp=0."
            yield blocks("SOCKET_UNSUPPORTED", sentence, hint if kind.startswith("MPTCP") else "")


def _protocol(handle: Handle) -> str:
    """Return the kernel's name of a socket's protocol; empty if it is closed by now."""
    with contextlib.suppress(OSError):
        return os.getxattr(handle.link, "system.sockprotoname").rstrip(b"\0").decode()
    return ""


def _inet(table: str, fields: list[str]) -> Inet:
    (address, port), (peer, peer_port) = _place(fields[1]), _place(fields[2])
    state, waiting = int(fields[3], 16), int(fields[4].split(":")[1], 16)
    is_queued = table.startswith("tcp") and state == LISTENING and waiting > 0
    return Inet(table, address, port, peer, peer_port, state, int(fields[9]), is_queued)


def _place(text: str) -> tuple[str, int]:
    """Read an address as ``/proc/net`` writes it: 32-bit words in the order of this host."""
    digits, port = text.split(":")
    raw = b"".join(
        struct.pack("=I", int(digits[at : at + 8], 16)) for at in range(0, len(digits), 8)
    )
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw), int(
        port, 16
    )


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _bind(wanted: Bound) -> int:
    """Bind as CRIU does (``open_inet_sk``, ``inet_bind`` in its sk-inet.c); return errno or 0."""
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
    """Return, for a sentence, which process has a port on this host; "" if it is not found."""
    here = {
        one.inode
        for one in inet("self")
        if one.port == wanted.port and one.table[:3] == wanted.table[:3]
    }
    return _user_of(here)


def _user_of(here: set[int]) -> str:
    """Return, for a sentence, which process of this host has one of these sockets open."""
    for stat in process.everything():
        with contextlib.suppress(*VANISHED, ProcessGone, PermissionError):
            for link in process.descriptors(stat.pid, "socket:"):
                if link.stat().st_ino in here:
                    return f" by process {stat.pid} ({stat.name})"
    return ""


def _abstract(pid: int, ours: set[int]) -> list[str]:
    """Return the abstract names, ``@name``, of Unix sockets with these inodes."""
    names = unix_names(pid).items()
    return sorted({name for inode, name in names if name.startswith("@") and inode in ours})


def unix_names(pid: int | str) -> dict[int, str]:
    """Return the names of Unix sockets by their inodes, as they were bound; abstract ones: @name.

    A program may put a line end into a name. What follows it looks like no socket, or like one that
    is not there, and nobody acts on a name alone.
    """
    lines = (PROC / str(pid) / "net/unix").read_text(errors="replace").splitlines()[1:]
    rows = (line.split(maxsplit=7) for line in lines)
    return {int(row[6]): row[7] for row in rows if len(row) > 7 and row[6].isdecimal()}


#: ``sock_diag(7)``: the message, its flags (request, dump), and what to show of Unix sockets.
DIAG_BY_FAMILY, REQUEST_DUMP, SHOW_PEER, ATTRIBUTE_PEER = 20, 0x301, 4, 2
NLMSG_ERROR, NLMSG_DONE = 2, 3
ALL_STATES = 0xFFFFFFFF


def unix_peers() -> dict[int, int]:
    """Return the peer's inode of every connected Unix socket of this network namespace.

    Empty if the kernel does not support the request.
    """
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, ALL_STATES, 0, SHOW_PEER, 0, 0)
    header = struct.pack("=IHHII", 16 + len(request), DIAG_BY_FAMILY, REQUEST_DUMP, 1, 0)
    peers: dict[int, int] = {}
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel,
    ):
        # The kernel may lack unix_diag, and need not answer then.
        kernel.settimeout(2)
        kernel.sendto(header + request, (0, 0))
        while _take(kernel.recv(2**16), peers):
            pass
    return peers


def _take(data: bytes, peers: dict[int, int]) -> bool:
    """Add the peers of one answer; return False after the last one."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if kind in {NLMSG_DONE, NLMSG_ERROR}:
            return False
        # Sixteen bytes of header, then ``struct unix_diag_msg``, of the same size, with the inode
        # at its fifth byte; attributes follow (include/uapi/linux/unix_diag.h).
        (inode,) = struct.unpack_from("=I", data, 20)
        at = 32
        while at + 4 <= length:
            size, attribute = struct.unpack_from("=HH", data, at)
            if attribute == ATTRIBUTE_PEER:
                (peers[inode],) = struct.unpack_from("=I", data, at + 4)
            at += max(4, (size + 3) // 4 * 4)
        data = data[(length + 3) // 4 * 4 :]
    return True
