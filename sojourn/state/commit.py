"""The commit: the one compare-and-set that makes the destination the owner of the process.

It is written at two moments of CRIU's restore (https://criu.org/Action_scripts), at each of which
CRIU waits for the answer. That consults nothing but the journal, and does not depend on the
worker's life.

* ``post-restore``: the tree is rebuilt, none of its instructions has run, its network is locked. If
  the phase in the journal is still ``restoring``, that becomes ``accepted``, and CRIU may let the
  tree run. If not, the answer is no, and CRIU kills the tree silently.
* ``post-resume``: the whole tree runs. ``accepted`` becomes ``restored``, which permits the source
  to retire the original. Between the two, CRIU itself can be killed and leave a tree that is
  committed but has never run: that is why the source does not act on ``accepted`` alone.
"""

from __future__ import annotations

import os
import sqlite3
import time

#: (expected phase, phase to write), by CRIU's name for the moment.
TRANSITIONS = {"post-restore": ("restoring", "accepted"), "post-resume": ("accepted", "restored")}


def connect(
    path: str, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    """Open a journal so that what is written is on the disk before the call returns.

    ``synchronous=FULL`` syncs the write-ahead log at every commit
    (https://www.sqlite.org/pragma.html).
    """
    # With ``isolation_level=None`` Python opens no transaction by itself, so a statement outside of
    # BEGIN commits at once. The time-out is for the moments in which another process writes: the
    # worker, a holder and this script all open the same file.
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, factory=factory)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def compare_and_set(
    connection: sqlite3.Connection, migration: str, role: str, expected: str, phase: str
) -> bool:
    """Write ``phase`` if the phase is ``expected``, in one durable step; return whether it was."""
    cursor = connection.execute(
        "UPDATE migration SET phase = ?, updated = ? WHERE id = ? AND role = ? AND phase = ?",
        (phase, time.time(), migration, role, expected),
    )
    # The WHERE clause is the comparison. Of two processes that try at once SQLite lets one write
    # first, and then the statement of the other one matches no row.
    return cursor.rowcount == 1


def write(connection: sqlite3.Connection, journal: str, migration: str, moment: str) -> bool:
    """Write the phase of a moment if it is its turn; return whether it was. Raises sqlite3.Error.

    ``journal`` is the path of what the connection is to.
    """
    expected, phase = TRANSITIONS[moment]
    pause(journal, migration, f"{phase}.before")
    written = compare_and_set(connection, migration, "destination", expected, phase)
    pause(journal, migration, f"{phase}.after")
    return written


def pause(journal: str, migration: str, instant: str) -> None:
    """Wait at a fail point if a test has armed it, so that a process can be killed just there.

    A fail point is armed if root has created the file ``failpoints/<instant>`` beside the journal.
    The first process to reach that instant renames it to ``<instant>.reached`` and waits until that
    file is gone. Migrations whose ids the file lists pass it: so a late step of an earlier one does
    not stop at a point that is meant for the next. Instants are ``<phase>.before`` and
    ``<phase>.after`` its write, ``<step>.begin`` and ``<step>.end``, and those of a pager.
    """
    armed = os.path.join(os.path.dirname(journal), "failpoints", instant)
    try:
        with open(armed, encoding="ascii") as file:
            if migration in file.read().split():
                return
        # rename(2) is atomic, so of several processes that reach an instant together only one
        # waits.
        os.rename(armed, f"{armed}.reached")
    except OSError:
        return
    while os.path.exists(f"{armed}.reached"):
        time.sleep(0.002)
