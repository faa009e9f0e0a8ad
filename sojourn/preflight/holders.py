"""Who else holds what the tree uses: processes outside of it that share a kernel object with it.

CRIU dumps its side of a pipe, of shared memory or of a local connection, and restores it alone: a
reader then sees an end of file as if all were done, a writer gets SIGPIPE, and memory that two
processes shared becomes two memories. Nothing in the images shows it. Only ``/proc`` does: in one
pass over the descriptors of all other processes, by the names of their links, and over their
mappings if the tree shares any. No object is opened, and nothing is changed.

The content of regular files is no such object, unless they are mapped shared and written: each
host has its own, or both see the same. The position in an open file is: processes that inherit a
descriptor read and write in turn, and with a position each they would overwrite one another. A
shell has it too while it waits for what it has started with its output in a file; so the ancestors
of a tree do not count.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cmp_to_key

from sojourn.errors import ProcessGone
from sojourn.model import Untyped
from sojourn.preflight import sockets
from sojourn.preflight.scan import APPEND, DELETED, VANISHED, Handle, Tree, namespaces, read
from sojourn.system import kcmp, process
from sojourn.system.process import PROC

#: Anonymous inodes whose descriptors processes inherit or receive. All of one kind have the same
#: link and the same inode: only kcmp(2) tells them apart.
ALIKE = {
    "anon_inode:[eventfd]": "an eventfd",
    "anon_inode:[eventpoll]": "an epoll instance",
    "anon_inode:[timerfd]": "a timerfd",
    "anon_inode:[signalfd]": "a signalfd",
    "anon_inode:inotify": "an inotify instance",
    "anon_inode:[fanotify]": "a fanotify group",
}

#: What any other open file that processes share is to them.
POSITION = "the position in {}"

#: Descriptors that have the number of their object in their link.
NUMBERED = {"pipe:": "a pipe", "socket:": "a socket"}

#: Memory without a name on a file system: how ``/proc`` calls it, and how sentences do.
MEMORY = {"/dev/zero": "shared memory", "/memfd:": "a memfd", "/SYSV": "System V shared memory"}
MEMFD = "/memfd:"

#: The code for the peer of a Unix socket: CRIU itself refuses to dump such a socket.
UNIX = "UNIX_PEER_OUTSIDE"

#: Namespaces of the tree's own, as sentences call them.
NAMESPACES = {
    "net": "the network namespace",
    "ipc": "the IPC namespace",
    "uts": "the UTS namespace",
    "pid": "the PID namespace",
    "mnt": "the mount namespace",
}

#: A shared object of memory: device and inode, as ``/proc/PID/maps`` has them.
Area = tuple[str, str]


@dataclass(frozen=True)
class Thing:
    """What processes can hold in common, and which descriptor or process of the tree uses it.

    ``bond`` is what it has to do with a process outside that holds it, and ``code`` that of the
    finding then.
    """

    what: str
    user: str
    bond: str = "is shared with"
    code: str = "HELD_OUTSIDE"

    def to(self, holder: str) -> str:
        """Return as a sentence that a holder has it too, or has its other end."""
        what = self.what[0].upper() + self.what[1:]
        return f"{what} ({self.user}) {self.bond.strip()} {holder}."


@dataclass(frozen=True)
class Held:
    """A thing of the tree that a process outside holds too, or whose other end it holds."""

    thing: Thing
    pid: int
    name: str

    @property
    def sentence(self) -> str:
        """What is held, and by whom."""
        return self.thing.to(f"process {self.pid} ({self.name}), outside the tree")


@dataclass(frozen=True)
class Outside:
    """What of a tree is outside: held by processes, or a Unix peer that none was seen to hold."""

    held: list[Held]
    unheld: list[Thing]


@dataclass(frozen=True)
class Things:
    """All things of a tree, by what they are recognised by in another process.

    ``links`` by the link of a descriptor, ``memory`` by device and inode, ``alike`` by the common
    link of their kind or the path of their file, ordered as kcmp(2) orders open files,
    ``namespaces`` by kind and name.
    """

    links: dict[str, Thing]
    memory: dict[Area, Thing]
    alike: dict[str, list[tuple[Untyped, Handle]]]
    namespaces: dict[str, dict[str, Thing]]


def outside(tree: Tree) -> Outside:
    """Return what processes outside of a tree hold of it, once for each of them and each thing."""
    peers = _unix_peers(tree)
    things = _things_of(tree, peers)
    above = dict.fromkeys(_above(tree), _of_those_above(things))
    found: dict[tuple[Thing, int], Held] = {}
    for pid in _others(tree.pids):
        with contextlib.suppress(ProcessGone, PermissionError, *VANISHED):
            for thing in _found_in(pid, above.get(pid, things)):
                found[thing, pid] = Held(thing, pid, process.stat(pid).name)
    found = {key: held for key, held in found.items() if not _is_of(held.pid, tree)}
    held = sorted(found.values(), key=lambda one: (one.pid, one.thing.what, one.thing.user))
    known = {one.thing for one in held}
    return Outside(held, [thing for thing in peers.values() if thing not in known])


def users_of(paths: Collection[str]) -> dict[str, int]:
    """Return which of these paths a process of this host has open, and one that does."""
    found: dict[str, int] = {}
    for pid in _others(()) if paths else ():
        with contextlib.suppress(PermissionError, *VANISHED):
            found |= {target: pid for _, target in _descriptors(pid) if target in paths}
    return found


def users_of_files(
    files: Mapping[tuple[int, int], str], ours: Collection[int]
) -> dict[tuple[int, int], int]:
    """Return which files a process outside of a tree has open or mapped too, and one that does.

    ``files`` are paths by device and inode; ``ours`` are the processes of the tree.
    """
    names = {name for path in files.values() for name in (path, f"{path}{DELETED}")}
    areas = {_numbered(*file): file for file in files}
    found: dict[tuple[int, int], int] = {}
    for pid in _others(ours) if files else ():
        with contextlib.suppress(PermissionError, *VANISHED):
            for file in (*_opened(pid, names), *_mapped(pid, areas)):
                if file in files:
                    found[file] = pid
    return found


def _opened(pid: int, names: Collection[str]) -> Iterator[tuple[int, int]]:
    for number, target in _descriptors(pid):
        if target in names:
            with contextlib.suppress(*VANISHED):
                stat = os.stat(f"{PROC}/{pid}/fd/{number}")
                yield stat.st_dev, stat.st_ino


def _mapped(pid: int, areas: Mapping[Area, tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for line in read(f"{PROC}/{pid}/maps").splitlines():
        _, _, _, device, inode, *_ = line.split(maxsplit=5)
        if (device, inode) in areas:
            yield areas[device, inode]


def _things_of(tree: Tree, peers: dict[int, Thing]) -> Things:
    links = _links(tree) | _far_ends(tree, peers)
    return Things(links, _areas(tree), _ranked(tree), _own(tree))


def _links(tree: Tree) -> dict[str, Thing]:
    links: dict[str, Thing] = {}
    for handle in tree.handles:
        kind = handle.target[: handle.target.find(":") + 1]
        if kind in NUMBERED:
            links.setdefault(handle.target, Thing(NUMBERED[kind], handle.user))
        elif is_fifo(handle):
            links.setdefault(handle.target, Thing(f"the FIFO {handle.target}", handle.user))
    return links


def is_fifo(handle: Handle) -> bool:
    """Return whether a descriptor is a FIFO, a pipe with a path."""
    return handle.target.startswith("/") and modes.S_ISFIFO(handle.stat.st_mode)


def _far_ends(tree: Tree, peers: dict[int, Thing]) -> dict[str, Thing]:
    """Return the other ends of the tree's connections within this host, by their links."""
    tcp = {
        far: Thing(connection, handle.user, "is connected to")
        for handle, far, connection in sockets.local_peers(tree)
    }
    return {f"socket:[{far}]": thing for far, thing in (tcp | peers).items()}


