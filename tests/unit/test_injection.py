"""Where CRIU would put its code: shared memory that only can be executed takes none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.preflight import injection
from sojourn.preflight.scan import scan

PROVOKE = Path(__file__).parents[1] / "lab/provoke.py"


@pytest.mark.parametrize(("what", "codes"), [("plain", []), ("shared_code", ["SHARED_CODE"])])
def test_the_first_executable_memory(what: str, codes: list[str]) -> None:
    """It is that of a real process, read from its mappings."""
    argv = [sys.executable, str(PROVOKE), what]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as program:
        assert program.stdout
        program.stdout.readline()
        found = list(injection.check(scan(program.pid)))
        program.kill()
    assert [one.code for one in found] == codes
