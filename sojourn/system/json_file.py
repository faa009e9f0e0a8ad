"""Small files of JSON that are whole or not there, also when the file system is full."""

from __future__ import annotations

import json
from pathlib import Path

from sojourn.model import Untyped


def write(file: Path, content: Untyped) -> None:
    """Write a file. Raises OSError, and leaves what was there before."""
    draft = file.with_name(f"{file.name}.draft")
    try:
        draft.write_text(json.dumps(content))
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def read(file: Path) -> Untyped:
    """Return the content of a file; None if there is none, or if it is not JSON."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError, RecursionError):  # the last: nested too deeply
        return None
