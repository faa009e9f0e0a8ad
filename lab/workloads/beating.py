"""What all workloads share: a beat every few milliseconds, and a status file that describes them.

Beside it grows a file of beats, one line per report with counter and host. If two copies of a
workload ever ran at once, their counters would appear in it twice or out of order: evidence that is
independent of both hosts' journals.

The status file is replaced as a whole by a rename, so a reader never sees half of it and CRIU never
finds it open. Gaps are measured by CLOCK_REALTIME, which all hosts of the lab share: CRIU restores
a process into a time namespace (time_namespaces(7)) in which CLOCK_MONOTONIC continues as if
there had been no freeze.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

REPORT_S = 0.05


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all workloads have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out", type=Path, required=True, help="where to write the status, as JSON"
    )
    parser.add_argument("--beat-ms", type=float, default=5, help="time between two beats")
    return parser


class Beat:
    """Counts the beats, measures the gaps between them and writes the status."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.interval_s: float = options.beat_ms / 1000
        self.counter = 0
        self.arrivals: list[dict[str, object]] = []
        self.longest_gap_s = 0.0
        self.last = time.time()
        self.reported = 0.0

    def __call__(self, status: dict[str, object]) -> None:
        """Take one beat: sleep, measure, count and, from time to time, report."""
        time.sleep(self.interval_s)
        now = time.time()
        gap_s = now - self.last if self.counter else 0.0
        self.longest_gap_s = max(self.longest_gap_s, gap_s)
        self.last = now
        self.counter += 1
        self._note_host(gap_s)
        if now - self.reported >= REPORT_S:
            self.reported = now
            self._report(status)

    def _note_host(self, gap_s: float) -> None:
        """Record a first beat on another host: its number, and the pause before it."""
        host = os.uname().nodename
        if not self.arrivals or self.arrivals[-1]["host"] != host:
            self.arrivals.append(
                {"host": host, "counter": self.counter, "pause_ms": round(gap_s * 1000, 3)}
            )

    def _report(self, status: dict[str, object]) -> None:
        beats = {
            "pid": os.getpid(),
            "counter": self.counter,
            "arrivals": self.arrivals,
            "longest_gap_ms": round(self.longest_gap_s * 1000, 3),
        }
        draft = self.out.with_name(f"{self.out.name}.{os.getpid()}.new")
        draft.write_text(json.dumps({**beats, **status}))
        draft.replace(self.out)
        with self.out.with_suffix(".beats").open("a") as beats_file:
            beats_file.write(f"{self.counter} {self.arrivals[-1]['host']}\n")
