"""Logging: one line per event, as text for people or as JSON for machines.

What an event holds from outside cannot look like another one: see ``sojourn.text``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime

from sojourn.text import cleaned, one_line, printable

#: Attributes that a log call may pass in ``extra``; they become keys of the JSON line.
CONTEXT = ("migration", "host", "step", "role", "from", "to")

#: The step that this process works on, for events that are logged inside it.
STEP: ContextVar[str] = ContextVar("step", default="")


@contextlib.contextmanager
def working_on(step: str) -> Iterator[None]:
    """Add this step to what is logged meanwhile."""
    token = STEP.set(step)
    try:
        yield
    finally:
        STEP.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message, and ``CONTEXT``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: getattr(record, key) for key in CONTEXT if hasattr(record, key)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(cleaned(line))


class TextFormatter(logging.Formatter):
    """Format ``12:00:01.250 info migration step message``, ids cut to twelve characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for one record."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        context = [str(getattr(record, key, ""))[:12] for key in ("migration", "step")]
        parts = [time, record.levelname.lower(), *filter(None, context), record.getMessage()]
        text = one_line(" ".join(parts))
        if not record.exc_info:
            return text
        # Indented: an error's text may have lines of its own, from outside.
        trace = printable(self.formatException(record.exc_info)).replace("\n", "\n  | ")
        return f"{text}\n  | {trace}"


def configure(log_format: str, *, debug: bool = False) -> None:
    """Send this process's log to stderr in the given format, ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    # A handler that a library has installed would print each event once more.
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("sojourn").setLevel(logging.DEBUG if debug else logging.INFO)
