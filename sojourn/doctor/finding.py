"""What the doctor says: one finding per thing that was looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from sojourn.model import Json


class Level(StrEnum):
    """How well the thing is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: the check's name, how well it is, a sentence, and what to do about it."""

    check: str
    level: Level
    sentence: str
    advice: str = ""

    def to_json(self) -> Json:
        """Return the finding as plain JSON."""
        return asdict(self)


def ok(check: str, sentence: str) -> Finding:
    """Return a finding of something that is well."""
    return Finding(check, Level.OK, sentence)


def warning(check: str, sentence: str, advice: str) -> Finding:
    """Return a finding of something with which Sojourn works, but not as well as it could, or not always."""
    return Finding(check, Level.WARNING, sentence, advice)


def failure(check: str, sentence: str, advice: str) -> Finding:
    """Return a finding of something with which migrations from or to this host fail."""
    return Finding(check, Level.FAILURE, sentence, advice)
