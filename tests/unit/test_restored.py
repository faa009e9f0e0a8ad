"""What CRIU's log shows of a restore that was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.criu.restored import Release, ghosts, release

LOG = """\
(00.012345) Opening ghost file 0x1 for var/tmp/tree.4242
(00.012391) Remap rpath is var/tmp/tree.4242.cr.1.ghost
(00.012400) Remap rpath is srv/a file.cr.1f.ghost
(00.012410) Remap rpath is srv/mine.ghost
(00.012500) Forking task with 4242 pid (flags 0x0)
"""


def test_ghosts(tmp_path: Path) -> None:
    """The names that CRIU has created are found, and no name that only looks like one."""
    log = tmp_path / "restore.log"
    log.write_text(LOG)
    assert ghosts(log) == [Path("/var/tmp/tree.4242.cr.1.ghost"), Path("/srv/a file.cr.1f.ghost")]
    assert release(log) is Release.NOT_BEGUN


@pytest.mark.parametrize(
    ("lines", "came"),
    [
        ("Restoring FAILED.\n", Release.FAILED),
        ("4242 was trapped\nRestoring FAILED.\n", Release.UNFINISHED),
        ("4242 was trapped\nRestore finished successfully. Tasks resumed.\n", Release.DONE),
    ],
)
def test_how_far_it_came(tmp_path: Path, lines: str, came: Release) -> None:
    """A failure means that nothing ran only if no thread had begun to."""
    log = tmp_path / "restore.log"
    log.write_text(LOG + lines)
    assert release(log) is came


def test_no_log(tmp_path: Path) -> None:
    """Without a log nothing is known, and nothing is removed."""
    assert ghosts(tmp_path / "restore.log") == []
    assert release(tmp_path / "restore.log") is Release.UNFINISHED
