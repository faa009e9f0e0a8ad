"""What CRIU's logs mean: from an error message to a code, a sentence and a hint.

The known messages are data, in ``messages.toml`` beside this module; docs/troubleshooting.md shows
them as a table. CRIU 4.2 writes an error as ``(seconds) [task:] Error (file:line): [part:
]message``. The first known message among a log's errors decides. An error that no row knows is
reported in CRIU's own words, with the code ``CRIU_FAILED``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from sojourn.model import Json

#: An error line of CRIU's log: ``(00.012345) Error (criu/files-reg.c:2031): File x has bad size``.
#: The task that reports it, or the part of CRIU inside that task (``pie: 4242:``), may stand before
#: it; some of those lines have no time.
ERROR_LINE = re.compile(
    r"^(?:\([\d.]+\))?\s*(?:pie:\s*)?(?:(?P<task>\d+):\s*)?(?P<error>Error \([^)]*\): .*)$"
)

#: Errors that every failing run logs, or that even a good run logs: never the cause. The last is of
#: a CRIU that has waited in vain for a request.
NOISE = (
    "Unable to detach from",
    "Can't setup RLIMIT_NOFILE",
    "Dumping FAILED",
    "Restoring FAILED",
    "Killing processes because of failure",
    "Can't recv request",
)

#: The task that a dump is working on; its errors seldom name it (cr-dump.c, dump_one_task).
AT_TASK = r"Dumping task \(pid: (?P<task>\d+)"


@dataclass(frozen=True)
class Row:
    """A known message, as a ``[[message]]`` of ``messages.toml`` defines it.

    ``pattern`` finds the message. Its named groups, and those of ``before``, fill the sentence's
    placeholders; ``before`` finds the last earlier line of the same task that names the thing.
    ``{who}`` is the process. A ``vague`` message decides only if no other is known. ``source`` is
    file and function in CRIU.
    """

    pattern: str
    code: str
    sentence: str
    hint: str
    source: str
    before: str = ""
    vague: bool = False

    def __post_init__(self) -> None:
        """Reject what the file must not hold. Raises TypeError, ``re.error``."""
        texts = (self.pattern, self.code, self.sentence, self.hint, self.source, self.before)
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.vague, bool):
            raise TypeError(f"A message of CRIU has a value of the wrong type: {self}.")
        re.compile(self.pattern)
        re.compile(self.before)


@dataclass(frozen=True)
class Diagnosis:
    """What a log means: a stable code, a sentence that names the thing, a hint, and the error."""

    code: str
    sentence: str
    hint: str
    error: str


@cache
def messages() -> tuple[Row, ...]:
    """Return the known messages in their order: a specific pattern precedes a general one."""
    # Read at the first failure only: a worker that starts, and a freeze that succeeds, need not
    # wait for it.
    content = resources.files("sojourn.criu").joinpath("messages.toml").read_text(encoding="utf-8")
    table = tomllib.loads(content)
    return tuple(_row(entry, table["shared"]) for entry in table["message"])


def _row(entry: Json, shared: Json) -> Row:
    """Return one row of the file, with the texts that it shares with other rows filled in."""
    for key, texts in shared.items():
        name = entry.pop(f"shared_{key}", None)
        if name is not None:
            entry[key] = texts[name]
    return Row(**entry)


def is_noise(line: str) -> bool:
    """Whether a line reports an error that says nothing about the cause."""
    return any(noise in line for noise in NOISE)


def errors(log: str) -> list[str]:
    """Return all errors of a log in their order, without the noise."""
    return [match["error"] for _, match in _found(log.splitlines())]


def diagnose(log: str) -> Diagnosis | None:
    """Return what the first known error of a log means; None if no error of it is known."""
    lines = log.splitlines()
    found = _found(lines)
    for vague in (False, True):
        rows = [row for row in messages() if row.vague is vague]
        for index, match in found:
            for row in rows:
                if known := re.search(row.pattern, match["error"]):
                    return _filled(row, match, known, lines[:index])
    return None


def _found(lines: Sequence[str]) -> list[tuple[int, re.Match[str]]]:
    """Return the index of each error line, and its parts."""
    matches = ((index, ERROR_LINE.match(line)) for index, line in enumerate(lines))
    return [(index, match) for index, match in matches if match and not is_noise(match["error"])]


def _filled(
    row: Row, match: re.Match[str], known: re.Match[str], earlier: Sequence[str]
) -> Diagnosis:
    """Fill the placeholders of a row's sentence from its message and from earlier lines."""
    of_task = [line for line in earlier if not match["task"] or f" {match['task']}: " in line]
    from_before = _last(row.before, of_task) if row.before else {}
    task = match["task"] or _last(AT_TASK, earlier).get("task")
    who = f"process {task}" if task else "a process of the tree"
    names = _Names(from_before | known.groupdict() | {"who": who})
    sentence = row.sentence.format_map(names)
    return Diagnosis(row.code, sentence[0].upper() + sentence[1:], row.hint, match["error"])


def _last(pattern: str, lines: Sequence[str]) -> dict[str, str]:
    """Return the named groups of the last line that matches; empty if there is no such line."""
    matches = (re.search(pattern, line) for line in reversed(lines))
    return next((match.groupdict() for match in matches if match), {})


class _Names(dict[str, str]):
    """Names of things by placeholder; one that the log does not give reads ``(unknown NAME)``."""

    def __missing__(self, key: str) -> str:
        return f"(unknown {key})"
