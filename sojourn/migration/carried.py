"""Files in memory that move with their tree: packed, put into place, and removed where they were.

``pack``    on the source, inside the freeze: their content becomes images, which ``copy_images``
            sends with the others
``place``   on the destination, before CRIU opens them: each is made whole under a name of this
            migration's, and then renamed; nothing that is there is replaced
``remove``  on the destination, for a refusal: what ``place`` has made, and nothing else
``leave``   on the source, for a tree that runs elsewhere: what it wrote, which left with it

What dies when. In ``pack``: the tree is resumed, and the images are not used. In ``place``: a name
stands in the journal before it is made, and the inode before the file gets its own name; so a
refusal, now or by the reconciler, finds it and nothing else, and a second restore begins anew. In
``remove`` and ``leave``: what is left stays noted, for the next call; both are safe to repeat, and
know a file by its inode and this boot. A host that crashes loses what was in its memory, and so
what would have to be removed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat as modes
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sojourn.errors import CriuFailed
from sojourn.migration.context import Migration
from sojourn.model import Json, Untyped
from sojourn.preflight import inspection, memory_files
from sojourn.preflight.memory_files import CODE, MemoryFile
from sojourn.preflight.scan import File, files_on
from sojourn.system import places, process
from sojourn.system.mounts import tmpfses

#: The image that lists what is carried, and those with the content of each file.
LIST, CONTENT = "carried.json", "carried-{}.img"

#: How the journal calls what was made on a destination and may have to be removed again.
MADE = "file"

#: Attributes that belong to a host, not to a file: it sets them by itself.
OF_THE_HOST = ("security.selinux", "security.ima", "security.evm")

#: How much is copied at once.
COPIED_BYTES = 2**30


@dataclass(frozen=True)
class Carried:
    """One file, FIFO or directory, as it is to be made; ``extents`` are where a file has data."""

    path: str
    mode: int
    user: int
    group: int
    accessed_ns: int
    changed_ns: int
    size: int = 0
    extents: list[list[int]] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)


def pack(migration: Migration) -> int:
    """Write images of the frozen tree's files in memory that the destination has not; count them.

    Raises CriuFailed for one that cannot be carried. Only trees that use a tmpfs are looked at.
    """
    kept = migration.facts.get("kept", [])
    if not kept:
        return 0
    members = (member.identity.pid for member in migration.entry.tree)
    files = memory_files.of_frozen(files_on(members, tmpfses()))
    coming = [one for one in files if one[0].path not in (*kept, one[0].place)]
    carried = [_packed(migration, *one, number) for number, one in enumerate(coming)]
    if carried:
        text = json.dumps([asdict(one) for one in carried])
        (migration.directory.images / LIST).write_text(text)
        migration.learn(moved=[_identity(*one) for one in coming if _moves(one[0])])
    return len(carried)


def place(migration: Migration) -> None:
    """Make what was carried here, before CRIU opens it. Raises CriuFailed if a path is taken."""
    remove(migration)  # what an earlier attempt has made
    listed = list(enumerate(_listed(migration.directory.images / LIST)))
    # A directory has to be there before anything is made in it.
    for number, one in listed:
        if modes.S_ISDIR(one.mode) and not _is_there(one):
            _make(migration, {number: one})
    _make(migration, {number: one for number, one in listed if not modes.S_ISDIR(one.mode)})


def remove(migration: Migration) -> None:
    """Remove what ``place`` has made here: latest first, files before their directories."""
    journal = migration.host.journal
    for row in reversed(journal.held(migration.entry, MADE)):
        path, temporary, *identity, boot = json.loads(row)
        if boot == process.boot_id():
            # Where the way there has changed, what is at its end is not ours.
            with contextlib.suppress(OSError, ValueError), places.directory_of(path) as at:
                places.remove(at[0], temporary)
                if identity:
                    places.remove(*at, (identity[0], identity[1]))
        journal.let_go(migration.entry, MADE, row)


def leave(migration: Migration) -> int:
    """Remove what moved with the tree from this host's memory, directories that are empty; count.

    Not what only root could have made, such as a directory in ``/run``: others may expect it.
    """
    moved = migration.facts.get("moved", [])
    for one in reversed(moved):
        if one["boot"] == process.boot_id():
            with contextlib.suppress(OSError), places.directory_of(one["path"]) as at:
                places.remove(*at, (one["device"], one["inode"]))
    return len(moved)


def _moves(file: MemoryFile) -> bool:
    """Whether it has to leave the source; what the tree only reads is copied."""
    if not file.is_directory:
        return file.written or modes.S_ISFIFO(file.mode)
    above = Path(file.path).parent.stat()
    return above.st_uid != 0 or bool(above.st_mode & modes.S_IWOTH)


def _identity(file: MemoryFile, source: File | None) -> Json:
    found = source.stat if source else Path(file.path).lstat()
    identity = {"device": found.st_dev, "inode": found.st_ino, "boot": process.boot_id()}
    return {"path": file.path, **identity}


def _packed(migration: Migration, file: MemoryFile, source: File | None, number: int) -> Carried:
    """Write the content of a file as an image, and return the rest of it."""
    # By the tree's own link: its path may have been given to another file in this instant.
    link = source.link if source else file.path
    stat = Path(link).stat()
    if file.stays:
        raise CriuFailed(
            f"On {migration.host.name}: {file.path} is in memory, and cannot be carried along: "
            f"{file.stays}.",
            memory_files.ALONE,
            CODE,
        )
    one = Carried(
        file.path,
        stat.st_mode,
        stat.st_uid,
        stat.st_gid,
        stat.st_atime_ns,
        stat.st_mtime_ns,
        attributes=_attributes(link),
    )
    if not modes.S_ISREG(stat.st_mode):
        return one
    extents = _copied_out(link, migration.directory.images / CONTENT.format(number), stat.st_size)
    return Carried(**(vars(one) | {"size": stat.st_size, "extents": extents}))


def _attributes(link: str) -> dict[str, str]:
    names = (name for name in os.listxattr(link) if name not in OF_THE_HOST)
    return {name: base64.b64encode(os.getxattr(link, name)).decode() for name in names}


def _copied_out(link: str, image: Path, size: int) -> list[list[int]]:
    """Copy what a file has of data, one extent behind the other; return where they were."""
    with Path(link).open("rb") as source, image.open("wb") as target:
        extents = [[begin, end - begin] for begin, end in _extents(source.fileno(), size)]
        for begin, length in extents:
            _copy(source.fileno(), target.fileno(), begin, length)
    return extents


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, min(end, size)


def _copied_in(image: Path, target: int, one: Carried) -> None:
    os.ftruncate(target, one.size)
    position = 0
    with image.open("rb") as source:
        for begin, length in one.extents:
            os.lseek(target, begin, os.SEEK_SET)
            _copy(source.fileno(), target, position, length)
            position += length


def _copy(source: int, target: int, begin: int, length: int) -> None:
    """Copy within the kernel, to where the target stands. Raises OSError at an early end."""
    end = begin + length
    while begin < end:
        copied = os.sendfile(target, source, begin, min(end - begin, COPIED_BYTES))
        if not copied:
            raise OSError(None, "its content is incomplete")
        begin += copied


def _listed(file: Path) -> list[Carried]:
    """Read the list that came with the images; without one, nothing was carried."""
    return [Carried(**one) for one in json.loads(file.read_text())] if file.exists() else []


def _is_there(one: Carried) -> bool:
    """Whether a directory is there already, as it must be: others may need it too."""
    with contextlib.suppress(OSError, ValueError), places.directory_of(one.path) as at:
        here = os.stat(at[1], dir_fd=at[0], follow_symlinks=False)
        return (here.st_mode, here.st_uid, here.st_gid) == (one.mode, one.user, one.group)
    return False


def _make(migration: Migration, batch: dict[int, Carried]) -> None:
    """Make some whole, under names of ours, and then give them their own."""
    journal, entry, boot = migration.host.journal, migration.entry, process.boot_id()
    names = {number: f".sojourn-{migration.id}-{number}" for number in batch}
    begun: dict[int, list[Untyped]] = {
        number: [one.path, names[number]] for number, one in batch.items()
    }
    journal.hold_in_memory(entry, MADE, (json.dumps([*row, boot]) for row in begun.values()))
    for number, one in batch.items():
        content = migration.directory.images / CONTENT.format(number)
        with _explained(migration, one), places.directory_of(one.path) as (directory, _):
            made = _made(one, content, directory, names[number])
            begun[number] += [made.st_dev, made.st_ino]
    journal.hold_in_memory(entry, MADE, (json.dumps([*row, boot]) for row in begun.values()))
    for number, one in batch.items():
        with _explained(migration, one), places.directory_of(one.path) as (directory, name):
            places.rename(directory, names[number], name)


@contextlib.contextmanager
def _explained(migration: Migration, one: Carried) -> Iterator[None]:
    """Raise CriuFailed, naming the file, for what the system refuses."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CriuFailed(
            f"On {migration.host.name}: {one.path}, a file in memory that process "
            f"{migration.plan.pid} brings along, cannot be made: {reason}.",
            f"See what helps: `{inspection.command(migration.plan)}`.",
            CODE,
        ) from None


