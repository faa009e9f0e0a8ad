"""Log lines for people and for machines."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

from sojourn.log import JsonFormatter, TextFormatter


def _record(*, failed: bool = False, **extra: Any) -> logging.LogRecord:
    try:
        int("inside")
    except ValueError:
        trace = sys.exc_info() if failed else None
    record = logging.LogRecord(
        "sojourn.step", logging.INFO, __file__, 1, "%s is\n%s", ("it", "done"), trace
    )
    record.__dict__ |= extra
    return record


def test_json() -> None:
    """One object on one line: time in UTC, level, logger, message, and the context if any."""
    line = JsonFormatter().format(
        _record(migration="0123abcd", host="alpha", step="dump", other="x")
    )
    assert "\n" not in line
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event.pop("time"))
    context = {"migration": "0123abcd", "host": "alpha", "step": "dump"}
    assert event == {"level": "info", "logger": "sojourn.step", "message": "it is\ndone", **context}


def test_json_of_a_failure() -> None:
    """A traceback is one value of the same line."""
    line = JsonFormatter().format(_record(failed=True))
    assert "\n" not in line
    assert "ValueError: invalid literal" in json.loads(line)["traceback"]


def test_text() -> None:
    """Time, level, the beginning of the migration's id, step, message."""
    line = TextFormatter().format(_record(migration="0123abcd-4567-89ab", step="dump"))
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} info 0123abcd-456 dump it is\\ndone$", line)


def test_text_without_context() -> None:
    """A line that belongs to no migration has no gap."""
    assert re.match(
        r"[\d:.]+ info it is\\ndone\n  \| Traceback .*",
        TextFormatter().format(_record(failed=True)),
    )
