"""The rebuilder: has CRIU rebuild a tree, and answers when CRIU asks whether it may run.

A program of its own on the destination. It is started before the freeze, with a CRIU that waits for
a request (``sojourn.criu.rpc``) and a connection to the journal, and listens in the work directory.
A restore begins when the step connects, and needs the worker no more; the step hears CRIU's exit
code, if it is still there. Of CRIU's questions two are not answered yes at once:

* ``post-restore``: the tree has to have the shape that it had, and a pager and a guard, where
  memory comes after the restore; then comes the commit (``sojourn.state.commit``). Where the answer
  is no, CRIU kills the tree; a file names why, unless it was the journal that did not permit it.
* ``post-resume``: the tree runs. A file is made before all else, whose time marks the end of the
  freeze; then ``restored`` is written.

* This program dies while it waits: the step starts another one.
* It dies in the restore: CRIU fails at its next question, and kills the tree; or, after the
  commit, CRIU's log shows whether the tree runs (``sojourn.migration.remains``).
* It cannot read what it needs, or cannot write, as on a full disk: before the commit the answer is
  no. At ``post-resume`` CRIU only logs it: the phase stays ``accepted``, and CRIU's log decides.
* CRIU dies: its exit code is what the step hears. Whether it hangs, the step decides by its clock.
* The worker or Redis dies: neither is needed.
* The host dies: its images die with it, and it refuses when it is back, unless it had committed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sojourn.criu import pstree, rebuilt
from sojourn.criu.commands import Restore
from sojourn.criu.pstree import Entry
from sojourn.criu.rpc import Service
from sojourn.errors import CriuFailed, SojournError
from sojourn.model import Json
from sojourn.state import commit
from sojourn.system.run import Child
from sojourn.transfer import pair, program

#: Where it listens, in the work directory; there until a restore begins.
SOCKET = "restore.socket"

#: The file whose time marks the end of the freeze, and the one with the reason for a no: a code,
#: and what there is to say.
RESUMED, VETO = "resumed", "veto"

#: A variable in the environment of a rebuilder and its CRIU, by which they are found. Those that
#: wait are not at work, so it is not that of others.
VARIABLE = "SOJOURN_REBUILDER"

#: How long to wait for the step: from before the freeze on, with every retry.
PATIENCE_S = 3600

#: Where tests can have it wait, when it knows what is to be rebuilt and CRIU has not begun.
INSTANT = "rebuild.begin"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """All that a rebuilder needs; ``awaited`` is what a pager leaves when the tree may run."""

    migration: str
    journal: str
    criu: str
    restore: Restore
    awaited: str = ""


def start(assignment: Assignment, log: Path) -> Child:
    """Start a rebuilder, which imports the same code as we do.

    Its first line is ``waits`` once it listens, or the code, message and hint of its failure.
    """
    found_by = (VARIABLE, assignment.migration)
    return program.start("sojourn.transfer.rebuilder", asdict(assignment), log, found_by)


class Rebuilder:
    """One restore, from before it is asked for."""

    def __init__(self, assignment: Assignment) -> None:
        """Start CRIU and open the journal. Raises CommandMissing, sqlite3.Error."""
        self._assignment = assignment
        self._images, self._work = Path(assignment.restore.images), Path(assignment.restore.work)
        self._connection = commit.connect(assignment.journal)
        mark = {VARIABLE: assignment.migration}
        self._criu = Service(Path(assignment.criu), self._work / "restore.out", mark)
        self._expected: list[Entry] = []

    def run(self, listener: socket.socket) -> None:
        """Wait for the step, and restore; end if CRIU ends before that. Raises OSError."""
        asked = listener.fileno()
        ready, _, _ = select.select([asked, self._criu.ended], [], [], PATIENCE_S)
        if asked not in ready:
            return
        step, _ = listener.accept()
        # First of all: from now on this counts as being at work.
        (self._work / SOCKET).unlink()
        exit_code = self._restore()
        with contextlib.suppress(OSError):  # the worker has died
            step.sendall(f"{exit_code}\n".encode())

    def may_go_on(self, moment: str, root: int) -> bool:
        """Answer CRIU: whether the tree with this root may go on, at a moment by CRIU's name."""
        try:
            return self._decide(moment, root)
        except (OSError, ValueError, CriuFailed, sqlite3.Error):
            log.exception("No answer but no at %s", moment)
            return False

    def _restore(self) -> int:
        self._expected = pstree.read(self._images)
        commit.pause(self._assignment.journal, self._assignment.migration, INSTANT)
        with _opened(self._images) as images, _opened(self._work) as work:
            options = self._assignment.restore.options(images, work)
            return self._criu.restore(options, self.may_go_on)

    def _decide(self, moment: str, root: int) -> bool:
        if moment not in commit.TRANSITIONS:
            return True
        if moment == "post-resume":
            (self._work / RESUMED).touch()
        elif veto := self._veto(root):
            (self._work / VETO).write_text(veto)
            return False
        wanted = self._assignment
        return commit.write(self._connection, wanted.journal, wanted.migration, moment)

    def _veto(self, root: int) -> str:
        """Return why the tree must not run, as a code and a text; empty if it may."""
        torn = rebuilt.difference(self._expected, root)
        if torn:
            return f"TREE_TORN {torn}"
        awaited = self._assignment.awaited
        return "PAGER_ENDED" if awaited and not pair.serves(Path(awaited)) else ""


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def call(work: Path) -> socket.socket | None:
    """Have the rebuilder of a work directory begin; None if none waits there.

    The connection delivers CRIU's exit code as a line, and ends with the rebuilder.
    """
    caller = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), _opened(work) as directory:
        caller.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        return caller
    caller.close()
    return None


def main() -> int:
    """Read the assignment and carry it out."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    data: Json = json.load(sys.stdin)
    assignment = Assignment(**data | {"restore": Restore(**data["restore"])})
    try:
        rebuilder = Rebuilder(assignment)
    # Anything else is a defect: its traceback is in the log, and the step sees this output end.
    except SojournError as error:
        program.report(code=error.code, message=error.message, hint=error.hint)
        return 1
    listener = program.listen(Path(assignment.restore.work), SOCKET)
    program.report(waits=True)
    rebuilder.run(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
