"""Files in memory: what a tree uses on a tmpfs of its host, such as ``/dev/shm`` or ``/tmp``.

Another host does not have them, and nobody else needs them: a file that the tree alone uses is a
part of its memory with a name. So it is carried along (``sojourn.migration.carried``), with the
directories above it that are missing there. What the tree writes *moves*: the source's own is
removed when the process runs elsewhere. What it only reads is copied.

Nothing is replaced there. A path that is taken by another file is refused, unless both hosts see
the same object, or the tree only reads it and it does not differ (``files``). What is not the
tree's alone cannot be carried: a file that somebody else has open as well, or that has another name
too; and a directory with more in it than the tree has open, which the program would look for later.
Programs and libraries are no memory of the tree: they are installed.

A deleted file travels in the images, as CRIU's ghost, however large it is: it needs memory too.
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.model import Json
from sojourn.preflight.files import Needed
from sojourn.preflight.finding import Finding, blocks, named, ok
from sojourn.preflight.holders import users_of_files
from sojourn.preflight.same_file import file_systems, is_here, marks
from sojourn.preflight.scan import DELETED, File, Tree
from sojourn.system import process
from sojourn.system.mounts import tmpfses

CODE = "MEMORY_FILE"

#: What ``st_blocks`` counts in (stat(3type)).
BLOCK_BYTES = 512

FREE_IT = "Remove it there if nothing needs it, and the tree's own is carried along."
ALONE = "End what uses it too, or move both as one tree; or put it on storage that both hosts see."
MAKE_PLACE = "Make it there, with the same owner and mode."
COPY_REST = (
    "Make it there, with the same owner and mode and all in it but what the program has open."
)

#: How an executable file begins (elf(5)).
ELF = b"\x7fELF"


@dataclass(frozen=True)
class MemoryFile:
    """A file, FIFO or directory that a tree uses on a tmpfs, or a directory above one.

    ``place`` is where the tmpfs is mounted. ``size`` is that of the file, ``taken`` the memory that
    it occupies; ``log``: open for appending only; ``marks``: by these it is recognised as the same
    object. ``stays`` says why it cannot be carried, as a part of a sentence.
    """

    path: str
    place: str
    mode: int
    owner: tuple[int, int]
    size: int = 0
    taken: int = 0
    written: bool = False
    log: bool = False
    deleted: bool = False
    stays: str = ""
    marks: tuple[str, ...] = ()

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return modes.S_ISDIR(self.mode)

    def to_json(self) -> Json:
        """Return it as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> MemoryFile:
        """Read back what ``to_json`` wrote."""
        user, group = data["owner"]
        return cls(**{**data, "owner": (user, group), "marks": tuple(data["marks"])})


def used(tree: Tree, others: Iterable[str]) -> list[MemoryFile]:
    """Return what a tree uses on a tmpfs, parents first; ``others`` are more directories of it."""
    known, users = tmpfses(), _users(tree)
    found = {file.path: file for file in _files(tree.files.values(), known, users)}
    for path in others:
        with contextlib.suppress(OSError):
            found |= {file.path: file for file in _directory(path, known)}
    return _in_order(found)


def of_frozen(files: Iterable[File]) -> list[tuple[MemoryFile, File | None]]:
    """Return what a frozen tree uses on a tmpfs, parents first, and how each is open.

    Without deleted files. Who else uses a file was asked before the freeze.
    """
    by_path = {file.path: file for file in files}
    found = {file.path: file for file in _files(by_path.values(), tmpfses(), {})}
    return [(file, by_path.get(file.path)) for file in _in_order(found) if not file.deleted]


def carried(files: Iterable[MemoryFile]) -> list[MemoryFile]:
    """Return what is carried to this host, the destination: what is not here."""
    return [file for file in files if _is_missing(file) and not file.stays]


def kept(files: Iterable[MemoryFile]) -> list[str]:
    """Return what this host, the destination, has itself of what the tree uses on a tmpfs."""
    return [file.path for file in files if not file.deleted and os.path.lexists(file.path)]


