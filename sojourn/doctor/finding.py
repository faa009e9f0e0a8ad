"""The findings of the doctor: one for each thing that was examined."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from sojourn.model import Json


class Level(StrEnum):
    """How well a thing is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One thing that was examined: the check, how well it is, a sentence, and advice."""

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
    """Return a finding of something with which Sojourn works, but not well or not always."""
    return Finding(check, Level.WARNING, sentence, advice)


def failure(check: str, sentence: str, advice: str) -> Finding:
    """Return a finding of something with which migrations from or to this host fail."""
    return Finding(check, Level.FAILURE, sentence, advice)
