"""Files that CRIU opens on the destination by path, and compares (files-reg.c of its source).

CRIU compares the whole mode of each file and directory, and the size of regular files that are not
open for appending only. For programs and libraries it also compares the build ID, where both files
have one; here they must have it both. Deleted files are migrated up to the size of
``--ghost-limit``, those in memory always.

That is not enough. Equal size is not equal content: what the tree reads is compared too, unless
both were changed at the same instant, as files of one package are, or have the same build ID.

Still less is it enough for what the tree writes: a copy of equal size is another file, in which a
database would find other pages than it remembers. Such a file must be the same object on both hosts
(``same_file``), or its content is compared while the tree is frozen (``tasks/dump.py``). A log that
is open for appending only is exempt, as with CRIU: on each host it has its own history.

The tree runs while it is checked. Programs that replace a file atomically have a temporary file
open for a moment, whose name is gone in the next. So a finding is reported only if it is still
true, and temporary files that are gone are not required on the destination.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat as modes
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path

from sojourn.criu.commands import GHOST_LIMIT_BYTES
from sojourn.model import Untyped
from sojourn.preflight.finding import Finding, blocks, named
from sojourn.preflight.holders import users_of
from sojourn.preflight.same_file import FileSystems, file_systems, marks
from sojourn.preflight.scan import DELETED, File, Tree
from sojourn.system import process
from sojourn.system.mounts import tmpfses

#: Major number of /dev/null, /dev/zero, /dev/urandom and the like, which CRIU opens by path.
MEMORY_DEVICES = 1

#: Where CRIU looks for a build ID: the first megabyte of a file.
BUILD_ID_BYTES = 2**20

#: How often a finding is checked again before it is reported.
CONFIRMATIONS = 3

#: How many offending files are named, in one finding each.
SHOWN = 5

SAME_FILES = (
    "Put the same files at the same paths on both hosts: use shared storage, or install the same "
    "packages. A copy will do for what the program only reads."
)
SHARED_FILE = (
    "Put it on storage that both hosts see (the setting `shared_paths`, where that is not known as "
    "such), or have the program close it: a copy would not follow what the program writes."
)

#: Caches of names, which nscd(8) and sssd(8) write for all programs of their host.
OF_THE_HOST = ("/run/nscd/", "/var/cache/nscd/", "/var/db/nscd/", "/var/lib/sss/mc/")

#: How much is read while the tree is frozen, to compare files that both hosts have: a tenth of a
#: second at most.
COMPARED_BYTES = 2**26


@dataclass(frozen=True)
class Needed:
    """One path that must exist on the destination, with what CRIU compares.

    ``mode`` and ``size`` are None where CRIU does not compare them; ``owner``: user and group.
    ``written``: the tree writes it; ``marks``: by these it is recognised as the same object then.
    ``fingerprint``: its content, if it was looked at; ``changed_ns``: when that was changed last.
    """

    path: str
    mode: int | None = None
    size: int | None = None
    build_id: str = ""
    owner: tuple[int, int] | None = None
    written: bool = False
    marks: tuple[str, ...] = ()
    changed_ns: int = 0
    fingerprint: str = ""

    def to_json(self) -> list[Untyped]:
        """Return it as a short list: there may be thousands."""
        return list(astuple(self))

    @classmethod
    def from_json(cls, fields: list[Untyped]) -> Needed:
        """Read back what ``to_json`` wrote."""
        path, mode, size, build_id, owner, written, marks, *content = fields
        owner = None if owner is None else (owner[0], owner[1])
        return cls(path, mode, size, build_id, owner, written, tuple(marks), *content)


def check(tree: Tree) -> Iterator[Finding]:
    """Yield the findings for the files of a tree, on the source."""
    for file in tree.files.values():
        finding = _finding(file)
        if finding and _persists(file):
            yield finding


def needed(tree: Tree) -> list[Needed]:
    """Return the files that must exist on the destination, without repetition."""
    wanted = (file for file in tree.files.values() if file.stat.st_nlink and not _is_special(file))
    named = (file for file in wanted if file.path != "/" and not file.path.endswith(DELETED))
    systems = file_systems()
    found = [_needed(file, systems) for file in named if not file.written or file.is_held()]
    return list(_with_content(found, {file.path: file for file in tree.files.values()}))


def missing_or_different(files: Collection[Needed]) -> Iterator[Finding]:
    """Yield which files are missing or different on this host, the destination."""
    gone, other, systems = [], [], file_systems()
    for file in files:
        difference = _difference(file, systems)
        if difference == "":
            gone.append(file)
        elif difference:
            other.append((difference, _hint(file)))
    for file in gone[:SHOWN]:
        yield blocks("FILE_MISSING", f"{file.path} is missing.", _hint(file))
    if len(gone) > SHOWN:
        rest = named(file.path for file in gone[SHOWN:])
        more = f"{len(gone) - SHOWN} more files are missing: {rest}."
        yield blocks("FILE_MISSING", more, SAME_FILES)
    for sentence, hint in other[:SHOWN]:
        yield blocks("FILE_DIFFERS", sentence, hint)
    yield from _too_large(to_compare(files))
    yield from _in_use(to_compare(files))
    if len(other) > SHOWN:
        yield blocks("FILE_DIFFERS", f"{len(other) - SHOWN} more files differ.", SAME_FILES)


def _hint(file: Needed) -> str:
    return SHARED_FILE if file.written else SAME_FILES


def to_compare(files: Iterable[Needed]) -> list[Needed]:
    """Return what the tree writes and this host, the destination, has another object of."""
    systems = file_systems()
    return [file for file in files if file.written and not _is_the_same(file, systems)]


def _is_the_same(file: Needed, systems: FileSystems) -> bool:
    try:
        here = marks(file.path, file.path, os.stat(file.path), systems)
        return bool({*here}.intersection(file.marks))
    except OSError:
        return False


def _in_use(files: list[Needed]) -> Iterator[Finding]:
    for path, pid in users_of({file.path for file in files}).items():
        yield blocks(
            "FILE_DIFFERS",
            f"Process {pid} ({process.program(pid)}) of this host has {path} open, which the tree "
            "would write to as well.",
            "Stop that process, or choose another destination.",
        )


def _too_large(files: list[Needed]) -> Iterator[Finding]:
    if sum(file.size or 0 for file in files) > COMPARED_BYTES:
        largest = max(files, key=lambda file: file.size or 0)
        yield blocks(
            "FILE_DIFFERS",
            f"The program writes {largest.path}, and this host has another file of that name, not "
            "the same one; it is too large to be compared while the program is frozen.",
            SHARED_FILE,
        )


def _finding(file: File) -> Finding | None:
    return _ghost(file) if file.stat.st_nlink == 0 else _unreachable(file)


def _persists(file: File) -> bool:
    """Return whether the program still has the file, and the finding is still true."""
    # A program that replaces a file all the time reuses the descriptor, the name and, after two
    # rounds, the inode number: its next temporary file may look like the one that was scanned. Such
    # a coincidence does not last.
    return all(file.is_held() and _finding(file) for _ in range(CONFIRMATIONS))


def _ghost(file: File) -> Finding | None:
    taken = file.stat.st_blocks * 512
    if not modes.S_ISREG(file.stat.st_mode) or taken <= GHOST_LIMIT_BYTES:
        return None
    if file.stat.st_dev in tmpfses():
        return None  # it is memory, of which there is no limit
    return blocks(
        "GHOST_TOO_LARGE",
        f"{file.path.removesuffix(DELETED)} ({file.user}) is deleted and has {taken} bytes; "
        f"CRIU migrates deleted files of up to {GHOST_LIMIT_BYTES} bytes.",
        "Restart the program if an upgrade replaced its files; otherwise have it close the file.",
    )


def _unreachable(file: File) -> Finding | None:
    """Find a file that can no longer be opened by the path that it was opened by."""
    if _is_special(file):
        return None
    hint = "Rename the file back, or restart the program so that it opens the file again."
    try:
        now = os.stat(file.path, follow_symlinks=not modes.S_ISLNK(file.stat.st_mode))
    except OSError:
        name = file.path.removesuffix(DELETED)
        return blocks(
            "FILE_DELETED", f"{name} ({file.user}) can no longer be found by that name.", hint
        )
    if (now.st_dev, now.st_ino) == (file.stat.st_dev, file.stat.st_ino):
        return None
    return blocks(
        "FILE_DELETED",
        f"{file.path} ({file.user}) was replaced by another file of that name.",
        hint,
    )


def _is_special(file: File) -> bool:
    """Return whether CRIU treats a file specially instead of opening it by its path.

    Such files are those of ``/proc``, terminals and devices other than memory devices.
    """
    mode = file.stat.st_mode
    if modes.S_ISCHR(mode):
        return os.major(file.stat.st_rdev) != MEMORY_DEVICES
    return (
        modes.S_ISBLK(mode) or modes.S_ISSOCK(mode) or file.path.startswith(("/proc/", "/dev/pts/"))
    )


def _needed(file: File, systems: FileSystems) -> Needed:
    stat = file.stat
    return Needed(
        path=file.path,
        mode=stat.st_mode,
        size=stat.st_size if file.sized else None,
        build_id=build_id(file.link, stat.st_dev, stat.st_ino, stat.st_mtime_ns)
        if file.mapped
        else "",
        owner=(stat.st_uid, stat.st_gid),
        # A log that is open for appending only has no size to compare.
        written=file.written and file.sized,
        marks=marks(file.path, file.link, stat, systems) if file.written and file.sized else (),
        changed_ns=stat.st_mtime_ns,
    )


def _with_content(found: Iterable[Needed], files: dict[str, File]) -> Iterator[Needed]:
    """Yield files with the content of those that are only read, as long as that is not too much."""
    left = FINGERPRINTS_BYTES
    for file in found:
        # A build ID stands for the content, and what is written is compared in the freeze.
        known = not file.size or file.build_id or file.written or file.path.startswith(OF_THE_HOST)
        if known or left <= 0:
            yield file
            continue
        left -= min(file.size or 0, PARTS * PART_BYTES)
        opened = files[file.path]
        yield replace(file, fingerprint=content_of(opened.link, opened.stat))


def _difference(file: Needed, systems: FileSystems) -> str | None:
    """Return how the file differs here as a sentence, "" if missing, None if CRIU accepts it."""
    try:
        here = os.stat(file.path)
    except OSError:
        return ""
    if file.mode is not None and here.st_mode != file.mode:
        return f"{file.path} has mode 0{here.st_mode:o} here and 0{file.mode:o} on the source."
    if file.owner is not None and (here.st_uid, here.st_gid) != file.owner:
        theirs, ours = ":".join(map(str, file.owner)), f"{here.st_uid}:{here.st_gid}"
        return f"{file.path} belongs to {ours} (user:group) here and to {theirs} on the source."
    return _other_content(file, here, systems) if modes.S_ISREG(here.st_mode) else None


def _other_content(file: Needed, here: os.stat_result, systems: FileSystems) -> str | None:
    # The same object may have grown since the source looked at it.
    if file.size is not None and here.st_size != file.size and not _is_the_same(file, systems):
        return f"{file.path} has {here.st_size} bytes here and {file.size} on the source."
    version = (here.st_dev, here.st_ino, here.st_mtime_ns)
    if file.build_id and build_id(file.path, *version) != file.build_id:
        return f"{file.path} has a different build ID than on the source."
    is_known = not file.fingerprint or here.st_mtime_ns == file.changed_ns
    if not is_known and content_of(file.path, here) != file.fingerprint:
        return f"{file.path} has another content here than on the source."
    return None


#: A file that is large is looked at in so many parts of this size, evenly spread: enough to tell
#: two versions from each other. And how much is read of all files of a tree.
PARTS, PART_BYTES = 64, 2**16
FINGERPRINTS_BYTES = 2**26


def content_of(path: str, found: os.stat_result) -> str:
    """Return the fingerprint of a file, as it was when ``found`` was asked for."""
    return fingerprint(path, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=16384)
def fingerprint(path: str, device: int, inode: int, changed_ns: int, size: int) -> str:  # noqa: ARG001
    """Return what stands for a file's content, "" if it cannot be read.

    The other arguments are the cache's key, but for the size: they change with the file.
    """
    content, most = hashlib.sha256(), PARTS * PART_BYTES
    last = size - PART_BYTES
    whole = range(0, size, PART_BYTES)
    positions = whole if size <= most else [part * last // (PARTS - 1) for part in range(PARTS)]
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        for position in positions:
            content.update(os.pread(file.fileno(), PART_BYTES, position))
        return content.hexdigest()
    return ""


@lru_cache(maxsize=4096)
def build_id(path: str, device: int, inode: int, changed_ns: int) -> str:  # noqa: ARG001
    """Return a file's build ID in hexadecimal digits, "" if it has none.

    The other arguments are the cache's key: they change with the file.
    """
    with contextlib.suppress(OSError, struct.error), Path(path).open("rb") as file:
        head = file.read(64)
        if head[:4] == b"\x7fELF":
            file.seek(0)
            return _build_id(file.read(BUILD_ID_BYTES))
    return ""


#: ELF constants (elf(5)): the segment that holds notes, the note with the build ID, 64-bit class.
PT_NOTE, NT_GNU_BUILD_ID, CLASS_64 = 4, 3, 2


def _build_id(data: bytes) -> str:
    """Return the build ID among the notes of an ELF file. Raises struct.error for one cut short."""
    wide = data[4] == CLASS_64
    order = "<" if data[5] == 1 else ">"
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", data, 54 if wide else 42)
    for position in range(table, table + size * count, size):
        (kind,) = struct.unpack_from(order + "I", data, position)
        if kind == PT_NOTE:
            offset = struct.unpack_from(
                order + ("Q" if wide else "I"), data, position + (8 if wide else 4)
            )[0]
            length = struct.unpack_from(
                order + ("Q" if wide else "I"), data, position + (32 if wide else 16)
            )[0]
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