def _unix_peers(tree: Tree) -> dict[int, Thing]:
    """Return the peers outside of the tree's Unix sockets, by their inodes."""
    if tree.root.namespaces.get("net") != namespaces("self").get("net"):
        return {}
    return {
        peer: Thing("a Unix socket", handle.user, f"is connected to {name and f'{name} of '}", UNIX)
        for handle, peer, name in sockets.unix_peers_outside(tree)
    }


def _areas(tree: Tree) -> dict[Area, Thing]:
    """Return the memory that the tree shares by mapping it, or by having its memfd open."""
    found = {
        area: Thing(_called(shared.path), f"mapped by process {shared.pid}")
        for area, shared in tree.shared.items()
        if shared.written or shared.path.startswith(tuple(MEMORY))
    }
    memfds = (handle for handle in tree.handles if handle.target.startswith(MEMFD))
    return {_area(handle.stat): Thing(MEMORY[MEMFD], handle.user) for handle in memfds} | found


def _called(path: str) -> str:
    return next((what for prefix, what in MEMORY.items() if path.startswith(prefix)), path)


def _area(found: os.stat_result) -> Area:
    return _numbered(found.st_dev, found.st_ino)


def _numbered(device: int, inode: int) -> Area:
    return f"{os.major(device):02x}:{os.minor(device):02x}", str(inode)


