"""The command line as its parser has it, in the words that documents need."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import typer

from sojourn.cli import app

#: What is said where there is nothing to say.
NOTHING = "\N{EN DASH}"

#: What stands for a value where the parser has no better word.
VALUES = {int: "N", float: "N", str: "TEXT"}


@dataclass(frozen=True)
class Option:
    """One option: its names, the word for its value (empty for a switch), its default, and what it means."""

    names: tuple[str, ...]
    value: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Argument:
    """One argument: the word for it as the usage has it, and what it means."""

    word: str
    meaning: str


@dataclass(frozen=True)
class Command:
    """One command: its full name, its help by paragraphs, its exit status, arguments and options."""

    name: str
    paragraphs: tuple[str, ...]
    status: str
    arguments: tuple[Argument, ...]
    options: tuple[Option, ...]

    @property
    def usage(self) -> str:
        """The form in which it is called."""
        options = ["[OPTIONS]"] if self.options else []
        return " ".join([self.name, *options, *(argument.word for argument in self.arguments)])

    @property
    def summary(self) -> str:
        """Its first sentence."""
        return re.split(r"(?<=\.) ", self.paragraphs[0])[0]


def commands(parsed: Any = None, path: tuple[str, ...] = ("sojourn",)) -> Iterator[Command]:  # noqa: ANN401
    """Yield every command in the order in which ``--help`` has them. ``parsed`` is the parser's, without types."""
    parsed = parsed or typer.main.get_command(app)
    if not hasattr(parsed, "commands"):
        yield _command(" ".join(path), parsed)
        return
    for name, each in parsed.commands.items():
        yield from commands(each, (*path, name))


def _command(name: str, parsed: Any) -> Command:  # noqa: ANN401
    said, _, status = f"{inspect.cleandoc(parsed.help)}\n\n{parsed.epilog or ''}".partition("Exit status:")
    arguments = (_argument(each) for each in parsed.params if each.param_type_name == "argument")
    options = (_option(each) for each in parsed.params if each.param_type_name == "option")
    paragraphs = tuple(flat for each in said.split("\n\n") if (flat := _flat(each)))
    return Command(name, paragraphs, _flat(status), tuple(arguments), tuple(options))


def _argument(each: Any) -> Argument:  # noqa: ANN401
    word = (each.metavar or _choices(each) or each.name.upper()).strip("[]")
    word = f"-- {word}" if each.nargs == -1 else word
    return Argument(word if each.required else f"[{word}]", each.help or "")


def _option(each: Any) -> Option:  # noqa: ANN401
    kind = each.type_descriptor.annotation
    value = "" if each.is_flag else each.metavar or _choices(each) or VALUES.get(kind, "TEXT")
    return Option((*each.opts, *each.secondary_opts), value, _default(each), each.help)


def _choices(each: Any) -> str:  # noqa: ANN401
    kind = each.type_descriptor.annotation
    return "|".join(str(member.value) for member in kind) if isinstance(kind, type) and issubclass(kind, Enum) else ""


def _default(each: Any) -> str:  # noqa: ANN401
    if each.required:
        return "required"
    if each.is_flag:
        return "yes" if each.default else "no"
    default = each.default.value if isinstance(each.default, Enum) else each.default
    return NOTHING if default is None else str(default)


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
