"""One pass over ``/proc`` that reads a tree whole: its tasks, descriptors, files and mappings. Touches nothing.

Each file of ``/proc`` is read once. What CRIU compares or refuses is decided elsewhere, from what is collected here.
A process or descriptor that ends meanwhile is passed over; only the root must be there.

There may be thousands of descriptors, and a check should be over in a moment; so paths are plain text here, and files
are read without the layers of ``open``, which take longer than the kernel does.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field

from sojourn.errors import ProcessGone
from sojourn.process import PROC

#: Namespaces of a task, as ``/proc/PID/ns`` names them. Of a time namespace it is the children's that CRIU rebuilds.
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")

DELETED = " (deleted)"

#: What the kernel calls memory without a file of its own, in ``/proc/PID/maps``.
MEMORY = ("/dev/zero", "/memfd:", "/SYSV")

READ_BYTES = 2**16

#: A task or descriptor that ends while it is looked at.
VANISHED = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Task:
    """One process of the tree. ``tracers`` and ``states`` are by thread; ids are those of its own PID namespace."""

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


@dataclass
class File:
    """Something with a path that CRIU opens again on the destination; ``sized`` if it compares the size.

    ``link`` is where ``/proc`` leads to it: a mapping's where there is one, since programs close what they have mapped.
    """

    path: str
    stat: os.stat_result
    user: str
    link: str
    sized: bool = False
    written: bool = False
    mapped: bool = False

    def is_held(self) -> bool:
        """Whether it still is what it was when it was found: a program may have replaced, renamed or closed it."""
        try:
            path, now = os.readlink(self.link), os.stat(self.link)
        except OSError:
            return False
        return (path, now.st_dev, now.st_ino) == (self.path, self.stat.st_dev, self.stat.st_ino)


@dataclass(frozen=True)
class Handle:
    """One descriptor: whose, its number, what it leads to, and what ``/proc/PID/fdinfo`` says where it was asked."""

    pid: int
    number: int
    target: str
    stat: os.stat_result
    flags: int = 0
    info: tuple[str, ...] = ()

    @property
    def user(self) -> str:
        """Who has it, for sentences."""
        return f"descriptor {self.number} of process {self.pid}"

    @property
    def link(self) -> str:
        """Where ``/proc`` leads to it."""
        return f"{PROC}/{self.pid}/fd/{self.number}"


@dataclass
class Tree:
    """A whole tree as it was found; parents first."""

    tasks: list[Task] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    files: dict[tuple[str, int, int], File] = field(default_factory=dict)
    areas: dict[tuple[int, str], str] = field(default_factory=dict)

    @property
    def root(self) -> Task:
        """The process that was asked for."""
        return self.tasks[0]

    @property
    def pids(self) -> set[int]:
        """The PIDs of its processes as this host numbers them."""
        return {task.pid for task in self.tasks}

    def add(self, file: File) -> None:
        """Take in a file, once, whoever uses it."""
        known = self.files.setdefault((file.path, file.stat.st_dev, file.stat.st_ino), file)
        known.sized |= file.sized
        known.written |= file.written
        if file.mapped and not known.mapped:
            known.mapped, known.link = True, file.link


def scan(pid: int) -> Tree:
    """Read a tree. Raises ProcessGone if its root is not there."""
    tree = Tree()
    mapped: set[tuple[str, str, str]] = set()
    for each in _family(pid):
        with contextlib.suppress(*VANISHED):
            task = _task(each)
            tree.tasks.append(task)
            if task.states.get(each) != "Z":
                _places(tree, each)
                _descriptors(tree, each)
                _mappings(tree, each, mapped)
    if not tree.tasks or tree.root.pid != pid:
        raise ProcessGone(f"There is no process {pid} on this host.")
    return tree


def _family(pid: int) -> list[int]:
    """Return the process and its descendants, parents first (proc_pid_task(5), ``children``; CRIU needs it too)."""
    found = [pid]
    for each in found:  # grows while it is walked
        with contextlib.suppress(*VANISHED):
            for thread in os.listdir(f"{PROC}/{each}/task"):
                with contextlib.suppress(*VANISHED):
                    found += [int(child) for child in _read(f"{PROC}/{each}/task/{thread}/children").split()]
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
        ids=tuple(_innermost(said["NSpid"]) for said in threads.values()),
        group=_innermost(main["NSpgid"]),
        session=_innermost(main["NSsid"]),
        in_own_namespace=len(main["NSpid"].split()) > 1,
        tracers={tid: int(said["TracerPid"]) for tid, said in threads.items() if said["TracerPid"] != "0"},
        states={tid: said["State"][0] for tid, said in threads.items()},
        memory_bytes={key: _bytes(main.get(key, "0")) for key in ("RssAnon", "RssShmem", "VmSwap")},
        namespaces=namespaces(pid),
    )


def namespaces(pid: int | str) -> dict[str, str]:
    """Return the namespaces of a process by their names; empty for a zombie."""
    found = {}
    for name in NAMESPACES:
        with contextlib.suppress(*VANISHED):
            found[name] = os.readlink(f"{PROC}/{pid}/ns/{name}")
    return found


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = [os.read(descriptor, READ_BYTES)]
        while parts[-1]:
            parts.append(os.read(descriptor, READ_BYTES))
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace")


def _status(place: str) -> dict[str, str]:
    lines = _read(f"{place}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _innermost(ids: str) -> int:
    return int(ids.rsplit(maxsplit=1)[-1])


def _bytes(said: str) -> int:
    return int(said.split(maxsplit=1)[0]) * 1024


def _places(tree: Tree, pid: int) -> None:
    """Take in the working directory, the root and the program."""
    for name in ("cwd", "root", "exe"):
        link = f"{PROC}/{pid}/{name}"
        with contextlib.suppress(*VANISHED, PermissionError):
            user, is_program = f"{name} of process {pid}", name == "exe"
            tree.add(File(os.readlink(link), os.stat(link), user, link, sized=is_program, mapped=is_program))


def _descriptors(tree: Tree, pid: int) -> None:
    for number in os.listdir(f"{PROC}/{pid}/fd"):
        with contextlib.suppress(*VANISHED):
            handle = _handle(pid, number)
            tree.handles.append(handle)
            if handle.target.startswith("/") and not handle.target.startswith(MEMORY[1:]):
                tree.add(_opened(handle))


def _handle(pid: int, number: str) -> Handle:
    link = f"{PROC}/{pid}/fd/{number}"
    target, stat = os.readlink(link), os.stat(link)
    if not target.startswith(("/", "anon_inode:", "pidfd:")):
        return Handle(pid, int(number), target, stat)
    lines = _read(f"{PROC}/{pid}/fdinfo/{number}").splitlines()
    flags = next((line[7:] for line in lines[:2] if line.startswith("flags:")), "0")
    return Handle(pid, int(number), target, stat, int(flags, 8), tuple(lines[2:]))


#: Bits of ``flags`` in fdinfo (open(2)); the access mode is in the lowest two.
ACCESS_MODE, WRITE_ONLY, APPEND = 0o3, 0o1, 0o2000


def _opened(handle: Handle) -> File:
    """Return the file of a descriptor. CRIU does not compare the size of one that is open for appending only.

    See ``should_check_size`` in CRIU's files-reg.c: such files are logs, and grow.
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
    """Take in mapped files, each once in the whole tree, and areas of memory that have a name."""
    for line in _read(f"{PROC}/{pid}/maps").splitlines():
        area, rights, _, device, inode, *path = line.split(maxsplit=5)
        if not path or path[0].startswith("[") or path[0].startswith(MEMORY[:2]):
            continue
        link = f"{PROC}/{pid}/map_files/{_plain(area)}"
        if path[0].startswith(("/SYSV", "/anon_hugepage", "anon_inode:", "socket:")):
            tree.areas.setdefault((pid, path[0]), link)
        elif (device, inode, path[0]) not in seen:
            seen.add((device, inode, path[0]))
            _mapped(tree, link, f"mapped by process {pid}", shared_and_written="w" in rights and "s" in rights)


def _mapped(tree: Tree, link: str, user: str, *, shared_and_written: bool) -> None:
    with contextlib.suppress(*VANISHED):
        path, stat = os.readlink(link), os.stat(link)
        tree.add(File(path, stat, user, link, sized=True, written=shared_and_written, mapped=True))


def _plain(area: str) -> str:
    """Return the name of an area in ``map_files``: the same bounds without leading zeros."""
    return "-".join(f"{int(bound, 16):x}" for bound in area.split("-"))


#: File systems whose files CRIU can not find again by their handles.
WITHOUT_HANDLES = {"overlay", "proc"}


def without_handles(pid: int) -> Iterator[int]:
    """Yield the device numbers of those that a process has mounted (proc_pid_mountinfo(5)), as fdinfo writes them."""
    for line in _read(f"{PROC}/{pid}/mountinfo").splitlines():
        words = line.split()
        if words[words.index("-") + 1] in WITHOUT_HANDLES:
            major, minor = (int(number) for number in words[2].split(":"))
            yield major << 20 | minor
