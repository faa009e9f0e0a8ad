"""Cached directory trees out of which the hosts' roots are stacked.

A layer's name ends with a hash of its recipe, so a changed recipe makes a new layer. It is built beside
its place and renamed when it is complete: what bears the name is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CACHE = Path("/var/cache/sojourn")

#: Takes one line about what is going on, for somebody who waits.
Report = Callable[[str], None]


@dataclass(frozen=True)
class Layer:
    """A tree that ``fill`` makes out of ``recipe``; ``kind`` is its name without the hash."""

    kind: str
    recipe: str
    fill: Callable[[Path, Report], None]

    @property
    def path(self) -> Path:
        """Where the layer lies once it is built."""
        return CACHE / f"{self.kind}-{hashlib.sha256(self.recipe.encode()).hexdigest()[:12]}"

    def ready(self, report: Report) -> Path:
        """Return the layer's path; build it first where it is missing, which takes a minute."""
        if not self.path.is_dir():
            with locked(CACHE / f"{self.kind}.lock"):
                if not self.path.is_dir():  # another builder may have been before us
                    self._build(report)
        return self.path

    def _build(self, report: Report) -> None:
        self._remove_leftovers()
        started = time.monotonic()
        draft = Path(tempfile.mkdtemp(prefix=f"{self.kind}-", suffix=".part", dir=CACHE))
        draft.chmod(0o755)
        try:
            self.fill(draft, report)
        except BaseException:
            shutil.rmtree(draft)
            raise
        draft.rename(self.path)
        report(f"{self.kind}: built in {time.monotonic() - started:.0f} s")

    def _remove_leftovers(self) -> None:
        """Remove half-built layers, and those of other recipes unless a running host stands on them."""
        mounted = _lower_directories()
        for path in CACHE.glob(f"{self.kind}-*"):
            if str(path) not in mounted:
                shutil.rmtree(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it is gone with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lower_directories() -> str:
    """Return the mount tables of all processes in one string; hosts have mount namespaces of their own."""
    tables = []
    seen: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while we look
            namespace = str((process / "ns/mnt").readlink())
            if namespace not in seen:
                seen.add(namespace)
                tables.append((process / "mountinfo").read_text())
    return "\n".join(tables)
