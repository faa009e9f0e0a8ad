"""What a program may open later, and should find on the destination: a note, and never a block.

CRIU opens again what a tree has open. What the tree has closed, such as its configuration, a
document root or its PID file, it misses only when it looks for that again: at a reload, at the next
request. Nobody can know what that will be; what its command lines name is a good guess, and so are
the working directory and a file that holds a PID of the tree.

A command line is what its process has made of it, so it is read up to a limit, and a path counts
only if there is such a file or directory on the source.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat as modes
from collections.abc import Collection, Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import islice

from sojourn.model import Plan, Untyped
from sojourn.preflight.finding import Finding, named, note
from sojourn.preflight.scan import VANISHED, Task, Tree
from sojourn.system.process import PROC

#: How much is looked at, so that a check takes only a moment whatever a program does: bytes of one
#: command line, paths in all, directories in which PID files are looked for, names in each.
LINE_BYTES, PATHS, PLACES, NAMES = 2**16, 2000, 64, 256

#: How many paths are asked of the destination, and how many of them the hint brings there.
ASKED, BROUGHT = 100, 20

#: A PID file is not longer than a number and the end of its line.
PID_BYTES = 16

#: What belongs to each host itself.
OF_THE_HOST = ("/proc/", "/sys/", "/dev/")

#: Directories that have something in them on every host, or nothing that a program relies on.
COMMON = {"/", "/run", "/tmp", "/var/tmp", "/root"}  # noqa: S108  (nothing is written there)


@dataclass(frozen=True)
class Wanted:
    """A file or directory that the tree may open later; ``filled``: a directory with entries."""

    path: str
    is_directory: bool = False
    filled: bool = False

    def to_json(self) -> list[Untyped]:
        """Return it as a short list."""
        return list(astuple(self))


def wanted(tree: Tree) -> list[Wanted]:
    """Return what the tree may open later and does not have open, the most telling first."""
    open_now = {file.path for file in tree.files.values() if not _is_directory(file.stat.st_mode)}
    paths = dict.fromkeys((*islice(_named(tree), PATHS), *_pid_files(tree)))
    ours = (path for path in paths if path not in open_now and not path.startswith(OF_THE_HOST))
    return list(islice(filter(None, map(_wanted, ours)), ASKED))


def missing(things: Collection[Wanted], plan: Plan) -> Iterator[Finding]:
    """Yield one note for all that is not here, on the destination."""
    lacking = [one.path for one in things if _is_lacking(one)]
    if lacking:
        names = named(path if path.isprintable() else ascii(path) for path in lacking)
        sentence = f"It may open later what this host does not have: {names}."
        yield note("WANTED_LATER", sentence, _bring(lacking, plan))


def _bring(paths: list[str], plan: Plan) -> str:
    # Nobody should paste a name into a shell that holds control characters.
    names = shlex.join([path for path in paths if path.isprintable()][:BROUGHT])
    if not names:
        return f"Compare what {plan.source} and {plan.destination} have of that name."
    return (
        f"If it needs that, bring it: `tar -cPf FILE {names}` on {plan.source}, `tar -xPf FILE` on "
        f"{plan.destination}."
    )


def _named(tree: Tree) -> Iterator[str]:
    """Yield what the command lines name, and the working directories, as whole paths."""
    for task in tree.tasks:
        with contextlib.suppress(*VANISHED, PermissionError):
            # A path means another file to a process with a root of its own.
            if os.readlink(f"{PROC}/{task.pid}/root") == "/":
                cwd = os.readlink(f"{PROC}/{task.pid}/cwd")
                yield cwd
                yield from (path for one in _arguments(task) for path in paths_in(one, cwd))


def _arguments(task: Task) -> list[str]:
    with open(f"{PROC}/{task.pid}/cmdline", "rb") as file:
        # The kernel hands over what the process has put there: any bytes.
        return os.fsdecode(file.read(LINE_BYTES)).split("\0")


def paths_in(argument: str, cwd: str) -> Iterator[str]:
    """Yield the paths that an argument may mean: ``X``, ``--o=X``, ``-oX``, ``X:X``."""
    value = argument
    if argument.startswith("-"):
        value = argument.partition("=")[2] or argument[2:]
    elif "=/" in argument:
        value = argument.partition("=")[2]
    is_relative = not argument.startswith("-") or "=" in argument
    for part in {value: None, **dict.fromkeys(value.split(":"))}:
        if part.startswith("/"):
            yield os.path.normpath(part)
        elif is_relative and part == value != "":
            yield os.path.normpath(f"{cwd}/{part}")


def _pid_files(tree: Tree) -> Iterator[str]:
    """Yield the PID files of the tree: where services have them, and beside what is open."""
    pids = {str(task.pid) for task in tree.tasks}
    for place in islice(_places(tree), PLACES):
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in islice(entries, NAMES):
                if entry.name.endswith(".pid") and _content(entry.path) in pids:
                    yield entry.path


def _places(tree: Tree) -> Iterator[str]:
    beside = (
        os.path.dirname(file.path)
        for file in tree.files.values()
        if not file.mapped and file.path.startswith("/")
    )
    yield from dict.fromkeys(("/run", *beside, *_directories("/run")))


def _directories(place: str) -> Iterable[str]:
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        return [one.path for one in islice(entries, NAMES) if one.is_dir(follow_symlinks=False)]
    return []


def _content(path: str) -> str:
    """Return what a small file holds; nothing of what is no file, which could make us wait."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            is_file = modes.S_ISREG(os.fstat(descriptor).st_mode)
            return (
                os.read(descriptor, PID_BYTES).decode(errors="replace").strip() if is_file else ""
            )
        finally:
            os.close(descriptor)
    return ""


def _wanted(path: str) -> Wanted | None:
    """Return what the source has of that name; nothing if it is neither file nor directory."""
    mode = _mode(path)
    if _is_directory(mode):
        return Wanted(path, is_directory=True, filled=path not in COMMON and _has_entries(path))
    return Wanted(path) if modes.S_ISREG(mode) else None


def _is_lacking(one: Wanted) -> bool:
    mode = _mode(one.path)
    if one.is_directory:
        return not _is_directory(mode) or (one.filled and not _has_entries(one.path))
    return not modes.S_ISREG(mode)


def _mode(path: str) -> int:
    # What the source reports was never checked: it may hold a null character, or be too long.
    with contextlib.suppress(OSError, ValueError):
        return os.stat(path).st_mode
    return 0


def _is_directory(mode: int) -> bool:
    return modes.S_ISDIR(mode)


def _has_entries(path: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return any(True for _ in entries)
    return False