def left(needed: Iterable[Needed], files: Iterable[MemoryFile]) -> list[Needed]:
    """Return which files must be here although others are carried along."""
    decided = {file.path for file in files if _is_missing(file) or _is_taken(file)}
    return [file for file in needed if file.path not in decided]


def check(files: Collection[MemoryFile], source: str) -> Iterator[Finding]:
    """Yield what this host, the destination, gets, or why it does not."""
    coming = carried(files)
    against = [*_taken(files), *_staying(files, source), *_misplaced(coming, files), *_room(files)]
    yield from against
    moving = [file for file in coming if not file.is_directory]
    if moving and not against:
        size = sum(file.taken for file in moving)
        names = named(file.path for file in moving)
        yield ok(CODE, f"{names} ({_mb(size)} in memory) will be carried along")


def bytes_of(files: Iterable[MemoryFile]) -> int:
    """Return how much memory files take that may be carried, deleted ones included."""
    return sum(file.taken for file in files if not file.stays)


def _in_order(found: dict[str, MemoryFile]) -> list[MemoryFile]:
    for file in found.values():
        if file.is_directory:
            found[file.path] = replace(file, stays=_rest(file, found))
    return sorted(found.values(), key=lambda file: file.path)


def _rest(directory: MemoryFile, found: Collection[str]) -> str:
    """Return what else a directory has than the tree uses; not of a tmpfs as a whole."""
    if directory.path == directory.place:
        return ""
    with contextlib.suppress(OSError), os.scandir(directory.path) as entries:
        # Those of sockets are made by the restore.
        rest = [each for each in entries if each.path not in found and not _is_socket(each)]
        return f"it has more in it than the tree uses, like {rest[0].name}" if rest else ""
    return ""


def _is_socket(entry: os.DirEntry[str]) -> bool:
    return modes.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)


def _files(
    files: Iterable[File], known: dict[int, list[str]], users: dict[tuple[int, int], int]
) -> Iterator[MemoryFile]:
    systems = file_systems()
    for file in files:
        place = _place(file.path, known.get(file.stat.st_dev, []))
        if not place or _is_program(file):
            continue
        if modes.S_ISDIR(file.stat.st_mode):
            with contextlib.suppress(OSError):
                yield from _directory(file.path, known)
        elif modes.S_ISREG(file.stat.st_mode) or modes.S_ISFIFO(file.stat.st_mode):
            with contextlib.suppress(OSError):
                yield from _directory(_above(file.path), known)
            seen = marks(file.path, file.link, file.stat, systems)
            user = users.get((file.stat.st_dev, file.stat.st_ino))
            yield _file(file, place, seen, _why_it_stays(file.stat, user))


def _is_program(file: File) -> bool:
    if file.written or not file.mapped:
        return False
    with contextlib.suppress(OSError), Path(file.link).open("rb") as opened:
        return opened.read(len(ELF)) == ELF
    return False


def _file(file: File, place: str, seen: tuple[str, ...], stays: str) -> MemoryFile:
    stat = file.stat
    return MemoryFile(
        file.path.removesuffix(DELETED),
        place,
        stat.st_mode,
        (stat.st_uid, stat.st_gid),
        stat.st_size,
        stat.st_blocks * BLOCK_BYTES,
        written=file.written,
        log=file.written and not file.sized,
        deleted=stat.st_nlink == 0,
        stays=stays,
        marks=seen,
    )


def _directory(path: str, known: dict[int, list[str]]) -> Iterator[MemoryFile]:
    """Yield a directory and those above it, up to where its tmpfs is mounted. Raises OSError."""
    stat = os.lstat(path)
    place = _place(path, known.get(stat.st_dev, []))
    if place and modes.S_ISDIR(stat.st_mode):
        yield MemoryFile(path, place, stat.st_mode, (stat.st_uid, stat.st_gid))
        if path != place:
            yield from _directory(_above(path), known)


