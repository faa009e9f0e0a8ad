"""Why a run of CRIU failed: what its log means, its first errors, and how to replay it."""

from __future__ import annotations

from pathlib import Path

from sojourn.criu import diagnosis
from sojourn.criu.diagnosis import Diagnosis
from sojourn.errors import CriuFailed

#: How many error lines make the message: the first names the cause, the next ones where it arose.
ERRORS_SHOWN = 3


def errors(log: Path) -> list[str]:
    """Return the first errors of a log, without the noise; empty if there is no log."""
    return diagnosis.errors(_text(log))[:ERRORS_SHOWN]


def cause(log: Path) -> CriuFailed | None:
    """Return the error that a log reports, with its meaning if known; None without an error."""
    shown, found = _understood(log)
    if found:
        return CriuFailed(f"{found.sentence} {shown}", found.hint, found.code)
    return CriuFailed(shown) if shown else None


def of(verb: str, returncode: int | None, command: str, log: Path) -> CriuFailed:
    """Return the error for a failed run: what its log means, its first errors, its command line."""
    shown, found = _understood(log)
    ended = f"criu {verb} {_ended(returncode)}: {shown or 'its log names no error'}"
    replay = f"The whole log is {log}. To replay by hand: {command}"
    if found is None:
        return CriuFailed(ended, replay)
    return CriuFailed(f"{found.sentence} {ended}", f"{found.hint} {replay}", found.code)


def _understood(log: Path) -> tuple[str, Diagnosis | None]:
    """Return the error lines to show, a known one before the others, and the diagnosis.

    The log is read and searched only once: a frozen tree may be waiting for the rollback.
    """
    text = _text(log)
    first, found = diagnosis.errors(text)[:ERRORS_SHOWN], diagnosis.diagnose(text)
    known = [found.error] if found and found.error not in first else []
    return "; ".join([*known, *first][:ERRORS_SHOWN]), found


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _ended(returncode: int | None) -> str:
    if returncode is None:
        return "ended with an unknown exit code"
    return (
        f"was killed by signal {-returncode}"
        if returncode < 0
        else f"ended with exit code {returncode}"
    )
