"""The real program: exit codes, one sentence instead of a traceback, and JSON for machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sojourn import __version__
from sojourn.system.run import Completed, run

#: Nothing listens at port 1.
NO_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a test, without settings and without Redis."""
    return {
        "SOJOURN_CONFIG": "/dev/null",
        "SOJOURN_REDIS_URL": NO_REDIS,
        "PYTHONPATH": ":".join(sys.path),
        "NO_COLOR": "1",
    }


def _sojourn(environment: dict[str, str], *words: str) -> Completed:
    argv = [sys.executable, "-m", "sojourn", *words]
    done = run(argv, deadline_s=30, check=False, env=environment)
    assert "Traceback" not in done.stdout + done.stderr
    return done


BAD = [
    ("0 --from alpha --to beta", "0 is not a PID of a process"),
    ("1 --from alpha --to beta", "PID 1 is the host's init"),
    ("5 --from alpha --to alpha", "Source and destination are the same host"),
    ("5 --from alpha --to beta --mode teleport", "There is no mode 'teleport'"),
    ("5 --from alpha --to beta --max-freeze 0", "A freeze may last more than 0"),
    ("5 --from alpha --to beta --bandwidth 0", "A bandwidth is a whole number of megabits"),
    ("--plan plan.csv --to beta", "A plan file names processes, hosts and their options"),
    ("--plan plan.csv --bandwidth 100", "A plan file names processes, hosts and their options"),
    ("--plan plan.csv --mode post-copy", "A plan file names processes, hosts and their options"),
    ("--plan plan.csv --max-freeze 0", "A plan file names processes, hosts and their options"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD)
def test_usage(environment: dict[str, str], words: str, sentence: str) -> None:
    """Bad arguments are exit code 2 and one sentence, before Redis is asked."""
    done = _sojourn(environment, "migrate", *words.split())
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("5 --from a --to b --warp", "No such option: --warp"),
        ("5 --from a", "Missing option '--to'"),
        ("5 --from a --to b --bandwidth 1.5", "Invalid value for '--bandwidth'"),
    ],
)
def test_usage_that_the_parser_refuses(
    environment: dict[str, str], words: str, sentence: str
) -> None:
    """An unknown or a missing option: exit code 2, a sentence and a hint."""
    done = _sojourn(environment, "migrate", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {sentence}")
    assert hint.startswith("hint:  ")


def test_usage_for_machines(environment: dict[str, str]) -> None:
    """With --json an error is one JSON object on stdout, and stderr is empty."""
    done = _sojourn(environment, "migrate", "0", "--from", "alpha", "--to", "beta", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "USAGE"
    assert done.stderr == ""


def test_a_refusal_of_the_parser_for_machines(environment: dict[str, str]) -> None:
    """With --json an error of the parser is JSON too."""
    done = _sojourn(environment, "migrate", "5", "--from", "alpha", "--warp", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "USAGE"


@pytest.mark.parametrize("words", ["migrate 5 --from alpha --to beta", "list"])
def test_no_redis(environment: dict[str, str], words: str) -> None:
    """Without Redis every command reports that, in one sentence, with exit code 1."""
    done = _sojourn(environment, *words.split())
    assert done.returncode == 1
    assert done.stderr.startswith("error: Redis at 127.0.0.1:1/0 does not answer")


def test_no_redis_for_machines(environment: dict[str, str]) -> None:
    """The same as JSON."""
    done = _sojourn(environment, "hosts", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "REDIS_UNREACHABLE"


def test_a_bad_setting(environment: dict[str, str]) -> None:
    """A malformed setting is exit code 2, and the sentence names the key."""
    done = _sojourn({**environment, "SOJOURN_FREEZE_SLOTS": "many"}, "list")
    assert done.returncode == 2
    assert done.stderr.startswith("error: The setting 'freeze_slots' is invalid")


def test_the_version(environment: dict[str, str]) -> None:
    """It is that of the package, and needs neither settings nor Redis."""
    done = _sojourn({**environment, "SOJOURN_FREEZE_SLOTS": "many"}, "--version")
    assert (done.returncode, done.stdout) == (0, f"sojourn {__version__}\n")


def test_certificates_are_made(environment: dict[str, str], tmp_path: Path) -> None:
    """Of an authority and a host, without settings and Redis; a second authority is refused."""
    where = ("--dir", str(tmp_path / "pki"))
    created = json.loads(_sojourn(environment, "pki", "init", *where, "--json").stdout)
    assert created["directory"] == where[1]
    made = json.loads(_sojourn(environment, "pki", "issue", "alpha", *where, "--json").stdout)
    names = sorted(path.name for path in Path(made["directory"]).iterdir())
    assert names == made["files"] == ["ca.crt", "host.pem"]
    again = _sojourn(environment, "pki", "init", *where)
    assert (again.returncode, "already contains an authority" in again.stderr) == (
        2,
        True,
    )


def test_certificates_of_a_missing_authority(environment: dict[str, str], tmp_path: Path) -> None:
    """The error names the directory and the command that makes one."""
    done = _sojourn(environment, "pki", "issue", "alpha", "--dir", str(tmp_path))
    assert (done.returncode, str(tmp_path) in done.stderr, "sojourn pki init" in done.stderr) == (
        2,
        True,
        True,
    )
