"""CRIU's action script, run as CRIU runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn import action, commit
from sojourn.errors import CommandFailed, Refused
from sojourn.journal import Journal
from sojourn.model import Phase, Plan, Role
from sojourn.mounts import MOUNT_DEADLINE_S, unmount
from sojourn.run import Completed, run

ID = "0123abcd-4567"

#: CRIU's moments that are none of ours (https://criu.org/Action_scripts).
OTHERS = [
    "pre-dump",
    "post-dump",
    "network-lock",
    "network-unlock",
    "setup-namespaces",
    "post-setup-namespaces",
    "pre-restore",
    "pre-resume",
    "orphan-pts-master",
    "status-ready",
    "query-ext-files",
]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Install the script."""
    action.install(tmp_path / "action-script")
    return tmp_path / "action-script"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Put a recorder in Python's place, that ends with exit code 7."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\nexit 7\n')
    path.chmod(0o700)
    return path


def _at(moment: str, script: Path, **changed: str) -> Completed:
    environment = action.environment(script.parent / "journal.db", ID, script.parent / "resumed")
    return run([script], deadline_s=10, check=False, env={**environment, "CRTOOLS_SCRIPT_ACTION": moment, **changed})


@pytest.mark.parametrize("moment", [*OTHERS, ""])
def test_other_moments_need_no_python(script: Path, python: Path, moment: str) -> None:
    """Most moments are answered yes at once."""
    assert _at(moment, script, SOJOURN_PYTHON=str(python)).returncode == 0
    assert not (script.parent / "called").exists()
    assert not (script.parent / "resumed").exists()


@pytest.mark.parametrize("moment", ["post-restore", "post-resume"])
def test_the_two_moments(script: Path, python: Path, moment: str) -> None:
    """The commit is asked with the journal, the migration and the moment; its exit code is the script's."""
    assert _at(moment, script, SOJOURN_PYTHON=str(python)).returncode == 7
    called = (script.parent / "called").read_text().splitlines()
    assert called == ["-I", "-S", commit.__file__, str(script.parent / "journal.db"), ID, moment]
    assert (script.parent / "resumed").exists() is (moment == "post-resume")


def test_the_whole_commit(script: Path) -> None:
    """With the real Python and a real journal: accepted, then restored, each once; a refused one never."""
    journal = Journal(script.parent / "journal.db")
    entry = journal.open(ID, Role.DESTINATION, Plan(5, "alpha", "beta"), Phase.RESTORING)
    assert [_at("post-restore", script).returncode for _ in range(2)] == [0, 1]
    assert [_at("post-resume", script).returncode for _ in range(2)] == [0, 1]
    now = journal.entry(entry.id, entry.role)
    assert now is not None
    assert now.phase is Phase.RESTORED


def test_a_python_that_is_missing(script: Path) -> None:
    """If the commit can not even be asked, the tree must not run."""
    assert _at("post-restore", script, SOJOURN_PYTHON="/no/such/python").returncode != 0


def test_installing_again(script: Path) -> None:
    """A second installation changes nothing; one that was spoilt is put right; nobody else may read or run it."""
    before = script.stat()
    action.install(script)
    assert script.stat().st_mtime_ns == before.st_mtime_ns
    script.write_text("#!/bin/sh\nexit 0\n")
    action.install(script)
    assert script.read_text() == action.SCRIPT
    assert script.stat().st_mode & 0o777 == 0o700
    assert list(script.parent.iterdir()) == [script]


def test_a_place_where_nothing_can_be_run(tmp_path: Path) -> None:
    """On a file system mounted noexec CRIU could not run the script: refused before anything is touched."""
    place = tmp_path / "noexec"
    place.mkdir()
    try:
        run(["mount", "-t", "tmpfs", "-o", "size=64k,noexec", "test", place], deadline_s=MOUNT_DEADLINE_S)
    except CommandFailed as error:
        pytest.skip(f"can not mount a tmpfs here: {error}")
    try:
        with pytest.raises(Refused, match="is mounted noexec"):
            action.install(place / "action-script")
    finally:
        unmount(place)
