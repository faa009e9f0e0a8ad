"""Cached directory trees of which the hosts' roots are stacked.

A layer's name ends with a hash of its recipe, so a changed recipe makes a new layer. It is built
under another name and renamed when it is complete: whatever has the final name is complete.

Files beside the layers: ``KIND.lock`` keeps builders of one kind apart, and holds the last line
that the present one has reported.
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
from typing import IO

CACHE = Path("/var/cache/sojourn")

#: How long a process that waits for another builder sleeps before it looks again.
WAIT_S = 0.5

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
        """Where the layer is once it is built."""
        return CACHE / f"{self.kind}-{hashlib.sha256(self.recipe.encode()).hexdigest()[:12]}"

    def ready(self, report: Report) -> Path:
        """Return the layer's path; build it first where it is missing, which takes a minute."""
        if not self.path.is_dir():
            with locked(self._lock, lambda: report(self._others_report())):
                if not self.path.is_dir():  # another process may have built it while we waited
                    self._build(self._shared(report))
        return self.path

    @property
    def _lock(self) -> Path:
        return CACHE / f"{self.kind}.lock"

    def _others_report(self) -> str:
        return self._lock.read_text() or f"{self.kind}: another process builds it"

    def _shared(self, report: Report) -> Report:
        """Return a report that also reaches the processes that wait for this builder."""

        def everywhere(line: str) -> None:
            self._lock.write_text(line)
            report(line)

        return everywhere

    def _build(self, report: Report) -> None:
        self._remove_leftovers()
        started = time.monotonic()
        draft = Path(tempfile.mkdtemp(prefix=f"{self.kind}-", suffix=".part", dir=CACHE))
        draft.chmod(0o755)
        try:
            self.fill(draft, report)
            draft.rename(self.path)
        finally:
            if draft.exists():  # an error, or Ctrl-C, has left it half-built
                shutil.rmtree(draft)
        report(f"{self.kind}: built in {time.monotonic() - started:.0f} s")

    def _remove_leftovers(self) -> None:
        """Remove half-built layers, and those of other recipes that no running host uses."""
        mounted = _lower_directories()
        for path in CACHE.glob(f"{self.kind}-*"):
            if str(path) not in mounted:
                shutil.rmtree(path)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file, which ends with this process at the latest.

    ``waiting`` is called again and again while another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while waiting and not _acquired(file):
            waiting()
            time.sleep(WAIT_S)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _acquired(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lower_directories() -> str:
    """Return the mount tables of all mount namespaces in one string: each host has its own."""
    tables = []
    seen: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process may have ended
            namespace = str((process / "ns/mnt").readlink())
            if namespace not in seen:
                seen.add(namespace)
                tables.append((process / "mountinfo").read_text())
    return "\n".join(tables)
