"""CRIU's action script: the few lines of shell between CRIU's restore and ``sojourn/commit.py``.

CRIU runs a file without arguments and says the moment in ``CRTOOLS_SCRIPT_ACTION``
(https://criu.org/Action_scripts). Most moments need no answer, so Python is started for two of them only.
What belongs to one migration comes in the environment that CRIU was started with.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sojourn import commit
from sojourn.errors import Refused
from sojourn.process import MIGRATION_VARIABLE

SCRIPT = """#!/bin/sh
# Written by Sojourn. Called by `criu restore`; a non-zero exit at post-restore kills the restored tree.
case "$CRTOOLS_SCRIPT_ACTION" in
post-resume) : >"$SOJOURN_RESUMED" ;;
post-restore) ;;
*) exit 0 ;;
esac
exec "$SOJOURN_PYTHON" -I -S "$SOJOURN_COMMIT" "$SOJOURN_JOURNAL" "$SOJOURN_MIGRATION" "$CRTOOLS_SCRIPT_ACTION"
"""


def install(path: Path) -> None:
    """Write the script, whole or not at all. Raises Refused where it could not be run."""
    if os.statvfs(path.parent).f_flag & os.ST_NOEXEC:
        raise Refused(
            f"{path.parent} is mounted noexec, so CRIU could not run {path.name}.",
            "Set `state_dir` to a directory on a file system that permits programs.",
        )
    if path.exists() and path.read_text() == SCRIPT:
        return
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(SCRIPT)
    draft.chmod(0o700)
    draft.replace(path)


def environment(journal: Path, migration: str, resumed: Path) -> dict[str, str]:
    """Return the variables that the script needs; ``resumed`` is the file whose time marks the end of the freeze."""
    return {
        "SOJOURN_PYTHON": sys.executable,
        "SOJOURN_COMMIT": commit.__file__,
        "SOJOURN_JOURNAL": str(journal),
        MIGRATION_VARIABLE: migration,
        "SOJOURN_RESUMED": str(resumed),
    }
