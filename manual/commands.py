"""The commands, arguments and options of the command line, as documents need them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import typer

from sojourn.cli.program import app
from sojourn.model import Untyped

#: Fills an empty cell.
NOTHING = "\N{EN DASH}"

#: Stands for a value where the parser has no name for it, by type.
VALUES = {int: "N", float: "N", str: "TEXT"}


@dataclass(frozen=True)
class Option:
    """One option: names, placeholder of the value (empty for a switch), default and meaning."""

    names: tuple[str, ...]
    value: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Argument:
    """One argument: its placeholder in the usage, and its meaning."""

    placeholder: str
    meaning: str


@dataclass(frozen=True)
class Command:
    """One command: full name, help by paragraphs, exit status, arguments and options."""

    name: str
    paragraphs: tuple[str, ...]
    status: str
    arguments: tuple[Argument, ...]
    options: tuple[Option, ...]

    @property
    def usage(self) -> str:
        """The synopsis of the command."""
        options = ["[OPTIONS]"] if self.options else []
        arguments = [argument.placeholder for argument in self.arguments]
        return " ".join([self.name, *options, *arguments])

    @property
    def summary(self) -> str:
        """Its first sentence."""
        return re.split(r"(?<=\.) ", self.paragraphs[0])[0]


def commands(parsed: Untyped = None, path: tuple[str, ...] = ("sojourn",)) -> Iterator[Command]:
    """Yield every command in the order of ``--help``; ``parsed`` is an object of the parser."""
    parsed = parsed or typer.main.get_command(app)
    if not hasattr(parsed, "commands"):
        yield _command(" ".join(path), parsed)
        return
    for name, command in parsed.commands.items():
        yield from commands(command, (*path, name))


def _command(name: str, parsed: Untyped) -> Command:
    text = f"{inspect.cleandoc(parsed.help)}\n\n{parsed.epilog or ''}"
    help_text, _, status = text.partition("Exit status:")
    arguments = (_argument(param) for param in parsed.params if param.param_type_name == "argument")
    options = (described(param) for param in parsed.params if param.param_type_name == "option")
    paragraphs = tuple(flat for part in help_text.split("\n\n") if (flat := _flat(part)))
    return Command(name, paragraphs, _flat(status), tuple(arguments), tuple(options))


def _argument(param: Untyped) -> Argument:
    placeholder = (param.metavar or _choices(param) or param.name.upper()).strip("[]")
    # Arguments without a fixed number are commands to run, whose own options must not be parsed.
    placeholder = f"-- {placeholder}" if param.nargs == -1 else placeholder
    return Argument(placeholder if param.required else f"[{placeholder}]", param.help or "")


def described(param: Untyped) -> Option:
    """Return an option of the parser."""
    kind = param.type_descriptor.annotation
    placeholder = param.metavar or _choices(param) or VALUES.get(kind, "TEXT")
    value = "" if param.is_flag else placeholder
    return Option((*param.opts, *param.secondary_opts), value, _default(param), param.help)


def _choices(param: Untyped) -> str:
    kind = param.type_descriptor.annotation
    return (
        "|".join(str(member.value) for member in kind)
        if isinstance(kind, type) and issubclass(kind, Enum)
        else ""
    )


def _default(param: Untyped) -> str:
    if param.required:
        return "required"
    if param.is_flag:
        return "yes" if param.default else "no"
    default = param.default.value if isinstance(param.default, Enum) else param.default
    return NOTHING if default is None else str(default)


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
