"""What was refused of late: perhaps somebody writes to Redis who does not have the key."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from sojourn import units
from sojourn.cluster import counters, records
from sojourn.cluster.refused import Refused
from sojourn.doctor.finding import Finding, ok, warning
from sojourn.preflight.finding import named
from sojourn.text import quoted

#: For how long a refusal is worth a warning: a day.
RECENT_S = 86_400

MESSAGES = (
    "`journalctl -u sojourn-worker | grep Refused` shows them. Has a host or a program another key "
    "or version? If not, somebody else writes to Redis: docs/troubleshooting.md."
)
RECORDS = (
    "The logs of the workers say which. Has a host or a program another key or version? If not, "
    "somebody else writes to Redis: docs/troubleshooting.md."
)


def of_messages(refused: Refused | None) -> Finding:
    """Judge what the lanes of this host have refused."""
    if refused is None:
        return ok("messages", "no lane has run here since the boot")
    if not refused.counts:
        return ok("messages", f"none was refused since {units.moment(refused.since)}")
    sentence = (
        f"Lanes of this host refused messages since {units.moment(refused.since)}: "
        f"{_listed(refused.counts)}; the last at {units.moment(refused.last)}."
    )
    return _judged("messages", sentence, refused.last, MESSAGES)


def of_records(counted: Mapping[tuple[str, ...], float]) -> Finding:
    """Judge what all hosts and programs have refused for want of a seal, as Redis has it."""
    kinds = {
        quoted(what[1])[1:-1]: count
        for what, count in counted.items()
        if what[0] == counters.REFUSED and 0 < count <= records.LARGEST
    }
    if not kinds:
        return ok("seals", "nothing in Redis was without its seal")
    first = min(_times(counted, counters.REFUSED_FIRST), default=0.0)
    last = max(_times(counted, counters.REFUSED_LAST), default=0.0)
    sentence = (
        f"Records in Redis were refused since {units.moment(first)}: {_listed(kinds)}; the last at "
        f"{units.moment(last)}."
    )
    return _judged("seals", sentence, last, RECORDS)


def _times(counted: Mapping[tuple[str, ...], float], name: str) -> Iterator[float]:
    """Yield when that was, without what somebody else may have written in place of a time."""
    latest = time.time() + RECENT_S
    return (at for what, at in counted.items() if what[0] == name and 0 < at < latest)


def _listed(counts: Mapping[str, float]) -> str:
    return named((f"{count:.0f} {kind}" for kind, count in sorted(counts.items())), 8)


def _judged(check: str, sentence: str, last: float, advice: str) -> Finding:
    """Return a warning where the last one is recent."""
    if time.time() - last < RECENT_S:
        return warning(check, sentence, advice)
    return ok(check, sentence)
