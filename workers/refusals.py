"""Keeps what the lanes have refused where ``sojourn doctor`` reads it, across restarts too."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from sojourn.cluster import refused
from sojourn.cluster.refused import Refused
from workers.shared import Labels


class Refusals:
    """The refusals of a host: those of earlier workers since the boot, and those of this one."""

    def __init__(self, runtime_dir: Path, counts: Mapping[Labels, int]) -> None:
        self._runtime_dir, self._counts = runtime_dir, counts
        self._before = refused.kept(runtime_dir) or Refused(time.time())
        self._kept: Counter[str] | None = None

    def keep(self) -> None:
        """Write down what has been refused, if that has changed; a full file system keeps less."""
        now = Counter[str]()
        for (_, reason), count in self._counts.items():
            now[reason] += count
        if now == self._kept:
            return
        found = self._before.with_more(now, time.time()) if now.total() else self._before
        with contextlib.suppress(OSError):
            refused.keep(self._runtime_dir, found)
            self._kept = now
