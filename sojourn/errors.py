"""Every way in which Sojourn fails, with its sentence, its hint and its exit code.

All of them take positional arguments only: keyword-only exceptions come back from Celery's JSON
result path as a plain ``Exception``.
"""

from __future__ import annotations


class SojournError(Exception):
    """Something failed: ``message`` names what failed and where, ``hint`` what to do about it.

    ``code`` is stable and is meant for machines; ``exit_code`` is that of the command line.
    """

    code = "FAILED"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        # Celery and pickle rebuild an error by calling its class with ``args``: all must be there.
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(SojournError):
    """The request makes no sense as it was given; nothing was touched."""

    code = "USAGE"
    exit_code = 2


class Refused(SojournError):
    """Preflight refused; nothing was touched. ``code`` is that of the check, where one refused."""

    code = "REFUSED"
    exit_code = 10

    def __init__(self, message: str, hint: str = "", code: str = code) -> None:
        super().__init__(message, hint)
        self.args = (message, hint, code)
        self.code = code


class HostUnreachable(SojournError):
    """The host is known, but its worker does not answer; nothing was touched."""

    code = "HOST_UNREACHABLE"
    exit_code = 14


class Aborted(SojournError):
    """An operator asked for the migration to be given up, and the process stayed on the source."""

    code = "ABORTED"
    exit_code = 15


class Expired(Aborted):
    """The migration had not begun by the time that its caller set (``expires``)."""

    code = "EXPIRED"


class Temporary(SojournError):
    """Failed now, may succeed in a moment: retried with back-off while the process still runs."""

    code = "TEMPORARY"


class CommandFailed(SojournError):
    """A command ended with a non-zero exit code.

    The message ends with the command line, to be replayed by hand.
    """

    code = "COMMAND_FAILED"


class CommandMissing(SojournError):
    """The program to run is not installed on this host."""

    code = "COMMAND_MISSING"


class CommandTimedOut(SojournError):
    """A command was still running at its deadline; it was ended with its whole process group."""

    code = "COMMAND_TIMED_OUT"


class FreezeTooLong(SojournError):
    """The tree was frozen for longer than the plan's ``max_freeze_s``; what still ran was ended."""

    code = "FREEZE_TOO_LONG"


class CriuFailed(SojournError):
    """CRIU failed: the message has the first errors of its log, ``code`` their meaning.

    ``sojourn.criu.diagnosis`` has the table of meanings.
    """

    code = "CRIU_FAILED"

    def __init__(self, message: str, hint: str = "", code: str = "CRIU_FAILED") -> None:
        super().__init__(message, hint)
        self.args = (message, hint, code)
        self.code = code


class ChannelFailed(SojournError):
    """The connection that carries memory or images between the hosts broke, or was refused."""

    code = "CHANNEL_FAILED"


class ImagesIncomplete(SojournError):
    """The image directory does not hold what the source sent.

    CRIU would hang on it, so it is not started.
    """

    code = "IMAGES_INCOMPLETE"


class ProcessGone(SojournError):
    """The process ended, or its PID now belongs to another one."""

    code = "PROCESS_GONE"


class PhaseConflict(SojournError):
    """The journal does not permit the act: the migration is in another phase."""

    code = "PHASE_CONFLICT"


class JournalFailed(SojournError):
    """This host's journal cannot be read or written: nothing that depends on it is done."""

    code = "JOURNAL_FAILED"


class JournalLost(JournalFailed):
    """This host's journal lacks what it had recorded: it was removed, or is an older copy."""

    code = "JOURNAL_LOST"


class NameTaken(SojournError):
    """Another machine works under this host's name."""

    code = "NAME_TAKEN"


class StoreUnreachable(SojournError):
    """Redis does not answer."""

    code = "REDIS_UNREACHABLE"


class MigrationError(SojournError):
    """What ``migrate.delay(...).get()`` raises: the migration ended, but not on the destination.

    ``state`` and ``owner`` say where the process runs now; ``migration`` is the id for
    ``sojourn show``.
    """

    code = "MIGRATION_FAILED"

    def __init__(
        self,
        message: str,
        hint: str = "",
        state: str = "failed",
        owner: str | None = None,
        migration: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.args = (message, hint, state, owner, migration)
        self.state = state
        self.owner = owner
        self.migration = migration