def _made(one: Carried, content: Path, directory: int, name: str) -> os.stat_result:
    """Make one under another name, with all that it has, and return what it is here."""
    descriptor = _created(one, directory, name)
    try:
        # By its descriptor: whoever owns the directory may have put a link in its place by now.
        path = f"{process.PROC}/self/fd/{descriptor}"
        if modes.S_ISREG(one.mode):
            _copied_in(content, descriptor, one)
        os.chown(path, one.user, one.group)
        Path(path).chmod(modes.S_IMODE(one.mode))
        _set_attributes(path, one.attributes)
        os.utime(path, ns=(one.accessed_ns, one.changed_ns))
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _set_attributes(path: str, attributes: dict[str, str]) -> None:
    """Give a new file its attributes alone: it may have inherited an ACL that opens it to all."""
    for name in os.listxattr(path):
        if name not in attributes and name not in OF_THE_HOST:
            os.removexattr(path, name)
    for name, value in attributes.items():
        os.setxattr(path, name, base64.b64decode(value))


def _created(one: Carried, directory: int, name: str) -> int:
    """Create one, empty and root's, and return a descriptor of it. Raises FileExistsError."""
    if modes.S_ISREG(one.mode):
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, new, 0o600, dir_fd=directory)
    if modes.S_ISDIR(one.mode):
        os.mkdir(name, 0o700, dir_fd=directory)
    elif modes.S_ISFIFO(one.mode):
        os.mkfifo(name, 0o600, dir_fd=directory)
    else:
        raise ValueError("it is neither a file nor a FIFO nor a directory")
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    found = os.fstat(descriptor)
    if modes.S_IFMT(found.st_mode) != modes.S_IFMT(one.mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise ValueError("somebody has put another one in its place")
    return descriptor
