"""Man pages from the same source as the reference: sojourn(1) and sojourn.toml(5)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import typer
from pydantic.fields import FieldInfo

from manual import tables
from manual.commands import NOTHING, Command, Option, commands, described
from sojourn import __version__
from sojourn.cli.program import app
from sojourn.model import State, where_it_runs
from sojourn.settings import DEFAULT_CONFIG, SHARED_CLUSTERS, Settings

#: Where the process runs after an end; the program itself names the host.
SOURCE, DESTINATION = "the source", "the destination"
OWNERS = {
    State.COMPLETED: DESTINATION,
    State.CLEANUP_PENDING: DESTINATION,
    State.ROLLED_BACK: SOURCE,
    State.ABORTED: SOURCE,
}

#: Exit statuses that do not belong to one end of a migration.
OTHERWISE = {
    1: "Anything else; the message names the host where the process runs.",
    2: "Usage: nothing was touched.",
}

FILES = {
    str(DEFAULT_CONFIG): "Settings of this host, mode 0600: see sojourn.toml(5).",
    "~/.config/sojourn/NAME.toml": "Settings of a cluster, for --cluster NAME.",
    f"{SHARED_CLUSTERS}/NAME.toml": "The same for all users of this machine.",
    "/var/lib/sojourn/journal.db": (
        "The journal: the truth about every migration of this host. Never delete it."
    ),
    "/run/sojourn/": "Image directories, and CRIU's logs of each migration.",
}

VARIABLES = {
    "SOJOURN_CONFIG": f"The settings, instead of {DEFAULT_CONFIG}; the file must exist.",
    "SOJOURN_*": "Each setting, in capitals; it overrules the file.",
    "NO_COLOR, COLUMNS": "As in other programs: no colours; the width of the output.",
}

INTRODUCTION = (
    (
        "Sojourn moves running Linux processes from one host to another; their memory crosses the "
        "network once."
    ),
    "A worker runs on each host, and the commands ask the workers.",
    (
        "A process has one owner. It is never lost and never runs twice: what is unknown is not "
        "guessed."
    ),
    (
        "A failure is one sentence with a hint on standard error; with --json it is an object on "
        "standard output."
    ),
    (
        "In a pipe a list has one row in a line, with tabs between the cells and without a "
        "heading; -o chooses what is printed of each."
    ),
)

CONFIGURATION = (
    f"Settings of one host: a TOML file, {DEFAULT_CONFIG}, or the one that SOJOURN_CONFIG names.",
    (
        "It is read when a command or a worker starts. It holds the cluster's key, so its mode is "
        "0600."
    ),
    (
        "Each setting is also a variable of the environment, SOJOURN_ and its name in capitals, "
        "which overrules the file."
    ),
    "Options of the command line overrule both. An unknown key or a value out of range is refused.",
)

#: How wide a line of the source is.
WIDTH = 78


def pages() -> dict[str, str]:
    """Return the man pages by their file names."""
    return {"sojourn.1": sojourn(), "sojourn.toml.5": configuration()}


def sojourn() -> str:
    """Return the page of the command line."""
    parts = [
        _title("SOJOURN", 1, "User Commands"),
        _section("NAME", [f"sojourn \\- {_purpose()}"]),
        _section("SYNOPSIS", [".B sojourn", r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]"]),
        _section("DESCRIPTION", _paragraphs(INTRODUCTION)),
        _section("OPTIONS", _items(_own_options())),
        _section("COMMANDS", [line for command in commands() for line in _command(command)]),
        _section("EXIT STATUS", ["Of a migration, unless a command lists others:", *_statuses()]),
        _section(
            "ENVIRONMENT",
            _items((f"\\fB{_text(name)}\\fR", text) for name, text in VARIABLES.items()),
        ),
        _section("FILES", _items((f"\\fI{_text(name)}\\fR", text) for name, text in FILES.items())),
        _section("SEE ALSO", [".BR sojourn.toml (5),", ".BR criu (8)"]),
    ]
    return "\n".join(parts) + "\n"


def configuration() -> str:
    """Return the page of the settings."""
    items = [
        (_setting(name, field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    parts = [
        _title("SOJOURN.TOML", 5, "File Formats"),
        _section("NAME", [r"sojourn.toml \- settings of sojourn"]),
        _section("DESCRIPTION", _paragraphs(CONFIGURATION)),
        _section("SETTINGS", _items(items)),
        _section("SEE ALSO", [".BR sojourn (1)"]),
    ]
    return "\n".join(parts) + "\n"


def _setting(name: str, field: FieldInfo) -> str:
    kind, default = _text(tables.kind(name, field)), _text(tables.default(name, field))
    return f"\\fB{_text(name)}\\fR ({kind}; default: {default})"


def _own_options() -> Iterator[tuple[str, str]]:
    """Yield the options that stand before the command."""
    for param in typer.main.get_command(app).params:
        if param.name in {"config", "cluster"}:
            option = described(param)
            yield _option(option), option.meaning


def _one_line(text: str) -> str:
    return _text(text).replace("\n", " ")


def _command(command: Command) -> list[str]:
    name = command.usage.removeprefix("sojourn ")
    status = [".PP", _text(f"Exit status: {command.status}")]
    arguments = [
        (f"\\fI{_text(argument.placeholder.strip('[]'))}\\fR", argument.meaning)
        for argument in command.arguments
        if argument.meaning
    ]
    options = [
        (_option(option), f"{option.meaning}{_default(option)}") for option in command.options
    ]
    return [
        f".SS {_one_line(name)}",
        *_paragraphs(command.paragraphs),
        *_items([*arguments, *options]),
        *status,
    ]


def _option(option: Option) -> str:
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in option.names)
    return f"{names} \\fI{_text(option.value)}\\fR" if option.value else names


def _default(option: Option) -> str:
    if option.default == "required":
        return " Required."
    return f" Default: {option.default}." if option.value and option.default != NOTHING else ""


def _purpose() -> str:
    purpose = str(typer.main.get_command(app).help).strip().split("\n")[0].rstrip(".")
    return _text(purpose[0].lower() + purpose[1:])


def _statuses() -> list[str]:
    ends = {state.exit_code: state for state in State if state.final}
    texts = {
        code: f"{end[0].upper()}{end[1:]}. {where_it_runs(end, OWNERS.get(end))}"
        for code, end in ends.items()
    }
    return _items((str(code), text) for code, text in sorted((texts | OTHERWISE).items()))


def _title(name: str, section: int, volume: str) -> str:
    return f'.TH {name} {section} "" "Sojourn {__version__}" "{volume}"'


def _section(name: str, lines: Iterable[str]) -> str:
    return "\n".join([f".SH {name}", *lines])


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [
        line
        for number, text in enumerate(texts)
        for line in ([".PP"] if number else []) + [_text(text)]
    ]


def _items(items: Iterable[tuple[str, str]]) -> list[str]:
    return [line for term, text in items for line in (".TP", term, _text(text))]


def _text(text: str) -> str:
    """Return a text as roff: special characters escaped, backquoted words bold."""
    masked = (
        text.replace("\\", r"\e")
        .replace("-", r"\-")
        .replace("\N{EN DASH}", r"\(en")
        .replace("'", r"\(aq")
    )
    bold = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", masked)
    lines = textwrap.wrap(bold, WIDTH, break_on_hyphens=False, break_long_words=False)
    # A line that begins with a dot would be a request.
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in lines)
