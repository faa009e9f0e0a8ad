"""Files: what CRIU opens again on the destination by its path, and compares as it does (files-reg.c of its source).

CRIU keeps the whole mode of each file and directory, and the size of regular ones that are not open for appending
only. For programs and libraries it compares the build-id too, where both have one. Deleted files travel along up to
``--ghost-limit``.

The tree runs while it is looked at. Programs that replace a file as a whole have a draft open for a moment, whose name
is gone in the next: what was found is told only while it is still so, and drafts that are gone are not asked for.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sojourn.preflight.finding import Finding, blocks, named
from sojourn.preflight.scan import DELETED, File, Tree

#: CRIU's default for ``--ghost-limit``: how much disk a deleted file may take that travels along.
GHOST_LIMIT_BYTES = 2**20

#: Major number of /dev/null, /dev/zero, /dev/urandom and the like, which CRIU opens by their path.
MEMORY_DEVICES = 1

#: Where CRIU looks for a build-id: the first megabyte.
BUILD_ID_BYTES = 2**20

#: How many offending files a sentence is told for, one finding each.
SHOWN = 5


@dataclass(frozen=True)
class Needed:
    """One path that must be there, as CRIU will compare it; ``mode`` and ``size`` are None where it does not."""

    path: str
    mode: int | None = None
    size: int | None = None
    build_id: str = ""
    changed_ns: int | None = None

    def to_json(self) -> list[str | int | None]:
        """Return it as a short list: there may be thousands."""
        return [self.path, self.mode, self.size, self.build_id, self.changed_ns]


def check(tree: Tree) -> Iterator[Finding]:
    """Yield what speaks against the files on the source."""
    for file in tree.files.values():
        finding = _ghost(file) if file.stat.st_nlink == 0 else _unreachable(file)
        if finding and file.is_held():
            yield finding


def needed(tree: Tree) -> list[Needed]:
    """Return what must be on the destination, each path once."""
    wanted = (file for file in tree.files.values() if file.stat.st_nlink and not _is_special(file))
    named = (file for file in wanted if file.path != "/" and not file.path.endswith(DELETED))
    return [_needed(file) for file in named if not file.written or file.is_held()]


def missing_or_different(files: Iterable[Needed]) -> Iterator[Finding]:
    """Yield what this host, the destination, lacks or has otherwise."""
    gone, other = [], []
    for file in files:
        difference = _difference(file)
        if difference == "":
            gone.append(file.path)
        elif difference:
            other.append(difference)
    hint = "Put the same files at the same paths on both hosts: shared storage, the same packages, or a copy."
    for path in gone[:SHOWN]:
        place = "/dev/shm is not shared between hosts" if path.startswith("/dev/shm/") else ""  # noqa: S108  (told, not used)
        yield blocks("FILE_MISSING", f"{path} is missing{': ' + place if place else ''}.", hint)
    if len(gone) > SHOWN:
        yield blocks("FILE_MISSING", f"{len(gone) - SHOWN} more files are missing: {named(gone[SHOWN:])}.", hint)
    for sentence in other[:SHOWN]:
        yield blocks("FILE_DIFFERS", sentence, hint)
    if len(other) > SHOWN:
        yield blocks("FILE_DIFFERS", f"{len(other) - SHOWN} more files differ.", hint)


def _ghost(file: File) -> Finding | None:
    taken = file.stat.st_blocks * 512
    if not modes.S_ISREG(file.stat.st_mode) or taken <= GHOST_LIMIT_BYTES:
        return None
    return blocks(
        "GHOST_TOO_LARGE",
        f"{file.path.removesuffix(DELETED)} ({file.user}) was deleted and has {taken} bytes; "
        f"CRIU takes deleted files of {GHOST_LIMIT_BYTES} bytes along.",
        "Restart the program if an upgrade replaced its files; else let it close the file.",
    )


def _unreachable(file: File) -> Finding | None:
    """Name a file that has another name than the one it was opened by, or whose name leads to another file now."""
    if _is_special(file):
        return None
    hint = "Let the program open it again: rename it back, or restart the program."
    try:
        now = os.stat(file.path, follow_symlinks=not modes.S_ISLNK(file.stat.st_mode))
    except OSError:
        name = file.path.removesuffix(DELETED)
        return blocks("FILE_DELETED", f"{name} ({file.user}) can not be found by that name any more.", hint)
    if (now.st_dev, now.st_ino) == (file.stat.st_dev, file.stat.st_ino):
        return None
    return blocks("FILE_DELETED", f"{file.path} ({file.user}) was replaced by another file of that name.", hint)


def _is_special(file: File) -> bool:
    """Whether CRIU does not open it by its path, or looks at it otherwise: processes' own files, devices, terminals."""
    mode = file.stat.st_mode
    if modes.S_ISCHR(mode):
        return os.major(file.stat.st_rdev) != MEMORY_DEVICES
    return modes.S_ISBLK(mode) or modes.S_ISSOCK(mode) or file.path.startswith(("/proc/", "/dev/pts/"))


