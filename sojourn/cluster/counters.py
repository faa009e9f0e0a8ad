"""Counters: what finished migrations add up to, for metrics, counted in Redis when one ends.

Why there: a counter in a worker's process is lost with it, and a pool has many of them; the
ledger's copy of a migration expires after some days; and a host's journal has only its own half of
one. In Redis each end is counted exactly once, since the first one marks its migration as counted
in the same step, and reading all of it is one command. If Redis is emptied the counts start again
at zero, which Prometheus takes for a restart.

Keys:

``sojourn:tally``  hash: number by what is counted, a JSON list of a name, labels and, for a
                   distribution, the bucket
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from sojourn.cluster import records
from sojourn.cluster.scripts import scripts_of
from sojourn.model import Json, State

KEY = "sojourn:tally"

#: Upper bounds of buckets, in seconds; what is above the last one is counted in ``+Inf``.
PAUSES_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOTALS_S = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
WAITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STEPS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

#: The distributions by their names in the hash.
BUCKETS: dict[str, tuple[float, ...]] = {
    "freeze": PAUSES_S,
    "downtime": PAUSES_S,
    "migration": TOTALS_S,
    "step": STEPS_S,
    "settled": TOTALS_S,
    "wait": WAITS_S,
}

#: The fields of a result that are counted in distributions.
DURATIONS = {
    "freeze": "frozen_ms",
    "downtime": "downtime_ms",
    "migration": "total_ms",
    "settled": "settled_ms",
    "wait": "wait_longest_ms",
}

#: What was not acted upon, by its kind, and when the first and the last was (seconds since 1970).
REFUSED, REFUSED_FIRST, REFUSED_LAST = "refused", "refused_first", "refused_last"

ABOVE = "+Inf"
SUM = "sum"

SCRIPTS = scripts_of("counters")

#: How many labels each thing that is counted has, the bucket of a distribution among them.
LABELS = {
    "migrations": 4,
    "bytes": 3,
    "failures": 2,
    "faults": 2,
    REFUSED: 1,
    REFUSED_FIRST: 1,
    REFUSED_LAST: 1,
    "step": 2,
    **dict.fromkeys(("freeze", "downtime", "migration", "settled", "wait"), 3),
}

#: How many counts are read at most: whoever writes to Redis can add any number.
MOST = 20_000

Counted = tuple[tuple[str, ...], float]


def command(migration_key: str, result: Json) -> list[str | float]:
    """Return the command that counts a finished migration; safe to repeat."""
    words = [word for what, number in of(result) for word in (json.dumps(what), number)]
    # EVAL and not EVALSHA: it is sent in one round trip with others, where nobody could answer that
    # Redis has forgotten the script.
    return ["EVAL", SCRIPTS["count"], 0, migration_key, KEY, *words]


def refusal(kind: str) -> Iterator[list[str | float]]:
    """Yield the commands that count something from Redis that was not acted upon, and note when."""
    now = time.time()
    yield ["HINCRBYFLOAT", KEY, json.dumps([REFUSED, kind]), 1]
    yield ["HSETNX", KEY, json.dumps([REFUSED_FIRST, kind]), now]
    yield ["HSET", KEY, json.dumps([REFUSED_LAST, kind]), now]


def of(result: Json) -> Iterator[Counted]:
    """Yield what one finished migration adds; what its result does not contain is not counted.

    Freeze, downtime and the whole time are those of migrations that arrived: others have none that
    could be compared.
    """
    source, destination, mode = (
        str(result.get(name, "")) for name in ("source", "destination", "mode")
    )
    yield ("migrations", result["state"], source, destination, mode), 1
    if State(result["state"]).arrived:
        yield from _of_arrived(result, destination, mode)
    for kind in ("pages", "images"):
        if result.get(f"{kind}_bytes"):
            yield ("bytes", kind, source, destination), result[f"{kind}_bytes"]
    for step in result.get("steps", []):
        if step["ended"] is not None:
            yield from _observed(("step", step["name"]), (step["ended"] - step["started"]) * 1000)
    if result.get("failure"):
        yield ("failures", result["failure"].get("step", ""), result["failure"]["code"]), 1


def _of_arrived(result: Json, *labels: str) -> Iterator[Counted]:
    """Yield what one adds that arrived: how long it took, and for how many pages it waited."""
    for name, duration in DURATIONS.items():
        yield from _observed((name, *labels), result.get(duration))
    if result.get("faults"):
        yield ("faults", *labels), result["faults"]


def read(fields: Mapping[str, str]) -> dict[tuple[str, ...], float]:
    """Return what was counted, from the fields of the hash."""
    read = ((_what(what), records.of(float, number)) for what, number in fields.items())
    return {what: number for what, number in read if what and number is not None}


def _what(text: str) -> tuple[str, ...] | None:
    """Return what is counted: its name and its labels; None if it is none of ours."""
    what = records.read(tuple[str, ...], text)
    if not what or len(what) != 1 + LABELS.get(what[0], -1):
        return None
    return what if what[0] not in BUCKETS or _is_bucket(what[-1]) else None


def _is_bucket(name: str) -> bool:
    return name in {ABOVE, SUM} or records.of(float, name) is not None


def bucket(seconds: float, bounds: Sequence[float]) -> str:
    """Return the bucket that a duration falls into, by its upper bound."""
    place = bisect_left(bounds, seconds)
    return str(bounds[place]) if place < len(bounds) else ABOVE


def cumulated(counts: Mapping[str, float], bounds: Sequence[float]) -> list[tuple[str, float]]:
    """Return buckets as Prometheus has them: each counts everything up to its bound.

    A bucket of another version, with other bounds, counts in the next one that there is.
    """
    # Empty buckets are there too: Prometheus expects the same ones at each scrape.
    sorted_in = dict.fromkeys([*map(str, bounds), ABOVE], 0.0)
    for name, count in counts.items():
        sorted_in[bucket(float(name), bounds)] += count
    so_far = 0.0
    return [(name, so_far := so_far + count) for name, count in sorted_in.items()]


def _observed(what: tuple[str, ...], elapsed_ms: float | None) -> Iterator[Counted]:
    if elapsed_ms is None:
        return
    # The clock of a host may be set back meanwhile.
    seconds = max(0.0, elapsed_ms / 1000)
    yield (*what, bucket(seconds, BUCKETS[what[0]])), 1
    yield (*what, SUM), seconds