def _ranked(tree: Tree) -> dict[str, list[tuple[Untyped, Handle]]]:
    """Return the handles that look alike, by kind, in the order of their open files."""
    found: dict[str, list[tuple[Untyped, Handle]]] = {}
    for handle in tree.handles:
        if handle.target in ALIKE or _has_position(handle):
            rank = _rank((handle.pid, handle.number))
            found.setdefault(handle.target, []).append((rank, handle))
    for handles in found.values():
        handles.sort(key=lambda ranked: ranked[0])
    return found


def _has_position(handle: Handle) -> bool:
    """Return whether it matters who else moves the position: not where all writes append."""
    return modes.S_ISREG(handle.stat.st_mode) and not handle.flags & APPEND


def _own(tree: Tree) -> dict[str, dict[str, Thing]]:
    """Return the namespaces that the tree does not share with the host, by kind and name."""
    ours, user = namespaces("self"), f"of process {tree.root.pid}"
    return {
        kind: {name: Thing(NAMESPACES[kind], user)}
        for kind, name in tree.root.namespaces.items()
        if kind in NAMESPACES and name != ours.get(kind)
    }


def _others(ours: Collection[int]) -> Iterator[int]:
    """Yield all other processes but the one that looks, which holds nothing of theirs."""
    left_out = {*ours, os.getpid()}
    numbers = (int(name) for name in os.listdir(PROC) if name.isdigit())
    return (pid for pid in numbers if pid not in left_out)


def _above(tree: Tree) -> list[int]:
    """Return the ancestors of a tree, which wait for it: unshare(1) inside its namespaces."""
    with contextlib.suppress(ProcessGone):
        return process.ancestors(tree.root.pid)
    return []


def _is_of(pid: int, tree: Tree) -> bool:
    """Return whether a process was born into the tree since that was read, or has ended since."""
    with contextlib.suppress(ProcessGone):
        return tree.root.pid in process.ancestors(pid)
    return True


def _of_those_above(things: Things) -> Things:
    """Leave out what a process above the tree may have too: its namespaces, and its positions."""
    alike = {target: ours for target, ours in things.alike.items() if target in ALIKE}
    return replace(things, alike=alike, namespaces={})


def _found_in(pid: int, things: Things) -> Iterator[Thing]:
    """Yield which of these things a process holds."""
    yield from _in_descriptors(pid, things)
    if things.memory:
        yield from _in_mappings(pid, things.memory)
    for kind, names in things.namespaces.items():
        name = os.readlink(f"{PROC}/{pid}/ns/{kind}")
        if name in names:
            yield names[name]


def _descriptors(pid: int) -> Iterator[tuple[str, str]]:
    place = f"{PROC}/{pid}/fd"
    for number in os.listdir(place):
        with contextlib.suppress(*VANISHED):
            yield number, os.readlink(f"{place}/{number}")


def _in_descriptors(pid: int, things: Things) -> Iterator[Thing]:
    for number, target in _descriptors(pid):
        if target in things.links:
            yield things.links[target]
        elif target in things.alike:
            handle = _same(things.alike[target], (pid, int(number)))
            if handle:
                yield Thing(ALIKE.get(target) or POSITION.format(target), handle.user)
        elif things.memory and target.startswith(MEMFD):
            with contextlib.suppress(*VANISHED):
                area = _area(os.stat(f"{PROC}/{pid}/fd/{number}"))
                if area in things.memory:
                    yield things.memory[area]


def _in_mappings(pid: int, memory: dict[Area, Thing]) -> Iterator[Thing]:
    for line in read(f"{PROC}/{pid}/maps").splitlines():
        _, rights, _, device, inode, *_ = line.split(maxsplit=5)
        if rights[3] == "s" and (device, inode) in memory:
            yield memory[device, inode]


def _same(ours: list[tuple[Untyped, Handle]], place: tuple[int, int]) -> Handle | None:
    """Return which handle of the tree is the same open file as a descriptor of another process."""
    at = bisect_left(ours, _rank(place), key=lambda ranked: ranked[0])
    if at == len(ours):
        return None
    handle = ours[at][1]
    return handle if _order((handle.pid, handle.number), place) == 0 else None


def _order(one: tuple[int, int], other: tuple[int, int]) -> int:
    """Compare two open files, each a PID and a descriptor: 0 if they are the same.

    The order is the kernel's, and the same for all comparisons. One that is gone is different.
    """
    answer = kcmp.compare(kcmp.FILE, one[0], other[0], one[1], other[1])
    return {kcmp.SAME: 0, kcmp.BEFORE: -1}.get(answer, 1)


_rank: Callable[[tuple[int, int]], Untyped] = cmp_to_key(_order)
