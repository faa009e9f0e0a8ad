"""What the tree has written to storage that other hosts see as well: flushed before they read it.

A host keeps what was written to a network file system until it comes to write it there. Another
host would read what was there before, and what the source writes later, when the original is
killed, would replace what the process has written on the destination. So it is flushed twice: most
of it before the freeze, and the rest within, before the destination opens the files. If the worker
dies in between, nothing else was changed: a flush has no other effect.
"""

from __future__ import annotations

from collections.abc import Iterable

from sojourn.preflight import same_file
from sojourn.preflight.scan import files_on


def flush(pids: Iterable[int]) -> int:
    """Flush what some processes have written to; return how many files. Raises OSError.

    A host without such storage has nothing to do.
    """
    devices = same_file.remote_devices()
    return same_file.flush(files_on(pids, devices)) if devices else 0
