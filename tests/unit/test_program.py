"""The program itself: what it imports, its help, its own options, Ctrl-C and a pipe that ends."""

from __future__ import annotations

import re
import signal
import socket
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from sojourn.cli.catalogue import GROUPS, Catalogue
from sojourn.system.run import run

ROOT = Path(__file__).parents[2]

#: Nothing listens at port 1.
NO_REDIS = "redis://127.0.0.1:1/0"

#: What takes longest to import, and which commands need it.
SLOW = ("celery", "kombu", "opentelemetry", "pydantic", "redis", "rich")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a test: no settings, no Redis, a home of its own."""
    return {
        "SOJOURN_CONFIG": "/dev/null",
        "SOJOURN_REDIS_URL": NO_REDIS,
        "PYTHONPATH": ":".join([str(ROOT), *sys.path]),
        "HOME": str(tmp_path),
        "NO_COLOR": "1",
    }


def imported_by(environment: dict[str, str], *words: str) -> set[str]:
    """Return the modules that the program imports, as Python itself reports them."""
    argv = [sys.executable, "-X", "importtime", "-m", "sojourn", *words]
    done = run(argv, deadline_s=60, env=environment, check=False)
    return set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))


def of(modules: set[str], *packages: str) -> set[str]:
    """Return which of the packages are among the modules."""
    return {name.partition(".")[0] for name in modules} & set(packages)


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
def test_help_imports_no_command(environment: dict[str, str], words: list[str]) -> None:
    """Nothing slow, and of Sojourn only what these are made of."""
    modules = imported_by(environment, *words)
    assert of(modules, *SLOW) == set()
    assert {name for name in modules if name.startswith("sojourn.")} == {
        *("sojourn.cli", "sojourn.cli.catalogue", "sojourn.cli.program"),
        *("sojourn.environment", "sojourn.errors", "sojourn.model", "sojourn.text"),
    }


def test_the_help_of_a_list_asks_nobody(environment: dict[str, str]) -> None:
    """The parser of options needs pydantic; Redis and what draws tables are not needed."""
    assert of(imported_by(environment, "list", "--help"), *SLOW) == {"pydantic"}


def test_a_list_in_a_pipe_draws_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    """Neither Celery nor rich is loaded for it: the failure alone would be drawn."""
    (tmp_path / "program.py").write_text(
        "import sys\n"
        "from sojourn.cli.lists import MIGRATIONS\n"
        "from sojourn.cli import listing\n"
        "import sojourn.cluster.client\n"
        "listing.show(MIGRATIONS, [], None)\n"
        "print(*sys.modules)\n"
    )
    argv = [sys.executable, str(tmp_path / "program.py")]
    modules = run(argv, deadline_s=60, env=environment).stdout.split()
    assert of(set(modules), "celery", "kombu", "rich", "pydantic_settings") == set()


def test_the_catalogue_is_complete() -> None:
    """Each command is where the catalogue says, and each module's commands are in it."""
    catalogue = Catalogue()
    assert all(catalogue[name].help for name in catalogue)
    modules = {module for group in GROUPS.values() for module, _ in group.values()}
    places = (ROOT / "sojourn/cli").glob("*.py")
    with_commands = {path.stem for path in places if "\ndef add_to(" in path.read_text()}
    assert modules == with_commands
    assert set(catalogue._loaded) == set(catalogue)


def test_help_is_grouped_and_each_command_is_one_line(environment: dict[str, str]) -> None:
    """In 80 columns, in the order of the catalogue."""
    lines = _out(environment, "--help").splitlines()
    assert max(map(len, lines)) <= 80
    for heading, group in GROUPS.items():
        begin = lines.index(f"{heading}:") + 1
        shown = [line.split(maxsplit=1) for line in lines[begin : begin + len(group)]]
        assert shown == [[name, summary] for name, (_, summary) in group.items()]


def test_a_paragraph_of_help_is_broken_once(environment: dict[str, str]) -> None:
    """A paragraph fills its lines: the breaks of the source are not in it."""
    text = _out({**environment, "COLUMNS": "60"}, "migrate", "--help")
    paragraph = text.split("\n\n")[2].splitlines()
    assert paragraph[0].lstrip().startswith("If the hosts have no room")
    words = [line.split() for line in paragraph]
    for line, (following, *_) in zip(paragraph, words[1:], strict=False):
        assert len(line) + 1 + len(following) > 58, line


