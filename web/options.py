"""The options of a migration or a drain as a browser's form has them: texts, empty if not given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sojourn.cluster.selector import Selector
from sojourn.errors import UsageError
from sojourn.model import Json, Plan
from sojourn.settings import load
from sojourn.text import quoted

#: Options that are numbers, and what each is; and those that only a drain has.
NUMBERS: dict[str, Callable[[str], float]] = {"max_freeze_s": float, "bandwidth_mbit": int}
TIMES: dict[str, Callable[[str], float]] = {"timeout_s": float, "wait_s": float}

#: Options that are given or not, and what a form calls each.
FLAGS = {
    "tcp_established": "Move established TCP connections along",
    "shell_job": "The tree belongs to a shell's session or terminal",
    "file_locks": "Move file locks along",
    "stop_unit": "Keep the supervisor from starting it there again",
}

#: The fields of the form that are options of a plan.
OPTIONS = ("mode", *FLAGS, *NUMBERS)

#: The fields that a drain has besides.
OF_A_DRAIN = ("skip", *TIMES)

#: The most conditions of what shall stay that are read.
SKIPPED = 100

#: The longest number that is read, in characters.
DIGITS = 20


def options_of(fields: Mapping[str, str]) -> Json:
    """Return the options that were given. Raises UsageError for a number that is none."""
    mode: Json = {"mode": fields["mode"]} if fields.get("mode") else {}
    flags = {name: True for name in FLAGS if fields.get(name)}
    return mode | flags | _numbers(fields, NUMBERS)


def times_of(fields: Mapping[str, str]) -> Json:
    """Return for how long a drain may last and wait, where that was given. Raises UsageError."""
    return _numbers(fields, TIMES)


def skipped(fields: Mapping[str, str]) -> list[Json]:
    """Return what shall stay on a host that is drained, one condition a line. Raises UsageError."""
    lines = [line.strip() for line in fields.get("skip", "").splitlines()]
    return [Selector.parsed(line).to_json() for line in lines if line][:SKIPPED]


def plan_of(source: str, fields: Mapping[str, str]) -> Plan:
    """Return the plan for one process, with this machine's limits where the form gives none.

    Raises UsageError.
    """
    request = {"pid": pid_of(fields.get("pid", "")), "source": source}
    request |= {"destination": fields.get("to", "")}
    return Plan.from_json({**load().limits, **request, **options_of(fields)})


def pid_of(text: str) -> int:
    """Return a PID. Raises UsageError for a text that is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS):
        raise UsageError(f"A PID is a whole number, not {quoted(text)}.")
    return int(text)


def _numbers(
    fields: Mapping[str, str], kinds: Mapping[str, Callable[[str], float]]
) -> dict[str, float]:
    return {name: _number(name, fields[name], kinds[name]) for name in kinds if fields.get(name)}


def _number(name: str, text: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(text[:DIGITS])
    except ValueError:
        raise UsageError(f"{name} is a number, not {quoted(text)}.") from None
