"""Tables of the reference, as Markdown: all that is generated from the code."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from manual.commands import NOTHING, Command, Option
from sojourn.cluster.metrics import FAMILIES as CLUSTER
from sojourn.cluster.metrics import Family
from sojourn.criu import diagnosis
from sojourn.model import Untyped
from sojourn.preflight.finding import CHECKS
from sojourn.settings import Settings
from workers.metrics import FAMILIES as WORKER

#: The names of the types of settings, unless the end of a setting's name is a unit.
KINDS: dict[Any, str] = {
    str: "text",
    SecretStr: "text",
    Path: "path",
    bool: "true or false",
    int: "number",
    float: "number",
}
UNITS = {"s": "seconds", "bytes": "bytes", "days": "days"}

#: Defaults that depend on the host, or that need an explanation.
EXPLAINED = {
    "host": "the host name, up to its first dot",
    "key": "none; at least 16 characters are needed",
}


#: A bar inside a cell, which would end the cell otherwise.
BAR = r"\|"

#: The width of a paragraph in the file.
WIDTH = 100


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a bar inside a cell is escaped."""
    first, *others = (
        f"| {' | '.join(cell.replace('|', BAR) for cell in line)} |" for line in (head, *rows)
    )
    return "\n".join([first, f"|{'---|' * len(head)}", *others])


def settings() -> str:
    """Return all settings: name, type, default, meaning."""
    rows = [
        (f"`{name}`", kind(name, field), default(name, field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return table(("setting", "type", "default", "meaning"), rows)


def kind(name: str, field: FieldInfo) -> str:
    """Return the type of a setting, with its bounds."""
    unit = UNITS.get(name.rpartition("_")[2])
    return f"{unit or _type_name(field.annotation)}{_bounds(field.metadata)}"


def _type_name(annotation: Untyped) -> str:
    """Return the name of a type; of a union, those of its members but for None."""
    origin: Untyped = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin in {Union, UnionType}:
        members = (member for member in get_args(annotation) if member is not NoneType)
        return " or ".join(map(_type_name, members))
    return KINDS[annotation]


def _bounds(metadata: Iterable[object]) -> str:
    # Pydantic keeps the bounds of a field as objects of annotated_types.
    low = next((f"{bound.ge}" for bound in metadata if isinstance(bound, Ge)), "")
    above = next((f"above {bound.gt}" for bound in metadata if isinstance(bound, Gt)), "")
    high = next((f"{bound.le:.0f}" for bound in metadata if isinstance(bound, Le)), "")
    if high:
        return f", {low or above} to {high}"
    return f", {low} or more" if low else ""


def default(name: str, field: FieldInfo) -> str:
    """Return the default of a setting."""
    if name in EXPLAINED:
        return EXPLAINED[name]
    value = (
        field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    )
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def checks() -> str:
    """Return all checks of preflight, in the order of their output."""
    rows = [(f"`{code}`", check.on, check.asks) for code, check in CHECKS.items()]
    return table(("code", "host", "condition"), rows)


def messages() -> str:
    """Return the meaning of CRIU's messages, by code."""
    rows = [_message(row) for row in sorted(diagnosis.messages(), key=lambda row: row.code)]
    return table(("code", "CRIU's message", "meaning", "what to do"), rows)


def _message(row: diagnosis.Row) -> tuple[str, ...]:
    means = re.sub(r"\{\w+\}", "…", row.sentence)
    return f"`{row.code}`", f"`{_readable(row.pattern)}`", means[0].upper() + means[1:], row.hint


def _readable(pattern: str) -> str:
    """Return a pattern as people read it: names and alternatives become dots."""
    plain = re.sub(r"\(\?P<\w+>(?:[^()]|\\[()])*?(?<!\\)\)", "…", pattern)
    plain = plain.replace(r"\s*", "").replace(r"Error \([^)]*\): ", "")
    plain = re.sub(r"(\\[dSw]|\.|f)[+*]\??4?", "…", plain)
    return re.sub(r"\\(.)", r"\1", plain)


def metrics(families: Iterable[Family]) -> str:
    """Return metrics: name, type, labels, meaning."""
    rows = [
        (f"`{_exposed(family)}`", _type(family), _labels(family), family.help)
        for family in families
    ]
    return table(("metric", "type", "labels", "meaning"), rows)


def cluster_metrics() -> str:
    """Return the metrics of the cluster."""
    return metrics(CLUSTER)


def worker_metrics() -> str:
    """Return the metrics of a worker."""
    return metrics(WORKER)


def _type(family: Family) -> str:
    return family.kind.__name__.removesuffix("MetricFamily").lower()


def _exposed(family: Family) -> str:
    """Return the name in the output: the client library adds a suffix to counters."""
    return f"{family.name}_total" if _type(family) == "counter" else family.name


def _labels(family: Family) -> str:
    return ", ".join(f"`{label}`" for label in family.labels) or NOTHING


def command(described: Command) -> str:
    """Return the section about a command, without its heading."""
    paragraphs = (*described.paragraphs, f"Exit status: {described.status}")
    parts = [
        f"```\n{described.usage}\n```",
        *(textwrap.fill(paragraph, WIDTH, break_on_hyphens=False) for paragraph in paragraphs),
    ]
    arguments = [
        (f"`{argument.placeholder.strip('[]')}`", argument.meaning)
        for argument in described.arguments
        if argument.meaning
    ]
    if arguments:
        parts.append(table(("argument", "meaning"), arguments))
    if described.options:
        options = [_option_row(option) for option in described.options]
        parts.append(table(("option", "default", "meaning"), options))
    return "\n\n".join(parts)


def _option_row(option: Option) -> tuple[str, ...]:
    names = ", ".join(f"`{f'{name} {option.value}'.strip()}`" for name in option.names)
    return names, option.default, option.meaning