def _out(environment: dict[str, str], *words: str) -> str:
    argv = [sys.executable, "-m", "sojourn", *words]
    return run(argv, deadline_s=60, env=environment).stdout


@pytest.mark.parametrize("words", [[], ["lab"], ["pki"]])
def test_a_group_alone_shows_its_help(environment: dict[str, str], words: list[str]) -> None:
    """As --help does."""
    assert _out(environment, *words) == _out(environment, *words, "--help")


def _failed(environment: dict[str, str], *words: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "sojourn", *words]
    done = run(argv, deadline_s=60, env=environment, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_missing_configuration(environment: dict[str, str], tmp_path: Path) -> None:
    """However it was named: exit status 2, a sentence and a hint."""
    path = str(tmp_path / "gone.toml")
    for ways, words in [({"SOJOURN_CONFIG": path}, ()), ({}, ("--config", path))]:
        status, text = _failed({**environment, **ways}, *words, "list")
        assert (status, len(text.splitlines())) == (2, 2)
        assert text.startswith(f"error: There is no file {path}, which should hold the settings.")
    status, text = _failed(environment, "--cluster", "paris", "list")
    assert (status, text.partition(":")[2][:29]) == (2, " There is no cluster 'paris':")


def test_which_cluster_is_asked(environment: dict[str, str], tmp_path: Path) -> None:
    """That of the file or of the name; both at once, and behind the command, are refused."""
    del environment["SOJOURN_REDIS_URL"]
    file = tmp_path / ".config/sojourn/paris.toml"
    file.parent.mkdir(parents=True)
    file.write_text('redis_url = "redis://127.0.0.1:1/7"')
    for words in (("--config", str(file)), ("--cluster", "paris")):
        status, text = _failed(environment, *words, "list")
        assert (status, text[:40]) == (1, "error: Redis at 127.0.0.1:1/7 does not a")
    assert _failed(environment, "--config", str(file), "--cluster", "paris", "list")[0] == 2
    status, text = _failed(environment, "list", "--cluster", "paris")
    assert (status, "sojourn --cluster ..." in text) == (2, True)


def _started(environment: dict[str, str], *words: str) -> Popen[str]:
    # Where the tests run in the background, SIGINT is ignored, and children inherit that.
    program = ["env", "--default-signal=INT", sys.executable, "-X", "importtime", "-m", "sojourn"]
    return Popen([*program, *words], stdout=PIPE, stderr=PIPE, text=True, env=environment)


def _interrupted(program: Popen[str]) -> tuple[int, str]:
    """Type Ctrl-C; return the exit status and what the program wrote, without its imports."""
    program.send_signal(signal.SIGINT)
    _, text = program.communicate(timeout=60)
    lines = [line for line in text.splitlines() if not line.startswith("import time:")]
    return program.returncode, "\n".join(lines)


@pytest.mark.parametrize(
    "module", ["typer._click.core", "sojourn.cli.program", "pydantic_core", "redis.exceptions"]
)
def test_ctrl_c_while_modules_are_imported(environment: dict[str, str], module: str) -> None:
    """It ends the program without a word, however early it comes."""
    program = _started(environment, "list")
    assert program.stderr
    while not program.stderr.readline().endswith(f" {module}\n"):
        assert program.poll() is None
    # Where it comes inside of exec(), as when a dataclass is made, Python itself ends by the signal
    # (exit_sigint in its main.c): a shell shows both as 130.
    assert _interrupted(program) in {(130, ""), (-signal.SIGINT, "")}


def test_ctrl_c_while_redis_is_silent(environment: dict[str, str]) -> None:
    """One that accepts the connection and answers nothing is not waited for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        program = _started({**environment, "SOJOURN_REDIS_URL": url}, "list")
        server.settimeout(60)
        with server.accept()[0]:
            assert _interrupted(program) == (130, "")


@pytest.mark.parametrize("words", [["--help"], ["lab", "up", "--help"]])
def test_a_pipe_that_nobody_reads(environment: dict[str, str], words: list[str]) -> None:
    """No error and no traceback, as after ``| head``."""
    program = _started(environment, *words)
    assert program.stdout
    program.stdout.close()
    assert program.stderr
    lines = program.stderr.read().splitlines()
    assert [line for line in lines if not line.startswith("import time:")] == []
    assert program.wait(60) == 1
