"""Names of Unix sockets in file systems: whether the restore may take them on the destination.

CRIU makes room for a socket of the tree by removing whatever socket has its name (``unlink_sk`` in
its sk-unix.c), be it another program's. So a name must be free there, or a file that no socket of
that host is bound to any more, or the tree's own file on storage that both hosts see. A socket that
has lost its name is one of these too: CRIU binds it for an instant.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.model import Untyped
from sojourn.preflight import same_file, sockets
from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.same_file import FileSystems
from sojourn.preflight.scan import DELETED, VANISHED, Tree
from sojourn.system import process
from sojourn.system.unix_socket import file_of, is_bound, name_of

CLOSE_IT = (
    "Have the program close the socket that has lost this name, or restart it; if nobody listens "
    "at the name any more, remove the file."
)


@dataclass(frozen=True)
class Name:
    """A path that a socket of the tree is bound to.

    ``inode`` is that of its file, 0 once the socket has lost its name. ``marks`` and ``place`` are
    those of the file and of its directory (``same_file``).
    """

    path: str
    inode: int
    marks: tuple[str, ...] = ()
    place: tuple[str, ...] = ()

    def to_json(self) -> list[Untyped]:
        """Return it as a short list."""
        return list(astuple(self))

    @classmethod
    def from_json(cls, fields: list[Untyped]) -> Name:
        """Read back what ``to_json`` wrote."""
        path, inode, marks, place = fields
        return cls(path, inode, tuple(marks), tuple(place))


def of_tree(tree: Tree) -> list[Name]:
    """Return the names of a tree's sockets, on the source."""
    ours = sockets.inodes(tree)
    bound = sockets.unix_names(tree.root.pid) if ours else {}
    found = {}
    for inode, name in bound.items():
        if inode in ours and not name.startswith("@"):
            file = file_of(ours[inode].pid, ours[inode].number)
            if file:
                # CRIU binds it to the same name again, unless it is relative.
                bound_to = name if name.startswith("/") else file[0].removesuffix(DELETED)
                found[name_of(bound_to, file) or bound_to] = file[1]
    return [named(path, inode) for path, inode in sorted(found.items())]


def named(path: str, inode: int | None = None) -> Name:
    """Return a name of this host; the socket has lost it if its file is another one by now."""
    systems = same_file.file_systems()
    with contextlib.suppress(OSError):
        here = os.lstat(path)
        if modes.S_ISSOCK(here.st_mode) and inode in {None, here.st_ino}:
            marks = same_file.marks(path, path, here, systems)
            return Name(path, here.st_ino, marks, _place(path, systems))
    return Name(path, 0, (), _place(path, systems))


def taken(names: Iterable[Name]) -> Iterator[Finding]:
    """Yield the names that the restore may not take on this host, the destination."""
    systems = same_file.file_systems()
    for name in names:
        with contextlib.suppress(OSError):  # nothing is there
            yield from _taken(name, systems)


def shared(names: Iterable[Name]) -> list[str]:
    """Return those names whose files are the tree's own on this host too, the destination."""
    systems = same_file.file_systems()
    return [name.path for name in names if same_file.is_here(name.path, name.marks, systems)]


def _taken(name: Name, systems: FileSystems) -> Iterator[Finding]:
    path = name.path
    if not modes.S_ISSOCK(os.lstat(path).st_mode):
        sentence = f"The tree has a Unix socket named {path}, where this host has another kind of"
        yield _block(f"{sentence} file.", "Move that file, if nobody needs it.")
        return
    if same_file.is_here(name.path, name.marks, systems):
        return
    bound = is_bound(path)
    owner = _owner(path) if bound else ""
    if owner:
        yield _block(f"The name {path} of a Unix socket is taken by {owner}.", sockets.STOP_USER)
    # What a socket of another host is bound to looks dead from here.
    elif {*_place(path, systems)}.intersection(name.place):
        sentence = f"The name {path} of a Unix socket may belong to a program of another host"
        yield _block(f"{sentence}, which sees the same storage.", CLOSE_IT)
    elif bound:
        sentence = f"The name {path} of a Unix socket is taken, by a program that was not found."
        yield _block(sentence, sockets.STOP_USER)


def _block(sentence: str, hint: str) -> Finding:
    return blocks("SOCKET_TAKEN", sentence, hint)


def _owner(path: str) -> str:
    """Return, for a sentence, which process of this host is bound to a file; "" if none is seen."""
    last, file = Path(path).name, os.lstat(path).st_ino
    names = sockets.unix_names("self")
    candidates = {inode for inode, name in names.items() if Path(name).name == last}
    for stat in process.everything() if candidates else ():
        with contextlib.suppress(*VANISHED, ProcessGone, PermissionError):
            for link in process.descriptors(stat.pid, "socket:"):
                if link.stat().st_ino in candidates:
                    found = file_of(stat.pid, int(link.name))
                    if found and found[1] == file:
                        return f"process {stat.pid} ({stat.name})"
    return ""


def _place(path: str, systems: FileSystems) -> tuple[str, ...]:
    directory = str(Path(path).parent)
    try:
        # The setting ``shared_paths`` vouches for what is below a path.
        return same_file.marks(f"{directory}/", directory, Path(directory).stat(), systems)
    except OSError:
        return ()
