"""``sojourn history``: what freezes and downtimes were like, per pair of hosts and mode."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from sojourn import units
from sojourn.cli import output
from sojourn.cli.output import console
from sojourn.cluster.client import Cluster
from sojourn.errors import UsageError
from sojourn.model import Json, State

#: The percentiles that are shown.
PERCENTILES = (50, 90, 99)

#: Seconds in the units of ``--since``.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

#: Terminals with fewer columns of text get fewer columns of the table.
WIDE = 110


@dataclass(frozen=True)
class Line:
    """All migrations from one host to another in one mode.

    Times are in milliseconds, by percentile.
    """

    source: str
    destination: str
    mode: str
    count: int
    failures: int
    frozen_ms: dict[int, float]
    downtime_ms: dict[int, float]
    pages_bytes: int
    images_bytes: int


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(history)


def history(
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Only what was requested since: 90m, 12h, 3d, or 2026-01-31T12:00.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the percentiles of freeze and downtime, per pair of hosts and mode.

    They reach back as far as the ledger, which is `keep_days`. Only migrations that arrived count;
    a percentile is always a value that was measured (nearest rank).

    Exit status: 0; 2 usage; 1 if Redis does not answer.
    """
    lines = summed(Cluster().ledger.results(instant(since, time.time()) if since else 0))
    if json:
        output.as_json([asdict(line) for line in lines])
    elif lines:
        console.print(_table(lines, wide=console.width >= WIDE))
    else:
        console.print(
            "No migration has ended since then." if since else "No migration has ended yet."
        )


def summed(results: Iterable[Json]) -> list[Line]:
    """Return finished migrations by source, destination and mode, without those in doubt."""
    by_route: defaultdict[tuple[str, str, str], list[Json]] = defaultdict(list)
    for result in results:
        if State(result["state"]).definite:
            by_route[result["source"], result["destination"], result["mode"]].append(result)
    return [_line(route, found) for route, found in sorted(by_route.items())]


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that ``percent`` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _line(route: tuple[str, str, str], results: list[Json]) -> Line:
    arrived = [result for result in results if State(result["state"]).arrived]
    frozen, downtime = (
        [result[name] for result in arrived if result[name] is not None]
        for name in ("frozen_ms", "downtime_ms")
    )
    pages, images = (
        sum(result[name] or 0 for result in results) for name in ("pages_bytes", "images_bytes")
    )
    return Line(
        *route,
        count=len(results),
        failures=len(results) - len(arrived),
        frozen_ms=_percentiles(frozen),
        downtime_ms=_percentiles(downtime),
        pages_bytes=pages,
        images_bytes=images,
    )


def _percentiles(values: Sequence[float]) -> dict[int, float]:
    return {percent: percentile(values, percent) for percent in PERCENTILES} if values else {}


def _table(lines: Sequence[Line], *, wide: bool) -> Table:
    """Return the lines as a table; on a narrow terminal with the median and the worst only."""
    shown = PERCENTILES if wide else (PERCENTILES[0], PERCENTILES[-1])
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("from", "to", *(["mode"] if wide else []), "moved", "failed"):
        table.add_column(column, no_wrap=True)
    for name in ("freeze", "downtime"):
        for percent in shown:
            title = f"{name} p{percent}" if percent == shown[0] else f"p{percent}"
            table.add_column(title, justify="right", min_width=len(title.split(maxsplit=1)[0]))
    if wide:
        table.add_column("memory", justify="right")
    for line in lines:
        mode, memory = ([line.mode], [units.size(line.pages_bytes)]) if wide else ([], [])
        times = [
            units.span(percentiles.get(percent))
            for percentiles in (line.frozen_ms, line.downtime_ms)
            for percent in shown
        ]
        failed = f"[red]{line.failures}[/]" if line.failures else "0"
        table.add_row(
            line.source,
            line.destination,
            *mode,
            str(line.count - line.failures),
            failed,
            *times,
            *memory,
        )
    return table


def instant(since: str, now: float) -> float:
    """Return what ``--since`` means, in seconds since the epoch. Raises UsageError."""
    # A span first: what is left is a date, of which Python accepts many forms (ISO 8601).
    span = re.fullmatch(r"(\d+)([smhd])", since)
    if span:
        return now - int(span[1]) * UNITS[span[2]]
    try:
        return datetime.fromisoformat(since).timestamp()
    except ValueError:
        raise UsageError(
            f"{since!r} is not a time.", "Write for example 90m, 12h, 3d, or 2026-01-31T12:00."
        ) from None
