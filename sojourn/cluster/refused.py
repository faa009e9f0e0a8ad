"""What this host's lanes have refused, in a file of ``runtime_dir``, where the doctor reads it.

Not in Redis, where whoever sends such messages could remove the count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sojourn.cluster import records
from sojourn.system import json_file

FILE = "refused.json"


@dataclass(frozen=True)
class Refused:
    """How many were refused, by the reason, ``since`` when; and when the last was, 0 if none was.

    Times are in seconds since the epoch.
    """

    since: float
    last: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)

    def with_more(self, counts: Mapping[str, int], now: float) -> Refused:
        """Return the sum of these and what was counted since; ``now`` is when the last was."""
        names = {*self.counts, *counts}
        summed = {name: self.counts.get(name, 0) + counts.get(name, 0) for name in sorted(names)}
        return Refused(self.since, now, {name: count for name, count in summed.items() if count})


def keep(runtime_dir: Path, refused: Refused) -> None:
    """Keep it until the next boot. Raises OSError."""
    json_file.write(runtime_dir / FILE, asdict(refused))


def kept(runtime_dir: Path) -> Refused | None:
    """Return what was refused since the worker's first start after the boot, None if not known."""
    return records.of(Refused, json_file.read(runtime_dir / FILE))
