"""One pass over ``/proc`` that reads a whole tree: its tasks, descriptors, files and mappings.

Each file of ``/proc`` is read once, and nothing is changed. What CRIU compares or refuses is
decided elsewhere, from what is collected here. A process or descriptor that ends meanwhile is
skipped; only the root must exist.

There may be thousands of descriptors, and a check should take only a moment. So paths are plain
text here, and files are read without the layers of ``open``, which take longer than the kernel
does.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from sojourn.errors import ProcessGone
from sojourn.system.mounts import mounted
from sojourn.system.process import PROC

#: Namespaces of a task, as ``/proc/PID/ns`` names them. Of time namespaces CRIU restores the one
#: for children.
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")

#: Lines of a thread's status that show whether it may speculate, and whether it is under seccomp.
SPECULATION = ("Speculation_Store_Bypass", "SpeculationIndirectBranch", "Seccomp")

DELETED = " (deleted)"

#: What the kernel calls memory that only its process can read (memfd_secret(2)).
UNREADABLE = "/secretmem"

#: What the kernel calls memory without a file of its own, in ``/proc/PID/maps``.
MEMORY = ("/dev/zero", "/memfd:", "/SYSV", UNREADABLE)

READ_BYTES = 2**16

#: Errors from a task or descriptor that ends while it is read.
VANISHED = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Task:
    """One process of the tree.

    ``tracers``, ``states`` and ``speculation`` are by thread. ``own_pid``, ``ids``, ``group`` and
    ``session`` are numbers of its own PID namespace; ``parent`` is one of this host's.
    """

    pid: int
    name: str
    own_pid: int
    ids: tuple[int, ...]
    group: int
    session: int
    in_own_namespace: bool
    tracers: dict[int, int]
    states: dict[int, str]
    memory_bytes: dict[str, int]
    namespaces: dict[str, str]
    speculation: dict[int, dict[str, str]] = field(default_factory=dict)
    parent: int = 0


@dataclass
class File:
    """Something with a path that CRIU opens on the destination; ``sized`` if it compares the size.

    ``link`` is the link in ``/proc`` that leads to it: that of a mapping if there is one, since
    programs close the files that they have mapped.
    """

    path: str
    stat: os.stat_result
    user: str
    link: str
    sized: bool = False
    written: bool = False
    mapped: bool = False

    def is_held(self) -> bool:
        """Return whether the program has neither replaced, renamed nor closed it meanwhile."""
        try:
            path, now = os.readlink(self.link), os.stat(self.link)
        except OSError:
            return False
        return (path, now.st_dev, now.st_ino) == (self.path, self.stat.st_dev, self.stat.st_ino)


@dataclass(frozen=True)
class Handle:
    """One descriptor: its process, its number, its target, and ``/proc/PID/fdinfo`` if read."""

    pid: int
    number: int
    target: str
    stat: os.stat_result
    flags: int = 0
    info: tuple[str, ...] = ()

    @property
    def user(self) -> str:
        """The descriptor and its process, for sentences."""
        return f"descriptor {self.number} of process {self.pid}"

    @property
    def link(self) -> str:
        """The link in ``/proc`` that leads to it."""
        return f"{PROC}/{self.pid}/fd/{self.number}"


@dataclass
class Shared:
    """A mapping that other processes see the writes of, the same for all that have mapped it."""

    path: str
    pid: int
    written: bool


@dataclass
class Tree:
    """A whole tree as it was found, parents first.

    ``areas`` are named areas of memory that are not files: their links by PID and name. ``shared``
    are shared mappings of files and of memory, by device and inode as ``/proc/PID/maps`` has them.
    ``code`` has the rights of each process's first executable mapping, as that file has them.
    """

    tasks: list[Task] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    files: dict[tuple[str, int, int], File] = field(default_factory=dict)
    areas: dict[tuple[int, str], str] = field(default_factory=dict)
    shared: dict[tuple[str, str], Shared] = field(default_factory=dict)
    code: dict[int, str] = field(default_factory=dict)

    @property
    def root(self) -> Task:
        """The process that was requested."""
        return self.tasks[0]

    @property
    def pids(self) -> set[int]:
        """The PIDs of its processes as this host numbers them."""
        return {task.pid for task in self.tasks}

    def add(self, file: File) -> None:
        """Add a file, once for all its users."""
        known = self.files.setdefault((file.path, file.stat.st_dev, file.stat.st_ino), file)
        known.sized |= file.sized
        known.written |= file.written
        if file.mapped and not known.mapped:
            known.mapped, known.link = True, file.link


def scan(pid: int) -> Tree:
    """Read a tree. Raises ProcessGone if its root is not there."""
    tree = Tree()
    mapped: set[tuple[str, str, str]] = set()
    for member in _family(pid):
        with contextlib.suppress(*VANISHED):
            task = _task(member)
            tree.tasks.append(task)
            if task.states.get(member) != "Z":
                # A zombie has neither directories nor descriptors nor memory left; it only takes
                # its PID.
                _places(tree, member)
                _descriptors(tree, member)
                _mappings(tree, member, mapped)
    if not tree.tasks or tree.root.pid != pid:
        raise ProcessGone(f"There is no process {pid} on this host.")
    return tree


def files_on(pids: Iterable[int], devices: Collection[int]) -> list[File]:
    """Return what some processes use on given file systems: quickly, as they may be frozen."""
    tree, mapped = Tree(), set[tuple[str, str, str]]()
    for pid in pids:
        with contextlib.suppress(*VANISHED):
            _places(tree, pid)
            _descriptors(tree, pid, devices)
            _mappings(tree, pid, mapped)
    return [file for file in tree.files.values() if file.stat.st_dev in devices]


def _family(pid: int) -> list[int]:
    """Return the process and its descendants, parents first (proc_pid_task(5), ``children``)."""
    found = [pid]
    for parent in found:  # grows while it is walked
        with contextlib.suppress(*VANISHED):
            for thread in os.listdir(f"{PROC}/{parent}/task"):
                with contextlib.suppress(*VANISHED):
                    children = read(f"{PROC}/{parent}/task/{thread}/children").split()
                    found += [int(child) for child in children]
    return found


def _task(pid: int) -> Task:
    place = f"{PROC}/{pid}"
    threads: dict[int, dict[str, str]] = {}
    for thread in os.listdir(f"{place}/task"):
        with contextlib.suppress(*VANISHED):
            threads[int(thread)] = _status(f"{place}/task/{thread}")
    main = threads[pid] if pid in threads else _status(place)
    return Task(
        pid=pid,
        name=main["Name"],
        own_pid=_innermost(main["NSpid"]),
        ids=tuple(_innermost(status["NSpid"]) for status in threads.values()),
        group=_innermost(main["NSpgid"]),
        session=_innermost(main["NSsid"]),
        in_own_namespace=len(main["NSpid"].split()) > 1,
        tracers={
            tid: int(status["TracerPid"])
            for tid, status in threads.items()
            if status["TracerPid"] != "0"
        },
        states={tid: status["State"][0] for tid, status in threads.items()},
        memory_bytes={key: _bytes(main.get(key, "0")) for key in ("RssAnon", "RssShmem", "VmSwap")},
        namespaces=namespaces(pid),
        parent=int(main["PPid"]),
        speculation={
            tid: {key: status[key] for key in SPECULATION if key in status}
            for tid, status in threads.items()
        },
    )


def namespaces(pid: int | str) -> dict[str, str]:
    """Return the namespaces of a process by their names; empty for a zombie."""
    found = {}
    for name in NAMESPACES:
        with contextlib.suppress(*VANISHED):
            found[name] = os.readlink(f"{PROC}/{pid}/ns/{name}")
    return found


def read(path: str) -> str:
    """Return a file of ``/proc``; what is not UTF-8 is replaced."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Files of ``/proc`` have no size, and long ones come in parts: only an empty part is the
        # end.
        parts = [os.read(descriptor, READ_BYTES)]
        while parts[-1]:
            parts.append(os.read(descriptor, READ_BYTES))
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