def _above(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _place(path: str, places: list[str]) -> str:
    above = [place for place in places if path == place or path.startswith(f"{place}/")]
    return max(above, key=len, default="")


def _users(tree: Tree) -> dict[tuple[int, int], int]:
    """Return which processes outside of the tree use the regular files that it has on a tmpfs."""
    known = tmpfses()
    ours = {
        (file.stat.st_dev, file.stat.st_ino): file.path
        for file in tree.files.values()
        if file.stat.st_dev in known and modes.S_ISREG(file.stat.st_mode)
    }
    return users_of_files(ours, tree.pids)


def _why_it_stays(stat: os.stat_result, user: int | None) -> str:
    if user is not None:
        with contextlib.suppress(ProcessGone):
            return f"process {user} ({process.stat(user).name}) uses it too"
    return f"it has {stat.st_nlink} names" if stat.st_nlink > 1 else ""


def _taken(files: Iterable[MemoryFile]) -> Iterator[Finding]:
    for file in filter(_is_taken, files):
        yield blocks(
            CODE,
            f"{file.path} is a file in memory that the tree writes, and another file of that name "
            "is here.",
            FREE_IT,
        )


def _is_missing(file: MemoryFile) -> bool:
    return not file.deleted and file.path != file.place and not os.path.lexists(file.path)


def _is_taken(file: MemoryFile) -> bool:
    """Whether another file has the path here, which the tree would write to."""
    # Two empty files are equal, and a log has its own history on each host.
    if not file.written or file.log or file.deleted:
        return False
    try:
        here = os.lstat(file.path)
    except OSError:
        return False
    same = is_here(file.path, file.marks, file_systems())
    return not same and bool(file.size or here.st_size)


def _staying(files: Iterable[MemoryFile], source: str) -> Iterator[Finding]:
    for file in files:
        if file.stays and (file.deleted or _is_missing(file)):
            yield blocks(
                CODE,
                f"{file.path} is in the memory of {source} only, and cannot be carried along: "
                f"{file.stays}.",
                COPY_REST if file.is_directory else ALONE,
            )


def _misplaced(coming: list[MemoryFile], files: Iterable[MemoryFile]) -> Iterator[Finding]:
    """Yield the directories that are not here as they must be for what is made below them."""
    above = {_above(file.path) for file in coming}
    for directory in (file for file in files if file.is_directory and file.path in above):
        sentence = _misplacement(directory)
        if sentence:
            yield blocks(CODE, sentence, MAKE_PLACE)


def _misplacement(directory: MemoryFile) -> str:
    path = directory.path
    try:
        here = os.lstat(path)
    except OSError:
        is_root = path == directory.place
        return f"{path}, for files in memory that are carried along, is missing." if is_root else ""
    if here.st_mode != directory.mode:
        return f"{path} has mode 0{here.st_mode:o} here and 0{directory.mode:o} on the source."
    if (here.st_uid, here.st_gid) != directory.owner:
        theirs, ours = ":".join(map(str, directory.owner)), f"{here.st_uid}:{here.st_gid}"
        return f"{path} belongs to {ours} (user:group) here and to {theirs} on the source."
    return ""


def _room(files: Iterable[MemoryFile]) -> Iterator[Finding]:
    """Yield the places that have no room for what comes, deleted files included."""
    coming: dict[str, int] = {}
    for file in [*carried(files), *(file for file in files if file.deleted and not file.stays)]:
        coming[file.place] = coming.get(file.place, 0) + file.taken
    for place, size in coming.items():
        with contextlib.suppress(OSError):
            room = os.statvfs(place)
            # A tmpfs without a limit has no blocks at all.
            free = room.f_bavail * room.f_frsize if room.f_blocks else size
            if size > free:
                yield blocks(
                    CODE,
                    f"{place} has {_mb(free)} left; {_mb(size)} of files in memory would come.",
                    f"Free room there: `mount -o remount,size=SIZE {place}` if it is a tmpfs.",
                )


def _mb(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
