"""Completion in the shell: commands and options, and nothing when the cluster does not answer."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from sojourn.system.run import Completed, run

PROGRAM = Path(sys.executable).parent / "sojourn"

#: Nothing listens at port 1.
ENVIRONMENT = {
    "SOJOURN_CONFIG": "/dev/null",
    "SOJOURN_REDIS_URL": "redis://127.0.0.1:1/0",
}


def shell(*argv: str) -> Completed:
    """Run a shell in which ``sojourn`` is the program of this environment."""
    if not shutil.which(argv[0]):
        pytest.skip(f"{argv[0]} is not installed: apt-get install {argv[0]}")
    path = f"{PROGRAM.parent}:/usr/local/bin:/usr/bin:/bin"
    return run(
        argv, deadline_s=60, check=False, env={**ENVIRONMENT, "PATH": path, "HOME": "/nonexistent"}
    )


def bash(line: str) -> list[str]:
    """Return what bash offers at the end of a line, by the script that the program prints."""
    words = line.split(" ")
    script = f"""
        eval "$(_SOJOURN_COMPLETE=source_bash sojourn)"
        COMP_WORDS=({" ".join(part or "''" for part in words)}); COMP_CWORD={len(words) - 1}
        _sojourn_completion sojourn
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = shell("bash", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sojourn mi", ["migrate"]),
        ("sojourn un", ["uncordon"]),
        ("sojourn lab st", ["status", "start"]),
        ("sojourn migrate --tcp", ["--tcp-established"]),
        ("sojourn check --format na", ["nagios"]),
        ("sojourn batch 1234 pa", ["pause"]),
    ],
)
def test_bash_completes_commands_options_and_choices(line: str, offered: list[str]) -> None:
    """By the script that people install."""
    assert bash(line) == offered


def test_zsh_completes_commands() -> None:
    """Zsh accepts the script, and is offered what begins this way."""
    script = (
        "autoload -U compinit; compinit -u -D; "
        'eval "$(_SOJOURN_COMPLETE=source_zsh sojourn)"; print $_comps[sojourn]'
    )
    assert shell("zsh", "-f", "-c", script).stdout.split() == ["_sojourn_completion"]
    asked = "_TYPER_COMPLETE_ARGS='sojourn mi' _SOJOURN_COMPLETE=complete_zsh sojourn"
    assert '"migrate":"Move a running process' in shell("zsh", "-f", "-c", asked).stdout


def test_fish_completes_commands() -> None:
    """Fish can be asked for its offers."""
    script = "_SOJOURN_COMPLETE=source_fish sojourn | source; complete -C 'sojourn unc'"
    assert shell("fish", "--no-config", "-c", script).stdout.startswith("uncordon\t")


@pytest.mark.parametrize(
    "line", ["sojourn ps al", "sojourn migrate 7 --from al", "sojourn show ", "sojourn batch "]
)
def test_a_cluster_that_does_not_answer_is_not_an_error(line: str) -> None:
    """The shell would write the error into the line; and the wait is short."""
    began = time.monotonic()
    assert bash(line) == []
    assert time.monotonic() - began < 20, "two starts of the program, on a busy machine"
