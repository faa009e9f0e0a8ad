"""Plan files: many migrations in one CSV or JSON file, checked as a whole before any starts.

CSV has a header with the names of the columns; JSON is a list of objects with the same names:

``pid``, or a selector     ``pid``, ``command``, ``user``, ``cgroup``, ``unit``, ``all``: which
                           processes, see Selector
``source``                 the host where they run
``destination``            the host where they are to run, or ``auto``, which is the default
``priority``               a whole number; higher goes first; the default is 0
``skip``                   of JSON only: a list of selectors, whose processes stay
any other option of Plan   ``mode``, ``tcp_established``, ...; the defaults are those of a single
                           migration
``line``                   the number by which an error names the line; its place by default

An empty cell is as good as none. Lines of a CSV file are numbered as an editor does it, objects of
JSON from 1.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields

from sojourn.cluster.queue import check_priority
from sojourn.cluster.selector import NAMES, Selector
from sojourn.errors import UsageError
from sojourn.model import Json, Plan, Untyped
from sojourn.text import quoted

AUTO = "auto"

#: Options of a plan by the names of their types; process and hosts have columns of their own.
OPTIONS = {
    option.name: str(option.type)
    for option in fields(Plan)
    if option.name not in {"pid", "source", "destination"}
}
COLUMNS = (*NAMES, "source", "destination", "priority", "skip", *OPTIONS, "line")

#: Why something stays that a line selects, for machines: it is among what the line skips.
SKIPPED = "SKIPPED"

#: Placeholders for what is not known yet while the rest of a line is checked.
SOME_PID, SOME_HOST, OTHER_HOST = 2, "some-host", "other-host"

#: How many bad lines an error names; more are only counted.
MOST_NAMED = 100


@dataclass(frozen=True)
class Line:
    """One line of a plan: which processes of ``source`` move, to which destination, and how.

    Without a ``destination``, placement decides. What one of ``skip`` selects too stays.
    ``options`` are only those that the line has: for the others, the cluster's settings count.
    """

    number: int
    selector: Selector
    source: str
    destination: str | None
    priority: int = 0
    options: Json = field(default_factory=dict)
    skip: tuple[Selector, ...] = ()

    @property
    def pid(self) -> int | None:
        """The process, if the line has nothing but a PID.

        As in ``sojourn migrate``, it need not be the root of its tree.
        """
        return self.selector.pid if set(self.selector.to_json()) == {"pid"} else None

    def to_json(self) -> Json:
        """Return the line as a plan file of JSON has it."""
        hosts = {"source": self.source, "destination": self.destination or AUTO}
        return {
            "line": self.number,
            **self.selector.to_json(),
            **hosts,
            "priority": self.priority,
            **({"skip": [one.to_json() for one in self.skip]} if self.skip else {}),
            **self.options,
        }

    def plan(self, pid: int, destination: str) -> Json:
        """Return the plan, as JSON, for one process that the line selects. Raises UsageError."""
        plan = {"pid": pid, "source": self.source, "destination": destination, **self.options}
        Plan.from_json(plan)
        return plan


def read(text: str, *, as_json: bool) -> list[Line]:
    """Read a plan file. Raises one UsageError that names every bad line."""
    return from_json(_json(text)) if as_json else _checked(_csv(text))


def looks_like_json(name: str, text: str) -> bool:
    """Whether a file is JSON rather than CSV, by its name or else by how it begins."""
    return name.endswith(".json") or (not name.endswith(".csv") and text.lstrip()[:1] in {"[", "{"})


def from_json(data: object) -> list[Line]:
    """Read a plan from a list of mappings. Raises one UsageError that names every bad one."""
    if not isinstance(data, list):
        raise UsageError("A plan is a list of migrations, one object each.")
    return _checked((_number(entry, place), entry) for place, entry in enumerate(data, 1))


def duplicates(selected: Iterable[tuple[int, int, str]]) -> list[tuple[int, str]]:
    """Return each line that selects a process of an earlier one, and a sentence that reports it.

    ``selected`` is line, PID and source.
    """
    first: dict[tuple[int, str], int] = {}
    found = []
    for number, pid, source in selected:
        before = first.setdefault((pid, source), number)
        if before != number:
            found.append(
                (number, f"line {number}: pid {pid} on {source} is selected by line {before} too")
            )
    return found


def _number(entry: object, place: int) -> int:
    """Return the number of a line: its place, unless it brings one from the file it came from."""
    number = entry.get("line", place) if isinstance(entry, dict) else place
    return number if isinstance(number, int) else place


def _json(text: str) -> object:
    try:
        return json.loads(text)
    # RecursionError: nested too deeply. Also a number of thousands of digits is a ValueError.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The plan is not JSON: {error}.") from None


def _csv(text: str) -> Iterator[tuple[int, object]]:
    """Yield each line that is not empty, by its number, as a mapping of its cells."""
    # Spreadsheets begin a file with a byte order mark.
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
            f"There is no column {quoted(unknown[0])}."
            if unknown
            else "The first line must name the columns, source among them."
        )
        raise UsageError(wrong, f"Columns: {', '.join(COLUMNS)}.")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UsageError(f"The column {quoted(twice[0])} occurs twice.")


def _cells(header: list[str], cells: list[str]) -> Json | str:
    """Return the values of a line by column, or a sentence if it has too many cells."""
    if any(cells[len(header) :]):
        return f"{len(cells)} cells for {len(header)} columns"
    return {name: _value(name, cell) for name, cell in zip(header, cells, strict=False) if cell}


def _value(name: str, cell: str) -> Untyped:
    """Convert a cell to the type of its column; one that cannot be converted remains text.

    The checks that follow report that, with the value as the file has it.
    """
    column = {"pid": "int", "priority": "int", "all": "bool"}.get(name) or OPTIONS.get(name, "str")
    # The type of an option is an annotation, such as ``float | None``.
    convert = next((CONVERSIONS[kind] for kind in CONVERSIONS if kind in column), str)
    try:
        return convert(cell)
    except (ValueError, KeyError):
        return cell


FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
CONVERSIONS: Mapping[str, Callable[[str], object]] = {
    "bool": lambda cell: FLAGS[cell.lower()],
    "float": float,
    "int": int,
}


def _checked(numbered: Iterable[tuple[int, object]]) -> list[Line]:
    """Read all lines. Raises one UsageError that names every bad one."""
    lines, wrong = [], []
    for number, entry in numbered:
        try:
            lines.append(_line(number, entry))
        except UsageError as error:
            wrong.append((number, f"line {number}: {error.message.removesuffix('.')}"))
    # Which processes the other selectors select is known only on their hosts, and checked there.
    wrong += duplicates((line.number, line.pid, line.source) for line in lines if line.pid)
    if wrong:
        raise bad_lines(wrong)
    if not lines:
        raise UsageError("The plan holds no migration.")
    return lines


def bad_lines(numbered: Iterable[tuple[int, str]]) -> UsageError:
    """Return one error for all bad lines, from their numbers and a sentence for each."""
    sentences = [sentence for _, sentence in sorted(numbered)]
    count = len(sentences)
    lines = f"{count} lines of the plan are" if count > 1 else "One line of the plan is"
    named = sentences[:MOST_NAMED]
    more = [f"and {count - MOST_NAMED} more"] if count > MOST_NAMED else []
    return UsageError(
        "\n".join([f"{lines} wrong; nothing was started.", *named, *more]),
        "Correct them all, and repeat the command.",
    )


def _line(number: int, entry: object) -> Line:
    """Read one line. Raises one UsageError with everything that is wrong with it."""
    values = _values(entry)
    destination = values.get("destination") or AUTO
    options = {name: values[name] for name in OPTIONS if name in values}
    priority, skip = values.get("priority", 0), values.get("skip", [])
    selector = {name: values[name] for name in NAMES if name in values}
    _check_all(
        lambda: Selector.from_json(selector),
        lambda: check_priority(priority),
        lambda: check_options(values.get("source"), destination, options),
        lambda: skipped(skip),
    )
    where = None if destination == AUTO else destination
    how = (priority, options, skipped(skip))
    return Line(number, Selector.from_json(selector), values["source"], where, *how)


def skipped(data: object) -> tuple[Selector, ...]:
    """Read what shall stay from a list of selectors as JSON. Raises UsageError."""
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise UsageError(f'skip is a list such as [{{"unit": "nginx"}}], not {quoted(data)}.')
    return tuple(Selector.from_json(one) for one in data)


def _values(entry: object) -> Json:
    """Return the columns of a line that have a value. Raises UsageError for unknown ones."""
    if isinstance(entry, str):  # the sentence of a line with too many cells
        raise UsageError(entry)
    if not isinstance(entry, dict):
        raise UsageError(f"a migration is an object with options, not {quoted(entry)}")
    values = {name: value for name, value in entry.items() if value is not None}
    unknown = [repr(name) for name in values if name not in COLUMNS]
    if unknown:
        raise UsageError(
            f"there is no option {', '.join(unknown)}", f"Options: {', '.join(COLUMNS)}."
        )
    return values


def _check_all(*checks: Callable[[], object]) -> None:
    """Raise UsageError with the sentences of all checks that fail."""
    wrong = [sentence for check in checks if (sentence := _complaint(check))]
    if wrong:
        raise UsageError("; ".join(wrong))


def check_options(source: object, destination: object, options: Json) -> None:
    """Check all of a line but its processes; a destination that is ``auto`` is some other host.

    Raises UsageError.
    """
    if not source:
        raise UsageError("no source is named.")
    if destination == AUTO:
        destination = OTHER_HOST if source == SOME_HOST else SOME_HOST
    Plan.from_json({"pid": SOME_PID, "source": source, "destination": destination, **options})


def lines_of_drain(host: str, skip: list[Json] | None = None, **options: Untyped) -> list[Json]:
    """Return a drain as the lines of a plan. Raises UsageError for an option that is wrong."""
    check_options(host, AUTO, options)
    skipped(skip or [])
    return [{"all": True, "source": host, **({"skip": skip} if skip else {}), **options}]


def times_of(**given: object) -> Json:
    """Return the instants of a batch from the seconds that it was given, without those of None.

    Raises UsageError.
    """
    for seconds in given.values():
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (number and seconds > 0):  # type: ignore[operator]
            raise UsageError(f"The time of a batch is a number of seconds, not {quoted(seconds)}.")
    now = time.time()
    return {name: now + seconds for name, seconds in given.items() if seconds is not None}  # type: ignore[operator]


def _complaint(check: Callable[[], object]) -> str:
    try:
        check()
    except UsageError as error:
        return error.message.removesuffix(".")
    return ""
