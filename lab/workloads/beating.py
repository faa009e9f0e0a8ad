"""What all workloads share: a beat every few milliseconds, and a status file that says how the beats went.

The status file is replaced as a whole by a rename, so a reader never sees half of it and CRIU never finds it
open. Gaps are measured by CLOCK_REALTIME, which all hosts of the lab share: CRIU restores a process into a time
namespace (time_namespaces(7)) in which CLOCK_MONOTONIC goes on as if the freeze had not been.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

REPORT_S = 0.05


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every workload understands."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="where to write the status, as JSON")
    parser.add_argument("--beat-ms", type=float, default=5, help="time between two beats")
    return parser


class Beat:
    """Counts the beats, measures the gaps between them and writes the status."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.interval_s: float = options.beat_ms / 1000
        self.counter = 0
        self.hosts: list[str] = []
        self.longest_gap_s = 0.0
        self.longest_gap_at = 0.0
        self.last = time.time()
        self.reported = 0.0

    def __call__(self, status: dict[str, object]) -> None:
        """Take one beat: sleep, measure, count and, from time to time, report."""
        time.sleep(self.interval_s)
        now = time.time()
        if self.counter and now - self.last > self.longest_gap_s:
            self.longest_gap_s, self.longest_gap_at = now - self.last, now
        self.last = now
        self.counter += 1
        self._note_host()
        if now - self.reported >= REPORT_S:
            self.reported = now
            self._report(status)

    def _note_host(self) -> None:
        host = os.uname().nodename
        if not self.hosts or self.hosts[-1] != host:
            self.hosts.append(host)

    def _report(self, status: dict[str, object]) -> None:
        beats = {
            "pid": os.getpid(),
            "host": self.hosts[-1],
            "hosts": self.hosts,
            "counter": self.counter,
            "longest_gap_ms": round(self.longest_gap_s * 1000, 3),
            "longest_gap_at": self.longest_gap_at,
        }
        draft = self.out.with_name(f"{self.out.name}.{os.getpid()}.new")
        draft.write_text(json.dumps({**beats, **status}))
        draft.replace(self.out)
