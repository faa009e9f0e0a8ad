"""The restore as a step sees it: a rebuilder that waits, then works, then has an exit code.

The work is done by a program of its own (``sojourn.transfer.rebuilder``), which needs no worker.
"""

from __future__ import annotations

import contextlib
import select
import shlex
import socket
import time
from pathlib import Path

from sojourn.criu import failure
from sojourn.criu.commands import RESTORE_LOG, Restore
from sojourn.errors import CommandTimedOut, CriuFailed, FreezeTooLong, PhaseConflict
from sojourn.migration.context import Migration
from sojourn.model import Phase
from sojourn.system.pidfd import Held
from sojourn.transfer import pager, program, rebuilder

#: How long CRIU may take to let an accepted tree go, in seconds; it needs milliseconds.
LETTING_GO_S = 30

#: How often the root is looked for while CRIU works, in seconds; rebuilding takes far longer.
LOOK_S = 0.002


def prepare(migration: Migration) -> None:
    """Have a rebuilder wait, before the freeze. Raises CriuFailed."""
    work, settings = migration.directory.work, migration.host.settings
    log = work / "rebuilder.log"
    child = rebuilder.start(
        rebuilder.Assignment(
            migration=migration.id,
            journal=str(migration.host.journal.path),
            criu=str(settings.criu),
            restore=_restore(migration),
            awaited=str(_awaited_file(migration)) if migration.facts.get("lazy") else "",
        ),
        log,
    )
    report = program.first_report(child)
    if "waits" not in report:
        raise CriuFailed(
            report.get("message") or _never_began(migration),
            report.get("hint") or f"See {log}.",
            report.get("code", CriuFailed.code),
        )


class Rebuilding:
    """A restore that is under way."""

    def __init__(self, migration: Migration) -> None:
        """Have the one that waits begin, or another one where it has died. Raises CriuFailed."""
        for name in (rebuilder.VETO, rebuilder.RESUMED):
            (migration.directory.work / name).unlink(missing_ok=True)
        self._migration = migration
        self._connection = self._called()

    def close(self) -> None:
        """Hear no more of it; it goes on."""
        self._connection.close()

    def exit_code(self, root: Held, deadline_s: float) -> int | None:
        """Return CRIU's exit code; None if that is not known, since the rebuilder has died.

        The root is held as soon as it is there: before CRIU lets it run. At the deadline
        ``refused`` is written, then all that works is ended (FreezeTooLong). A tree that was
        accepted meanwhile is being let go, a matter of milliseconds. If CRIU hangs even there it is
        ended too (CommandTimedOut), and ``refuse`` judges by what it left.
        """
        # In this order: a tree that was accepted between a kill and the write could be the one that
        # runs.
        if not self._ended_within(root, deadline_s):
            self._refuse(deadline_s)
            self._end_if_it_hangs()
        with contextlib.suppress(OSError):
            line = self._connection.recv(64)
            return int(line) if line else None
        return None

    def raise_for(self, exit_code: int | None) -> None:
        """Raise CriuFailed: why the tree was not let run, or what CRIU's log means."""
        self._raise_if_vetoed()
        work = self._migration.directory.work
        by_hand = _restore(self._migration).by_hand(self._migration.host.settings.criu)
        command = shlex.join(str(word) for word in by_hand)
        raise failure.of("restore", exit_code, command, work / RESTORE_LOG)

    def _called(self) -> socket.socket:
        work = self._migration.directory.work
        connection = rebuilder.call(work)
        if connection is None:
            prepare(self._migration)
            connection = rebuilder.call(work)
        if connection is None:
            log = work / "rebuilder.log"
            raise CriuFailed(_never_began(self._migration), f"See {log}.")
        return connection

    def _ended_within(self, root: Held, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            root.open()
            if select.select([self._connection], [], [], LOOK_S)[0]:
                return True
        return False

    def _refuse(self, deadline_s: float) -> None:
        """Write ``refused``, end what works, and raise FreezeTooLong; not if it was accepted."""
        migration = self._migration
        migration.refresh()
        if migration.phase is not Phase.RESTORING:
            return
        with contextlib.suppress(PhaseConflict):
            migration.become(Phase.REFUSED)
            migration.end_processes()
            raise FreezeTooLong(
                f"CRIU was still rebuilding process {migration.plan.pid} on {migration.host.name} "
                f"after {deadline_s:.1f} s and was ended with all it had started.",
                "Allow more with `--max-freeze`, or find out what delayed CRIU.",
            )

    def _end_if_it_hangs(self) -> None:
        if select.select([self._connection], [], [], LETTING_GO_S)[0]:
            return
        self._migration.end_processes()
        raise CommandTimedOut(
            f"CRIU was still letting process {self._migration.plan.pid} go on "
            f"{self._migration.host.name} after {LETTING_GO_S} s and was ended."
        )

    def _raise_if_vetoed(self) -> None:
        """Raise CriuFailed if the tree was rebuilt, and the rebuilder did not let it run."""
        work, here = self._migration.directory.work, self._migration.host.name
        file = work / rebuilder.VETO
        code, _, text = file.read_text().partition(" ") if file.exists() else ("", "", "")
        if code == "TREE_TORN":
            raise CriuFailed(
                f"CRIU rebuilt the tree in another shape on {here}, so it was not let run: {text}.",
                "Have the program start its daemons in the foreground, as children of the process "
                "that they belong to.",
                code,
            )
        if code == "PAGER_ENDED":
            raise CriuFailed(
                f"The pager on {here} ended, with its guard, before process "
                f"{self._migration.plan.pid} was let run, so it was not let run.",
                f"See {work / 'pager.log'}, and the kernel's log: what ended them?",
                code,
            )


def resumed_at(migration: Migration) -> float:
    """Return when the tree ran again, in seconds since the epoch.

    The rebuilder leaves a file at that moment. A crash of the host takes the file; then the
    journal's row has the time of ``restored``.
    """
    return seen_to_run(migration) or migration.entry.updated


def seen_to_run(migration: Migration) -> float | None:
    """Return when the tree ran again by the rebuilder's file, None without one."""
    file = migration.directory.work / rebuilder.RESUMED
    return file.stat().st_mtime if file.exists() else None


def _never_began(migration: Migration) -> str:
    pid, here = migration.plan.pid, migration.host.name
    return f"The program that would have rebuilt process {pid} on {here} ended before it began."


def _restore(migration: Migration) -> Restore:
    directory, plan = migration.directory, migration.plan
    return Restore(
        images=str(directory.images),
        work=str(directory.work),
        auto_dedup=migration.host.settings.auto_dedup,
        lazy=migration.facts.get("lazy", False),
        shell_job=plan.shell_job,
        file_locks=plan.file_locks,
    )


def _awaited_file(migration: Migration) -> Path:
    """Return the file that the pager leaves when the tree may run."""
    at_once = migration.plan.post_copy or migration.host.settings.lazy_restore != "before-commit"
    return migration.directory.work / (pager.TITLED if at_once else pager.FILLED)
