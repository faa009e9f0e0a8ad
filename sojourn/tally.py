"""The tally: what finished migrations add up to, for metrics. Counted in Redis, in the block that ends a migration.

Why there: a counter in a worker's process is lost with it, and a pool has many of them; the ledger's copy of a
migration expires after some days; and a host's journal knows only its own half of one. In Redis each end is counted
exactly once, since the first one marks its migration as counted in the same step, and reading all of it is one command.
If Redis is emptied the counts begin again at zero, which Prometheus takes for a restart.

Keys:

``sojourn:tally``  hash: number by what is counted, a JSON list of a name, labels and, of a distribution, the bucket
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from sojourn.model import Json, State

KEY = "sojourn:tally"

#: Upper bounds of buckets, in seconds; what is above the last one is counted in ``+Inf``.
PAUSES_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOTALS_S = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STEPS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

#: The distributions by their names in the tally.
BUCKETS: dict[str, tuple[float, ...]] = {
    "freeze": PAUSES_S,
    "downtime": PAUSES_S,
    "migration": TOTALS_S,
    "step": STEPS_S,
}

ABOVE = "+Inf"
SUM = "sum"

#: Count, unless this migration was counted before: an end may be told more than once.
COUNT = """
if redis.call('HSETNX', ARGV[1], 'tallied', 'true') == 0 then return 0 end
for i = 3, #ARGV, 2 do redis.call('HINCRBYFLOAT', ARGV[2], ARGV[i], ARGV[i + 1]) end
return 1
"""

Counted = tuple[tuple[str, ...], float]


def command(migration_key: str, result: Json) -> list[str | float]:
    """Return the command that counts a finished migration, once however often it is sent."""
    words = [word for what, number in of(result) for word in (json.dumps(what), number)]
    return ["EVAL", COUNT, 0, migration_key, KEY, *words]


def of(result: Json) -> Iterator[Counted]:
    """Yield what one finished migration adds; what its result does not tell is not counted.

    Freeze, downtime and the whole time are those of migrations that arrived: others have none that could be compared.
    """
    way = tuple(str(result.get(name, "")) for name in ("source", "destination", "mode"))
    source, destination, mode = way
    yield ("migrations", result["state"], *way), 1
    if State(result["state"]).arrived:
        for name, told in (("freeze", "frozen_ms"), ("downtime", "downtime_ms"), ("migration", "total_ms")):
            yield from _observed((name, destination, mode), result.get(told))
    for kind in ("pages", "images"):
        if result.get(f"{kind}_bytes"):
            yield ("bytes", kind, source, destination), result[f"{kind}_bytes"]
    for step in result.get("steps", []):
        if step["ended"] is not None:
            yield from _observed(("step", step["name"]), (step["ended"] - step["started"]) * 1000)
    if result.get("failure"):
        yield ("failures", result["failure"].get("step", ""), result["failure"]["code"]), 1


def read(fields: Mapping[str, str]) -> dict[tuple[str, ...], float]:
    """Return what was counted, from the fields of the hash."""
    return {tuple(json.loads(what)): float(number) for what, number in fields.items()}


def bucket(seconds: float, bounds: Sequence[float]) -> str:
    """Return the bucket that a duration falls into, by its upper bound."""
    place = bisect_left(bounds, seconds)
    return str(bounds[place]) if place < len(bounds) else ABOVE


def cumulated(counts: Mapping[str, float], bounds: Sequence[float]) -> list[tuple[str, float]]:
    """Return buckets as Prometheus has them: each counts all that is no longer than its bound.

    A bucket of another version, with other bounds, counts in the next one that there is.
    """
    sorted_in = dict.fromkeys([*map(str, bounds), ABOVE], 0.0)
    for name, count in counts.items():
        sorted_in[bucket(float(name), bounds)] += count
    so_far = 0.0
    return [(name, so_far := so_far + count) for name, count in sorted_in.items()]


def _observed(what: tuple[str, ...], elapsed_ms: float | None) -> Iterator[Counted]:
    if elapsed_ms is None:
        return
    seconds = max(0.0, elapsed_ms / 1000)  # the clock of a host may be set back meanwhile
    yield (*what, bucket(seconds, BUCKETS[what[0]])), 1
    yield (*what, SUM), seconds
