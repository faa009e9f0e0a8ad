"""Plan files: many migrations in one CSV or JSON file, read and checked as a whole before the first one starts.

CSV has a header with the names of the columns; JSON is a list of objects with the same names:

``pid``, or a selector     ``pid``, ``command``, ``user``, ``cgroup``, ``unit``, ``all``: which processes, see Selector
``source``                 the host where they run
``destination``            the host where they shall run, or ``auto``, which is also what an empty one means
``priority``               a whole number; higher goes first; 0 if nothing is said
any other option of Plan   ``mode``, ``tcp_established``, ...; what is left out is as for a single migration
``line``                   what the line is called where something is wrong with it; its place if nothing is said

An empty cell says nothing. Lines of a CSV file are numbered as an editor does it, objects of JSON from 1.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sojourn.errors import UsageError
from sojourn.model import Json, Plan
from sojourn.queue import check_priority
from sojourn.selector import NAMES, Selector

AUTO = "auto"

#: Options of a plan by the names of their types; who and where are told in columns of their own.
OPTIONS = {each.name: str(each.type) for each in fields(Plan) if each.name not in {"pid", "source", "destination"}}
COLUMNS = (*NAMES, "source", "destination", "priority", *OPTIONS, "line")

#: Stands for what is not known yet while the rest of a line is checked.
SOME_PID, SOME_HOST, OTHER_HOST = 2, "some-host", "other-host"

#: More than this many bad lines are only counted.
TOLD = 100


@dataclass(frozen=True)
class Line:
    """One line of a plan: which processes of ``source``, to where (None: placement decides), and how.

    ``options`` are those that the line names, so that the cluster's settings count for the others.
    """

    number: int
    selector: Selector
    source: str
    destination: str | None
    priority: int = 0
    options: Json = field(default_factory=dict)

    @property
    def pid(self) -> int | None:
        """The process, if the line names just one: as in ``sojourn migrate``, it need not be the root of its tree."""
        return self.selector.pid if set(self.selector.to_json()) == {"pid"} else None

    def to_json(self) -> Json:
        """Return the line as it would stand in a plan file of JSON."""
        hosts = {"source": self.source, "destination": self.destination or AUTO}
        return {"line": self.number, **self.selector.to_json(), **hosts, "priority": self.priority, **self.options}

    def plan(self, pid: int, destination: str) -> Json:
        """Return what is to be asked for, for one process that the line means. Raises UsageError."""
        asked = {"pid": pid, "source": self.source, "destination": destination, **self.options}
        Plan.from_json(asked)
        return asked


def read(text: str, *, as_json: bool) -> list[Line]:
    """Read a plan file. Raises one UsageError that names every bad line."""
    return from_json(_json(text)) if as_json else _checked(_csv(text))


def looks_like_json(name: str, text: str) -> bool:
    """Whether a file is JSON rather than CSV: by its name, or by how it begins."""
    return name.endswith(".json") or (not name.endswith(".csv") and text.lstrip()[:1] in {"[", "{"})


def from_json(data: object) -> list[Line]:
    """Read a plan that came as a list of mappings. Raises one UsageError that names every bad one."""
    if not isinstance(data, list):
        raise UsageError("A plan is a list of migrations, one object each.")
    return _checked((_number(said, place), said) for place, said in enumerate(data, 1))


def duplicates(meant: Iterable[tuple[int, int, str]]) -> list[tuple[int, str]]:
    """Return each line that means a process that another one means already, and a sentence that says so.

    ``meant`` is line, PID and source.
    """
    first: dict[tuple[int, str], int] = {}
    found = []
    for number, pid, source in meant:
        before = first.setdefault((pid, source), number)
        if before != number:
            found.append((number, f"line {number}: pid {pid} on {source} is meant by line {before} already"))
    return found


def _number(said: object, place: int) -> int:
    """Return what a line is called: its place, unless it says something else because it comes from a file."""
    number = said.get("line", place) if isinstance(said, dict) else place
    return number if isinstance(number, int) else place


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"The plan is not JSON: {error}.") from None


def _csv(text: str) -> Iterator[tuple[int, object]]:
    """Yield each line that is not empty, by its number, as a mapping of what its cells say."""
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        _check_header(header)
        for row in rows:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield rows.line_num, _cells(header, cells)
    except csv.Error as error:
        raise UsageError(f"The plan is not CSV: line {rows.line_num}: {error}.") from None


def _check_header(header: list[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    if unknown or "source" not in header:
        wrong = (
            f"There is no column {unknown[0]!r}."
            if unknown
            else "The first line must name the columns, source among them."
        )
        raise UsageError(wrong, f"Columns: {', '.join(COLUMNS)}.")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UsageError(f"The column {twice[0]!r} is there twice.")


def _cells(header: list[str], cells: list[str]) -> Json | str:
    """Return what a line says, its numbers and flags turned into such; a sentence if it has too many cells."""
    if any(cells[len(header) :]):
        return f"{len(cells)} cells for {len(header)} columns"
    return {name: _value(name, cell) for name, cell in zip(header, cells, strict=False) if cell}


def _value(name: str, cell: str) -> Any:  # noqa: ANN401  (what the column holds)
    """Turn a cell into what its column holds; one that is no such thing remains text, which is told later."""
    kind = {"pid": "int", "priority": "int", "all": "bool"}.get(name) or OPTIONS.get(name, "str")
    for each, turn in TURNS.items():
        if each in kind:
            try:
                return turn(cell)
            except (ValueError, KeyError):
                return cell
    return cell


TURNS: Mapping[str, Callable[[str], object]] = {
    "bool": lambda cell: {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[cell.lower()],
    "float": float,
    "int": int,
}


def _checked(numbered: Iterable[tuple[int, object]]) -> list[Line]:
    """Read all lines. Raises one UsageError that names every bad one."""
    lines, wrong = [], []
    for number, said in numbered:
        try:
            lines.append(_line(number, said))
        except UsageError as error:
            wrong.append((number, f"line {number}: {error.message.removesuffix('.')}"))
    named = [(line.number, line.pid, line.source) for line in lines if line.pid]
    wrong += duplicates(named)
    if wrong:
        raise bad_lines(wrong)
    if not lines:
        raise UsageError("The plan holds no migration.")
    return lines


def bad_lines(numbered: Iterable[tuple[int, str]]) -> UsageError:
    """Return one error for all lines that are wrong: their numbers, and a sentence each that names the line."""
    wrong = [text for _, text in sorted(numbered)]
    told = wrong[:TOLD] + ([f"and {len(wrong) - TOLD} more"] if len(wrong) > TOLD else [])
    count = f"{len(wrong)} lines of the plan are" if len(wrong) > 1 else "One line of the plan is"
    return UsageError(f"{count} wrong; nothing was started.\n" + "\n".join(told), "Correct them all, and ask again.")


def _line(number: int, said: object) -> Line:
    """Read one line. Raises UsageError with all that is wrong with it, as far as it can be understood."""
    if not isinstance(said, dict):
        raise UsageError(said if isinstance(said, str) else f"a migration is an object with options, not {said!r}")
    said = {name: value for name, value in said.items() if value is not None}
    unknown = [repr(name) for name in said if name not in COLUMNS]
    if unknown:
        raise UsageError(f"there is no option {', '.join(unknown)}", f"Options: {', '.join(COLUMNS)}.")
    destination = said.get("destination") or AUTO
    options = {name: said[name] for name in OPTIONS if name in said}
    priority = said.get("priority", 0)
    which = {name: said[name] for name in NAMES if name in said}
    _check_all(
        lambda: Selector.from_json(which),
        lambda: check_priority(priority),
        lambda: _check_plan(said.get("source"), destination, options),
    )
    where = None if destination == AUTO else destination
    return Line(number, Selector.from_json(which), said["source"], where, priority, options)


def _check_all(*checks: Callable[[], object]) -> None:
    """Raise UsageError with the sentences of all checks that fail."""
    wrong = [sentence for check in checks if (sentence := _sentence(check))]
    if wrong:
        raise UsageError("; ".join(wrong))


def _check_plan(source: object, destination: object, options: Json) -> None:
    """Check all but the process, with some other host in the place of one that is not known yet."""
    if not source:
        raise UsageError("no source is named.")
    if destination == AUTO:
        destination = OTHER_HOST if source == SOME_HOST else SOME_HOST
    Plan.from_json({"pid": SOME_PID, "source": source, "destination": destination, **options})


def _sentence(check: Callable[[], object]) -> str:
    try:
        check()
    except UsageError as error:
        return error.message.removesuffix(".")
    return ""
