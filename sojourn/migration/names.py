"""Names of Unix sockets, on both hosts: none is taken from others, and a rollback leaves all.

CRIU's restore removes the file of a socket and binds the name anew. On storage that both hosts see
that file is the frozen original's: without it no client finds the process again. So the source
keeps a second link to each such file, beside it, before it releases the images, and gives the name
back when the process runs on here; no other host needs to be alive for that. Each link is noted in
the journal before it is made, and every act may be repeated: whoever dies in between leaves a row
that the reconciler finishes.

The destination looks at every name once more before CRIU starts, and removes the files that a
failed restore has made. A program that takes a name within the milliseconds in between loses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat as modes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.criu import files_image
from sojourn.errors import CriuFailed
from sojourn.migration.context import Migration
from sojourn.model import Role, Untyped
from sojourn.preflight import names, sockets
from sojourn.preflight.names import Name
from sojourn.preflight.scan import DELETED, namespaces
from sojourn.system import process
from sojourn.system.unix_socket import file_of, is_bound, name_of

#: The kind of the row in the journal's table ``held``.
HELD = "name"

#: How long sockets of killed processes may take to be closed, in seconds.
CLOSED_WITHIN_S = 1


@dataclass(frozen=True)
class Kept:
    """A name, and the second link to its file."""

    path: str
    link: str

    @classmethod
    def of(cls, what: str) -> Kept:
        """Read it from the journal."""
        return cls(**json.loads(what))


def keep(migration: Migration) -> list[Untyped]:
    """Keep the names that the restore would take away from here; return all names of the tree.

    The tree is frozen. Raises CriuFailed if a name cannot be kept.
    """
    if namespaces(migration.plan.pid).get("mnt") not in {None, namespaces("self").get("mnt")}:
        return []
    found = list(_names(migration))
    for name in found:
        if name.inode and name.path in migration.facts.get("shared_names", []):
            _keep(migration, name)
    return [name.to_json() for name in found]


def put_back(migration: Migration) -> None:
    """Give every kept name back to the process that runs on here. Safe to repeat.

    What cannot be done now stays noted, and the reconciler tries again: a process that is to be
    woken does not wait for it.
    """
    for what in migration.host.journal.held(migration.entry, HELD):
        with contextlib.suppress(OSError):
            _put_back(Kept.of(what), dead=migration.is_declared_dead(Role.DESTINATION))
            migration.host.journal.let_go(migration.entry, HELD, what)


def let_go(migration: Migration) -> None:
    """Give the second links up: the process runs on the destination. Safe to repeat."""
    for what in migration.host.journal.held(migration.entry, HELD):
        with contextlib.suppress(OSError):
            Path(Kept.of(what).link).unlink(missing_ok=True)
            migration.host.journal.let_go(migration.entry, HELD, what)


def check(migration: Migration) -> None:
    """Raise CriuFailed if a name of the frozen tree may not be taken here, on the destination."""
    wanted, kept = _wanted(migration), migration.facts.get("shared_names", [])
    here = migration.host.name
    for finding in names.taken(wanted):
        raise CriuFailed(f"On {here}: {finding.sentence}", finding.hint, finding.code)
    for path in names.shared(wanted):
        if path not in kept:
            raise CriuFailed(
                f"On {here}: the name {path} is a Unix socket's since the checks were made, and "
                "would be lost if the restore failed.",
                "Try again.",
                "SOCKET_TAKEN",
            )


def clear_away(migration: Migration) -> None:
    """Remove the files of sockets that a failed restore has made here; its processes are killed."""
    if "restore_began" not in migration.facts:
        return
    for name in _wanted(migration):
        with contextlib.suppress(OSError):
            file = os.lstat(name.path)
            original = file.st_ino == name.inode
            if modes.S_ISSOCK(file.st_mode) and not original and _ends(name.path):
                Path(name.path).unlink()


def _names(migration: Migration) -> Iterator[Name]:
    """Yield the names of the frozen tree, by its images, which are made right where they are not.

    CRIU binds a socket to the name that it was bound to first, and where a rollback or the program
    has made another link to its file, for an instant only.
    """
    images = migration.directory.images
    for path, own in files_image.unix_paths(images).items():
        now = path if own and _is_as_seen(migration, path) else _name_now(migration, path)
        if now and (now != path or not own):
            files_image.rename(images, path, now)
        yield names.named(now) if now else names.named(path, 0)


def _is_as_seen(migration: Migration, path: str) -> bool:
    """Whether the checks have found the same file: only else must its socket be looked for."""
    try:
        return migration.facts.get("names_seen", {}).get(path) == os.lstat(path).st_ino
    except OSError:
        return False


def _name_now(migration: Migration, path: str) -> str:
    """Return the name that the file of a socket of the tree has now; empty if it has lost it."""
    bound = sockets.unix_names(migration.plan.pid)
    for pid in (member.identity.pid for member in migration.entry.tree):
        for link in process.descriptors(pid, "socket:"):
            file = file_of(pid, int(link.name)) if link.stat().st_ino in bound else None
            if file and path in {bound[link.stat().st_ino], file[0].removesuffix(DELETED)}:
                return name_of(path, file)
    return ""


def _wanted(migration: Migration) -> list[Name]:
    """Return the names that the restore will take, for the destination."""
    if "names" in migration.facts:
        return [Name.from_json(fields) for fields in migration.facts["names"]]
    # The source's message was lost: whatever has such a name may be somebody's.
    return [names.named(path, 0) for path in files_image.unix_paths(migration.directory.images)]


def _keep(migration: Migration, name: Name) -> None:
    link = str(Path(name.path).parent / f".sojourn-{migration.id}-{name.inode}")
    # The journal first: nothing would ever give back a link that was not noted.
    migration.host.journal.hold(migration.entry, HELD, json.dumps(vars(Kept(name.path, link))))
    try:
        os.link(name.path, link, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError as error:
        raise CriuFailed(
            f"On {migration.host.name}: no second link to {name.path} can be made "
            f"({error.strerror}), so that this name would be lost if the restore failed.",
            "Let the program have its socket on storage of this host alone.",
        ) from None


def _put_back(kept: Kept, *, dead: bool) -> None:
    """Give a name back, unless somebody else has it; ``dead``: nobody can ask the destination."""
    try:
        file = os.lstat(kept.link)
    except FileNotFoundError:  # it was never made, or is back
        return
    # What a failed restore has left there the destination has removed, unless it is dead.
    if dead and _is_left_over(kept.path, file.st_ino):
        Path(kept.link).replace(kept.path)
        return
    with contextlib.suppress(FileExistsError):
        os.link(kept.link, kept.path, follow_symlinks=False)
    Path(kept.link).unlink()


def _is_left_over(path: str, original: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        file = os.lstat(path)
        return modes.S_ISSOCK(file.st_mode) and file.st_ino != original and not is_bound(path)
    return False


def _ends(path: str) -> bool:
    """Whether nobody is bound to a socket's file, or stops to be so in time."""
    until = time.monotonic() + CLOSED_WITHIN_S
    while bound := is_bound(path):
        if time.monotonic() > until:
            break
        time.sleep(0.002)
    return not bound
