"""Tables of the reference, as Markdown: what the code knows, and no more."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from manual.commands import NOTHING, Command, Option
from sojourn.diagnosis import MESSAGES, Row
from sojourn.metrics import FAMILIES as CLUSTER
from sojourn.metrics import Family
from sojourn.preflight.finding import CHECKS
from sojourn.settings import Settings
from workers.metrics import FAMILIES as WORKER

#: What the type of a setting is called, unless the end of its name says what is counted.
KINDS: dict[Any, str] = {str: "text", SecretStr: "text", Path: "path", bool: "true or false", int: "number"}
UNITS = {"s": "seconds", "bytes": "bytes", "days": "days"}

#: Defaults that are found out on each host, or that have a meaning of their own.
SPOKEN = {"host": "the host name, up to its first dot", "key": "none; at least 16 characters are needed"}


#: A bar inside of a cell.
BAR = r"\|"

#: How wide a paragraph is in the file.
WIDTH = 150


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a bar inside of a cell is masked."""
    first, *others = (f"| {' | '.join(cell.replace('|', BAR) for cell in line)} |" for line in (head, *rows))
    return "\n".join([first, f"|{'---|' * len(head)}", *others])


def settings() -> str:
    """Return all settings: name, type, default, meaning."""
    rows = [
        (f"`{name}`", kind(name, field), default(name, field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return table(("setting", "type", "default", "meaning"), rows)


def kind(name: str, field: FieldInfo) -> str:
    """Return what a setting may be, with its bounds."""
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(field.annotation))
    word = UNITS.get(name.rpartition("_")[2]) or KINDS.get(field.annotation) or "number"
    return f"{word}{_bounds(field.metadata)}"


def _bounds(metadata: Iterable[object]) -> str:
    low = next((f"{each.ge}" for each in metadata if isinstance(each, Ge)), "")
    above = next((f"above {each.gt}" for each in metadata if isinstance(each, Gt)), "")
    high = next((f"{each.le:.0f}" for each in metadata if isinstance(each, Le)), "")
    if high:
        return f", {low or above} to {high}"
    return f", {low} or more" if low else ""


def default(name: str, field: FieldInfo) -> str:
    """Return what counts where nothing is said."""
    if name in SPOKEN:
        return SPOKEN[name]
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def checks() -> str:
    """Return all checks in the order in which people read them."""
    rows = [(f"`{code}`", check.on, check.asks) for code, check in CHECKS.items()]
    return table(("code", "asked of the", "what must be so"), rows)


def messages() -> str:
    """Return what CRIU's messages mean, by their codes."""
    rows = [_message(row) for row in sorted(MESSAGES, key=lambda row: row.code)]
    return table(("code", "CRIU says", "which means", "do"), rows)


def _message(row: Row) -> tuple[str, ...]:
    means = re.sub(r"\{\w+\}", "…", row.sentence)
    return f"`{row.code}`", f"`{_readable(row.pattern)}`", means[0].upper() + means[1:], row.hint


def _readable(pattern: str) -> str:
    """Return a pattern as people read it: names of things and alternatives are dots."""
    plain = re.sub(r"\(\?P<\w+>(?:[^()]|\\[()])*?(?<!\\)\)", "…", pattern)
    plain = plain.replace(r"\s*", "").replace(r"Error \([^)]*\): ", "")
    plain = re.sub(r"(\\[dSw]|\.|f)[+*]\??4?", "…", plain)
    return re.sub(r"\\(.)", r"\1", plain)


def metrics(families: Iterable[Family]) -> str:
    """Return metrics: name, type, labels, meaning."""
    rows = [(f"`{_told(each)}`", _type(each), _labels(each), each.help) for each in families]
    return table(("metric", "type", "labels", "meaning"), rows)


def cluster_metrics() -> str:
    """Return the metrics of the cluster."""
    return metrics(CLUSTER)


def worker_metrics() -> str:
    """Return the metrics of a worker."""
    return metrics(WORKER)


def _type(family: Family) -> str:
    return family.kind.__name__.removesuffix("MetricFamily").lower()


def _told(family: Family) -> str:
    return f"{family.name}_total" if _type(family) == "counter" else family.name


def _labels(family: Family) -> str:
    return ", ".join(f"`{label}`" for label in family.labels) or NOTHING


def command(told: Command) -> str:
    """Return what stands below the heading of a command."""
    said = (*told.paragraphs, f"Exit status: {told.status}")
    parts = [f"```\n{told.usage}\n```", *(textwrap.fill(each, WIDTH, break_on_hyphens=False) for each in said)]
    explained = [argument for argument in told.arguments if argument.meaning]
    if explained:
        rows = [(f"`{each.word.strip('[]')}`", each.meaning) for each in explained]
        parts.append(table(("argument", "meaning"), rows))
    if told.options:
        parts.append(table(("option", "default", "meaning"), [_option_row(each) for each in told.options]))
    return "\n\n".join(parts)


def _option_row(each: Option) -> tuple[str, ...]:
    names = ", ".join(f"`{name} {each.value}`" if each.value else f"`{name}`" for name in each.names)
    return names, each.default, each.meaning
