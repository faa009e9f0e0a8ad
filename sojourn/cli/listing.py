"""Lists: rows of cells, in the form that ``--output`` asks for.

On a terminal they are an aligned table in colours, with as many columns as it has room for.
Anywhere else a row is one line with a tab between two cells, whole and without a heading, so that
cut(1), awk(1) and a loop in a shell read them; more columns come behind those that are there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from sojourn.model import Json, State, Untyped
from sojourn.text import one_line

#: A column that only ``--output wide`` shows, however wide the terminal is.
ON_DEMAND = 1_000_000


class Form(StrEnum):
    """What is printed of each row."""

    WIDE = "wide"
    NAME = "name"
    JSON = "json"
    JSONL = "jsonl"


Output = Annotated[
    Form | None,
    typer.Option(
        "--output",
        "-o",
        help="All columns (wide), names or ids alone (name), the same as --json (json), or a line "
        "of JSON for each row (jsonl).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Column:
    """A column; terminals with fewer than ``from_width`` columns of text leave it out.

    Text that has no room is cut off, or continues in the next line if it ``wraps``.
    """

    title: str
    from_width: int = 0
    right: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Cell:
    """What stands in one row and column: for people in a style, and for programs as ``plain``."""

    text: str
    style: str = ""
    plain: str | None = None


@dataclass(frozen=True)
class Row:
    """One row: its cells, what ``-o name`` prints of it, and what ``-o jsonl`` does."""

    name: str
    cells: Sequence[Cell | str]
    data: Callable[[], Json]


def show(
    columns: Sequence[Column],
    rows: Sequence[Row],
    form: Form | None,
    whole: Callable[[], Untyped] | None = None,
) -> None:
    """Print rows. ``whole`` is what ``-o json`` prints, if that is not the list of rows."""
    if form is Form.NAME:
        _lines(one_line(row.name) for row in rows)
    elif form is Form.JSONL:
        _lines(json.dumps(row.data()) for row in rows)
    elif form is Form.JSON:
        _lines([json.dumps(whole() if whole else [row.data() for row in rows])])
    elif sys.stdout.isatty():
        _table(columns, rows, all_of_them=form is Form.WIDE)
    else:
        shown = [form is Form.WIDE or column.from_width < ON_DEMAND for column in columns]
        _lines("\t".join(map(_plain, _chosen(row.cells, shown))) for row in rows)


def form_of(form: Form | None, *, json: bool) -> Form | None:
    """Return the form that two options ask for: ``--json`` is the same as ``-o json``."""
    return Form.JSON if json else form


def state(of: State) -> Cell:
    """Return a state in the colour that shows whether all is well."""
    colour = {0: "green", 1: "yellow"}.get(of.exit_code, "red")
    return Cell(of, colour if of.final else "cyan")


def _lines(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")


def _plain(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return one_line(cell)
    return one_line(cell.text if cell.plain is None else cell.plain)


def _chosen(cells: Sequence[Cell | str], shown: Sequence[bool]) -> list[Cell | str]:
    return [cell for cell, is_shown in zip(cells, shown, strict=True) if is_shown]


def _table(columns: Sequence[Column], rows: Sequence[Row], *, all_of_them: bool) -> None:
    # Rich is half of what a list takes to start: it is loaded where somebody sees the table.
    from rich.table import Table
    from rich.text import Text

    from sojourn.cli.output import LONGEST, SafeConsole, console

    shown = [all_of_them or column.from_width <= console.width for column in columns]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in (column for column, is_shown in zip(columns, shown, strict=True) if is_shown):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=all_of_them or not column.wraps,
            overflow="fold" if column.wraps else "ellipsis",
        )
    for row in rows:
        cells = (Cell(cell) if isinstance(cell, str) else cell for cell in row.cells)
        texts = [Text(one_line(cell.text), cell.style) for cell in cells]
        table.add_row(*(text for text, is_shown in zip(texts, shown, strict=True) if is_shown))
    # A line with all columns is as long as it is: the terminal wraps it, and nothing is cut off.
    where = SafeConsole(highlight=False, width=LONGEST) if all_of_them else console
    where.print(table)
