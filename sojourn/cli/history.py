"""``sojourn history``: what freezes and downtimes were like, per pair of hosts and mode."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import typer

from sojourn import units
from sojourn.cli import listing, selection
from sojourn.cli.listing import AsJson, Cell, Column, Output, Row
from sojourn.model import Json, State

#: The percentiles that are shown.
PERCENTILES = (50, 90, 99)

#: Terminals with fewer columns of text get fewer columns of the table.
WIDE = 110

COLUMNS = (
    Column("from"),
    Column("to"),
    Column("mode", WIDE),
    Column("moved", right=True),
    Column("failed", right=True),
    Column("freeze\np50", right=True),
    Column("p90", WIDE, right=True),
    Column("p99", right=True),
    Column("downtime\np50", right=True),
    Column("p90", WIDE, right=True),
    Column("p99", right=True),
    Column("memory", WIDE, right=True),
    Column("refused", listing.ON_DEMAND, right=True),
    Column("images", listing.ON_DEMAND, right=True),
)

#: Ends of migrations with which nothing went wrong, although they did not arrive.
NO_FAILURE = (State.REFUSED, State.ABORTED)


@dataclass(frozen=True)
class Line:
    """All migrations from one host to another in one mode that have ended: ``count`` of them.

    Those that preflight refused or an operator aborted are no failures: nothing went wrong with
    them. Times are in milliseconds, by percentile.
    """

    source: str
    destination: str
    mode: str
    count: int
    moved: int
    refused: int
    aborted: int
    failures: int
    frozen_ms: dict[int, float]
    downtime_ms: dict[int, float]
    pages_bytes: int
    images_bytes: int


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(history)


def history(
    since: selection.Since = None,
    host: selection.Host = None,
    source: selection.From = None,
    destination: selection.To = None,
    mode: selection.OfMode = None,
    form: Output = None,
    json: AsJson = False,
) -> None:
    """Show the percentiles of freeze and downtime, per pair of hosts and mode.

    They reach back as far as the ledger, which is `keep_days`. Only migrations that arrived count;
    a percentile is always a value that was measured (nearest rank). What preflight refused and what
    was aborted has not failed.

    Exit status: 0; 2 usage; 1 if Redis does not answer.
    """
    # Imported when Redis is asked: help and completion need not wait for it.
    from sojourn.cluster.client import Cluster

    route = selection.Route(host, source, destination, mode)
    results = Cluster().ledger.results(selection.instant(since))
    lines = [
        line for line in summed(results) if route.has(line.source, line.destination, line.mode)
    ]
    form = listing.form_of(form, json=json)
    if form is None and not lines and sys.stdout.isatty():
        sys.stdout.write("No such migration has ended yet.\n")
        return
    listing.show(COLUMNS, [_row(line) for line in lines], form)


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
    states = [State(result["state"]) for result in results]
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
        moved=len(arrived),
        refused=states.count(State.REFUSED),
        aborted=states.count(State.ABORTED),
        failures=sum(not state.arrived and state not in NO_FAILURE for state in states),
        frozen_ms=_percentiles(frozen),
        downtime_ms=_percentiles(downtime),
        pages_bytes=pages,
        images_bytes=images,
    )


def _percentiles(values: Sequence[float]) -> dict[int, float]:
    return {percent: percentile(values, percent) for percent in PERCENTILES} if values else {}


def _row(line: Line) -> Row:
    times = [
        units.span(percentiles.get(percent))
        for percentiles in (line.frozen_ms, line.downtime_ms)
        for percent in PERCENTILES
    ]
    cells: tuple[Cell | str, ...] = (
        line.source,
        line.destination,
        line.mode,
        str(line.moved),
        Cell(str(line.failures), "red" if line.failures else ""),
        *times,
        units.size(line.pages_bytes),
        str(line.refused),
        units.size(line.images_bytes),
    )
    return Row(f"{line.source} {line.destination} {line.mode}", cells, partial(asdict, line))
