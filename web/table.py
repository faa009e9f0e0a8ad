"""The table of all migrations, one page of it at a time: what is asked for, and what that shows.

A browser sends the search, the filters and the number of the page, and gets the rows of that page
and the counts of the cards. So what it holds, and what crosses the network, does not grow with the
number of migrations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sojourn.errors import UsageError
from sojourn.model import Json
from sojourn.text import quoted
from web.rows import CARDS

#: The rows of one page.
PER_PAGE = 100

#: The most batches that are offered as a filter, those that were seen last; and hosts.
OFFERED = 200

#: How far back the ranges go that end now, in seconds.
RANGES = {"hour": 3_600.0, "day": 86_400.0, "week": 604_800.0}

#: The longest search, in characters; what is longer is cut.
LONGEST = 200


@dataclass(frozen=True)
class Query:
    """What the table is asked for. Empty fields do not restrict it.

    ``since`` and ``until`` bound the time of the request, in seconds since 1970; ``within_s`` is
    how far back the range goes that ends now. Pages count from 1.
    """

    text: str = ""
    card: str = ""
    state: str = ""
    host: str = ""
    batch: str = ""
    within_s: float | None = None
    since: float | None = None
    until: float | None = None
    page: int = 1

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Query:
        """Read a query from a page's address. Raises UsageError for a time that is none."""
        since, until = (_instant(fields.get(name, "")) for name in ("since", "until"))
        return cls(
            text=fields.get("text", "")[:LONGEST].strip().lower(),
            card=fields.get("card", ""),
            state=fields.get("state", ""),
            host=fields.get("host", ""),
            batch=fields.get("batch", ""),
            within_s=RANGES.get(fields.get("range", "")),
            since=since,
            # A browser's field has whole minutes: the last one belongs to the range.
            until=None if until is None else until + 60,
            page=_page(fields.get("page", "")),
        )

    @property
    def slides(self) -> bool:
        """Whether rows leave the table as time goes by."""
        return self.within_s is not None

    def selects(self, now: float) -> Callable[[Json], bool]:
        """Return whether a row is among those that the cards count, as a function."""
        terms = self.text.split()
        since = self.since if self.within_s is None else now - self.within_s
        return lambda row: (
            (since is None or row["created"] >= since)
            and (self.until is None or row["created"] < self.until)
            and (not self.host or self.host in {row["source"], row["destination"]})
            and (not self.batch or row["batch"] == self.batch)
            and (not terms or _has(row, terms))
        )

    def shows(self, row: Json) -> bool:
        """Whether a row that is counted is shown too: cards and states choose among those."""
        return (not self.card or row["card"] == self.card) and (
            not self.state or row["state"] == self.state
        )


def view(rows: Iterable[Json], query: Query, now: float) -> Json:
    """Return one page of the table, newest first, and what stands around it.

    ``counts`` has the number of rows of each card and adds up to ``counted``; ``shown`` is how many
    rows all pages have.
    """
    known = list(rows)
    counted = list(filter(query.selects(now), known))
    found = sorted(filter(query.shows, counted), key=_age)
    pages = max(1, -(-len(found) // PER_PAGE))
    page = min(query.page, pages)
    first = (page - 1) * PER_PAGE
    return {
        "rows": found[first : first + PER_PAGE],
        "counts": _counts(counted),
        "counted": len(counted),
        "shown": len(found),
        "known": len(known),
        "first": first,
        "page": page,
        "pages": pages,
        "offers": _offers(known),
    }


def _counts(rows: Iterable[Json]) -> dict[str, int]:
    counts = dict.fromkeys(CARDS, 0)
    for row in rows:
        counts[row["card"]] += 1
    return counts


def _offers(rows: list[Json]) -> dict[str, list[str]]:
    """Return the values that the filters offer: those that the rows have."""
    newest = sorted((row for row in rows if row["batch"]), key=_age)
    batches = list(dict.fromkeys(row["batch"] for row in newest))
    hosts = {row["source"] for row in rows} | {row["destination"] for row in rows}
    states = {str(row["state"]) for row in rows}
    return {"host": sorted(hosts)[:OFFERED], "batch": batches[:OFFERED], "state": sorted(states)}


def _age(row: Json) -> tuple[float, str]:
    """Return what sorts rows: newest first, and those of one instant by their ids."""
    return -row["created"], row["id"]


def _has(row: Json, terms: Iterable[str]) -> bool:
    names = ("id", "command", "source", "destination", "state", "owner", "batch", "why")
    text = " ".join([f"pid {row['pid']}", *(str(row[name] or "") for name in names)]).lower()
    return all(term in text for term in terms)


def _instant(text: str) -> float | None:
    """Return an instant as a browser's field gives it, by this machine's clock and time zone."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{quoted(text)} is not a time.", "Write it as 2026-01-31T23:59."
        ) from None


def _page(text: str) -> int:
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 7 else 1


def zone() -> str:
    """Return the name of this machine's time zone, in which pages show instants."""
    return time.strftime("%Z", time.localtime())