def _needed(file: File) -> Needed:
    stat = file.stat
    return Needed(
        path=file.path,
        mode=stat.st_mode,
        size=stat.st_size if file.sized else None,
        build_id=build_id(file.link, stat.st_dev, stat.st_ino, stat.st_mtime_ns) if file.mapped else "",
        changed_ns=stat.st_mtime_ns if file.written else None,
    )


def _difference(file: Needed) -> str | None:
    """Return a sentence on how the file differs here, "" if it is missing, None if it is the same to CRIU."""
    try:
        here = os.stat(file.path)
    except OSError:
        return ""
    if file.mode is not None and here.st_mode != file.mode:
        return f"{file.path} has mode 0{here.st_mode:o}, and 0{file.mode:o} on the source."
    if file.size is not None and here.st_size != file.size and not _was_written_since(file, here.st_mtime_ns):
        return f"{file.path} has {here.st_size} bytes, and {file.size} on the source."
    if file.build_id and build_id(file.path, here.st_dev, here.st_ino, here.st_mtime_ns) not in {"", file.build_id}:
        return f"{file.path} has another build-id than on the source."
    return None


def _was_written_since(file: Needed, changed_ns: int) -> bool:
    """Whether this is a file on shared storage that the process has gone on writing since the source looked.

    A copy of it would be as old as the copying, and the file on the source is written on.
    """
    return file.changed_ns is not None and changed_ns > file.changed_ns


@lru_cache(maxsize=4096)
def build_id(path: str, device: int, inode: int, changed_ns: int) -> str:  # noqa: ARG001  (they are the cache's key)
    """Return a file's build-id in hexadecimal digits, "" if it has none; read once for each state of the file."""
    with contextlib.suppress(OSError, struct.error), Path(path).open("rb") as file:
        head = file.read(64)
        if head[:4] == b"\x7fELF":
            file.seek(0)
            return _build_id(file.read(BUILD_ID_BYTES))
    return ""


#: ELF numbers (elf(5)): the segment that holds notes, and the note that is the build-id.
PT_NOTE, NT_GNU_BUILD_ID, CLASS_64 = 4, 3, 2


def _build_id(data: bytes) -> str:
    """Find the build-id among the notes of an ELF file; raises struct.error where it is cut short."""
    wide = data[4] == CLASS_64
    order = "<" if data[5] == 1 else ">"
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", data, 54 if wide else 42)
    for position in range(table, table + size * count, size):
        (kind,) = struct.unpack_from(order + "I", data, position)
        if kind == PT_NOTE:
            offset = struct.unpack_from(order + ("Q" if wide else "I"), data, position + (8 if wide else 4))[0]
            length = struct.unpack_from(order + ("Q" if wide else "I"), data, position + (32 if wide else 16))[0]
            found = _note(data[offset : offset + length], order)
            if found:
                return found
    return ""


def _note(notes: bytes, order: str) -> str:
    position = 0
    while position + 12 <= len(notes):
        name, size, kind = struct.unpack_from(order + "III", notes, position)
        begin = position + 12 + _padded(name)
        if kind == NT_GNU_BUILD_ID:
            return notes[begin : begin + size].hex()
        position = begin + _padded(size)
    return ""


def _padded(size: int) -> int:
    return (size + 3) // 4 * 4
