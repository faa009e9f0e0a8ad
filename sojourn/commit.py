"""The commit: the one compare-and-set that makes the destination the owner of the process.

CRIU calls this file as its action script (https://criu.org/Action_scripts), on the destination, in the
middle of the freeze. Therefore it imports nothing but the standard library's SQLite (``pathlib`` alone would add
15 ms to the 20), asks nobody but the journal, and does not depend on the worker's life.

* ``post-restore``: the tree is rebuilt, not one of its instructions has run, its network is locked. If the
  journal still says ``restoring``, it says ``accepted`` from now on and CRIU may let the tree run. If not,
  the exit code is 1 and CRIU kills the tree silently.
* ``post-resume``: the whole tree runs. ``accepted`` becomes ``restored``, which permits the source to retire
  the original. Between the two, CRIU itself can be killed and leave a tree that is committed but never
  woke up: that is why the source does not act on ``accepted`` alone.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time

#: (phase that must stand, phase that is written), by CRIU's name for the moment.
TRANSITIONS = {"post-restore": ("restoring", "accepted"), "post-resume": ("accepted", "restored")}


def connect(path: str, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    """Open a journal so that what is written is on the disk before the call returns.

    ``synchronous=FULL`` syncs the write-ahead log at each commit (https://www.sqlite.org/pragma.html).
    """
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, factory=factory)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def compare_and_set(connection: sqlite3.Connection, migration: str, role: str, expected: str, phase: str) -> bool:
    """Write ``phase`` if ``expected`` stands there, durably and in one step; say whether it did."""
    cursor = connection.execute(
        "UPDATE migration SET phase = ?, updated = ? WHERE id = ? AND role = ? AND phase = ?",
        (phase, time.time(), migration, role, expected),
    )
    return cursor.rowcount == 1


def pause(journal: str, instant: str) -> None:
    """Stand still at a named instant if a test asked for it, so that something can be killed just there.

    Nothing happens unless root has made the file ``failpoints/<instant>`` beside the journal. Who comes first to that
    instant renames it to ``<instant>.reached`` and waits until that is gone. Instants are ``<phase>.before`` and
    ``<phase>.after`` its write, and ``<step>.begin`` and ``<step>.end``.
    """
    armed = os.path.join(os.path.dirname(journal), "failpoints", instant)  # noqa: PTH118, PTH120  (no pathlib here)
    try:
        os.rename(armed, f"{armed}.reached")  # noqa: PTH104
    except OSError:
        return
    while os.path.exists(f"{armed}.reached"):  # noqa: PTH110
        time.sleep(0.002)


def main(journal: str, migration: str, moment: str) -> int:
    """Do what the given moment of a restore asks for; return the exit code for CRIU."""
    expected, phase = TRANSITIONS[moment]
    connection = connect(journal)
    pause(journal, f"{phase}.before")
    written = compare_and_set(connection, migration, "destination", expected, phase)
    pause(journal, f"{phase}.after")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