def _status(place: str) -> dict[str, str]:
    lines = read(f"{place}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _innermost(ids: str) -> int:
    return int(ids.rsplit(maxsplit=1)[-1])


def _bytes(size: str) -> int:
    return int(size.split(maxsplit=1)[0]) * 1024


def _places(tree: Tree, pid: int) -> None:
    """Add the working directory, the root directory and the program."""
    for name in ("cwd", "root", "exe"):
        link = f"{PROC}/{pid}/{name}"
        with contextlib.suppress(*VANISHED, PermissionError):
            user, is_program = f"{name} of process {pid}", name == "exe"
            path, stat = os.readlink(link), os.stat(link)
            tree.add(File(path, stat, user, link, sized=is_program, mapped=is_program))


def _descriptors(tree: Tree, pid: int, devices: Collection[int] | None = None) -> None:
    for number in os.listdir(f"{PROC}/{pid}/fd"):
        with contextlib.suppress(*VANISHED):
            if devices is not None and os.stat(f"{PROC}/{pid}/fd/{number}").st_dev not in devices:
                continue
            handle = _handle(pid, number)
            tree.handles.append(handle)
            if handle.target.startswith("/") and not handle.target.startswith(MEMORY[1:]):
                tree.add(_opened(handle))


def _handle(pid: int, number: str) -> Handle:
    link = f"{PROC}/{pid}/fd/{number}"
    target, stat = os.readlink(link), os.stat(link)
    if not target.startswith(("/", "anon_inode:", "pidfd:")):
        return Handle(pid, int(number), target, stat)
    lines = read(f"{PROC}/{pid}/fdinfo/{number}").splitlines()
    # The position and the flags are the first two lines (proc_pid_fdinfo(5)).
    flags = next((line[7:] for line in lines[:2] if line.startswith("flags:")), "0")
    return Handle(pid, int(number), target, stat, int(flags, 8), tuple(lines[2:]))


#: Bits of ``flags`` in fdinfo (open(2)); the access mode is in the lowest two.
ACCESS_MODE, WRITE_ONLY, APPEND = 0o3, 0o1, 0o2000


def _opened(handle: Handle) -> File:
    """Return the file of a descriptor.

    CRIU does not compare the size of a file that is open for appending only, since such files are
    logs, and grow (``should_check_size`` in its files-reg.c).
    """
    access = handle.flags & ACCESS_MODE
    is_log = access == WRITE_ONLY and bool(handle.flags & APPEND)
    regular = modes.S_ISREG(handle.stat.st_mode)
    return File(
        path=handle.target,
        stat=handle.stat,
        user=handle.user,
        link=handle.link,
        sized=regular and not is_log,
        written=regular and access != 0,
    )


def _mappings(tree: Tree, pid: int, seen: set[tuple[str, str, str]]) -> None:
    """Add mapped files, once for the whole tree, and named areas of memory."""
    for line in read(f"{PROC}/{pid}/maps").splitlines():
        area, rights, _, device, inode, *path = line.split(maxsplit=5)
        if rights[2] == "x":
            tree.code.setdefault(pid, rights)
        if path and rights[3] == "s" and inode != "0":
            known = tree.shared.setdefault((device, inode), Shared(path[0], pid, written=False))
            known.written |= rights[1] == "w"
        if not path or path[0].startswith("[") or path[0].startswith(MEMORY[:2]):
            continue
        link = behind(pid, area)
        if path[0].startswith(("/SYSV", UNREADABLE, "/anon_hugepage", "anon_inode:", "socket:")):
            tree.areas.setdefault((pid, path[0]), link)
        elif (device, inode, path[0]) not in seen:
            seen.add((device, inode, path[0]))
            _mapped(
                tree,
                link,
                f"mapped by process {pid}",
                shared_and_written="w" in rights and "s" in rights,
            )


def _mapped(tree: Tree, link: str, user: str, *, shared_and_written: bool) -> None:
    with contextlib.suppress(*VANISHED):
        path, stat = os.readlink(link), os.stat(link)
        tree.add(File(path, stat, user, link, sized=True, written=shared_and_written, mapped=True))


def behind(pid: int, area: str) -> str:
    """Return the link to what is mapped in an area: named by its bounds without leading zeros."""
    plain = "-".join(f"{int(bound, 16):x}" for bound in area.split("-"))
    return f"{PROC}/{pid}/map_files/{plain}"


#: File systems whose files CRIU cannot find again by their handles.
WITHOUT_HANDLES = {"overlay", "proc"}


def without_handles(pid: int) -> Iterator[int]:
    """Yield the device numbers of such file systems that a process has mounted, as in fdinfo.

    The kernel's own encoding has the minor number in the lowest 20 bits.
    """
    for mount in mounted(pid):
        if mount.kind in WITHOUT_HANDLES:
            major, minor = mount.device
            yield major << 20 | minor
