"""Code in the pages: the parser accepts commands, Python compiles, and names exist."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from sojourn.cli.program import app
from sojourn.settings import Settings

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])
SOURCES = (
    "sojourn",
    "tasks",
    "workflows",
    "workers",
    "web",
    "lab",
    "tests",
    "benchmarks",
    "bin",
    "examples",
    "deploy",
)

FENCED = re.compile(r"^ *```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")

#: Where a command line begins: at the start of a line, after a prompt or operator, or in ``$(…)``.
COMMAND_LINE = re.compile(r"(?:^ *(?:\$ )?|[(;|&] ?)sojourn((?: [^\n|;&)#>]*)?)", re.MULTILINE)

#: What the pages write in place of a number.
NUMBERS = {"PID": "4242", '"$PID"': "4242", '"$OTHER"': "4242", "$PID": "4242"}

#: What the shell substitutes: the output of another program.
SUBSTITUTED = re.compile(r'"\$\((?!sojourn)[^)]*\)"')

#: Names of the kernel, of CRIU, of PostgreSQL and of Flower.
OF_OTHERS = re.compile(
    r"(PTRACE|RESTORE|FLOWER)_\w+|futex_do_wait|rt_sigreturn|out_kill_network_unlocked"
    r"|pg_terminate_backend"
)

#: The module of another project that a page shows; ``tests/integration/test_celery.py`` runs it.
PROJECT = CHECKOUT / "examples" / "celery" / "tasks.py"

page_by_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT))
)


def fenced(page: Path, *kinds: str) -> Iterator[str]:
    """Yield the code blocks of a page that are of these kinds."""
    return (found["code"] for found in FENCED.finditer(page.read_text()) if found["kind"] in kinds)


def inline(page: Path) -> list[str]:
    """Return what is between single backquotes."""
    return INLINE.findall(FENCED.sub("", page.read_text()))


def is_usage(words: str) -> bool:
    """Return whether a line is a synopsis, not a command line."""
    return bool(re.search(r"[\[\]…]|\w\|\w| \||<\w", words))


@cache
def command_line() -> Any:
    """Return the command line as the parser has it."""
    return typer.main.get_command(app)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that a line names, and the words that belong to it."""
    command = command_line()
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def names_of(command: Any) -> set[str]:
    """Return the options of a command by all their names."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return {
        "--help",
        *(name for option in options for name in (*option.opts, *option.secondary_opts)),
    }


def check_options(line: str) -> None:
    """Fail if a line names a command or an option that does not exist."""
    command, words = command_of(line.split())
    ours = words[: words.index("--")] if "--" in words else words
    assert {word for word in ours if word.startswith("--")} - names_of(command) == set(), line


@page_by_page
def test_every_command_line_of_a_block_is_accepted(page: Path) -> None:
    """Users paste these: the parser knows the commands and options and takes the arguments."""
    for block in fenced(page, "", "bash", "sh"):
        for line in COMMAND_LINE.findall(SUBSTITUTED.sub("4242", block)):
            if is_usage(line):
                continue
            check_options(line)
            command, words = command_of([NUMBERS.get(word, word) for word in line.split()])
            if not hasattr(command, "commands"):
                command.make_context("sojourn", words)


@page_by_page
def test_every_command_in_a_sentence_exists(page: Path) -> None:
    """A sentence need not have all arguments, but the commands and options it names exist."""
    for text in inline(page):
        for line in COMMAND_LINE.findall(text):
            if not is_usage(line):
                check_options(line)


@page_by_page
def test_every_python_block_compiles_and_imports_what_exists(page: Path) -> None:
    """Names that are imported exist."""
    for block in fenced(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module != PROJECT.stem:
                module = importlib.import_module(str(node.module))
                names = [alias.name for alias in node.names]
                assert [name for name in names if not hasattr(module, name)] == [], block


@page_by_page
def test_every_setting_of_a_block_exists(page: Path) -> None:
    """A block that consists of assignments is a part of sojourn.toml."""
    for block in fenced(page, "", "toml"):
        if all(re.match(r"[a-z_]+ = ", line) for line in block.splitlines() if line):
            assert set(tomllib.loads(block)) <= set(Settings.model_fields), block


@pytest.fixture(scope="module")
def source() -> str:
    """Return everything that is not a page, as one text."""
    found = [
        path for name in SOURCES for path in (CHECKOUT / name).rglob("*") if path.suffix != ".md"
    ]
    files = [
        path
        for path in (*found, *CHECKOUT.glob("*"))
        if path.is_file() and path.suffix in {".py", ".lua", ".toml", ".yml", ""}
    ]
    return "\n".join(path.read_text(errors="replace") for path in files)


@page_by_page
def test_every_name_in_snake_case_occurs_in_the_program(page: Path, source: str) -> None:
    """Fields, steps, settings, codes, metrics and variables: snake case, or capitals."""
    words = {
        word for text in inline(page) for word in re.findall(r"^_?[a-zA-Z]+(?:_[a-zA-Z]+)+$", text)
    }
    unknown = {word for word in words if word.removesuffix("_total") not in source}
    assert {word for word in unknown if not OF_OTHERS.fullmatch(word)} == set()


@page_by_page
def test_every_redis_key_that_is_named_is_documented(page: Path) -> None:
    """The table of the reference has all of them."""
    reference = (CHECKOUT / "docs/reference/keys-and-files.md").read_text()
    for key in re.findall(r"`(sojourn:[a-z:-]+)", page.read_text()):
        assert key.rstrip(":") in reference, key


def test_every_redis_key_of_the_program_is_documented_and_no_other() -> None:
    """A key begins as the code writes it, or as the queue's scripts do behind their prefix."""
    reference = (CHECKOUT / "docs/reference/keys-and-files.md").read_text()
    table = reference[
        reference.index("## Redis keys") : reference.index("## What Sojourn does not touch")
    ]
    files = (path for path in (CHECKOUT / "sojourn").rglob("*") if path.suffix in {".py", ".lua"})
    code = "\n".join(path.read_text() for path in files)
    written = {key.rstrip(":") for key in re.findall(r"""["'](sojourn:[a-z:-]+)""", code)} - {
        "sojourn:queue"
    }
    written |= {f"sojourn:queue:{key}" for key in re.findall(r"Q \.\. '([a-z-]+)", code)}
    documented = {key.rstrip(":") for key in re.findall(r"`(sojourn:[a-z:-]+)", table)}
    assert {
        key for key in written if key not in table and key.rpartition(":")[2] not in _rests(table)
    } == set()
    assert {key for key in documented if not key.startswith(tuple(written))} == set()


def _rests(table: str) -> set[str]:
    """Return the ends of keys that share a row: ``turns`` after ``sojourn:queue:ids``."""
    return {rest.rstrip(":") for rest in re.findall(r", `:?([a-z-]+)", table)}


@page_by_page
def test_every_file_of_a_host_that_is_named_is_documented(page: Path) -> None:
    """Files that Sojourn makes are in the reference, those of the lab on its page."""
    places = [CHECKOUT / "docs" / name for name in ("reference/keys-and-files.md", "lab.md")]
    known = "\n".join(place.read_text() for place in places)
    pattern = r"`(/(?:etc|run|var/lib|var/cache)/sojourn[\w.-]*/[a-z][\w.-]*)"
    for path in re.findall(pattern, page.read_text()):
        assert Path(path).name in known, path
