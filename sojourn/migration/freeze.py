"""When a freeze began, by the clock of the source, as well as that can be known from outside."""

from __future__ import annotations

import time

from sojourn.criu import stats
from sojourn.migration.context import Migration
from sojourn.state.facts import DumpFacts


def instants(migration: Migration, dump: DumpFacts) -> tuple[float, float]:
    """Return when CRIU began to stop the tree, and when all of it stood still; seconds since 1970.

    The begin was seen, and it is counted back from CRIU's end, since CRIU measures durations only.
    Both come out late, by the time between two looks and by the time that CRIU took to end, so the
    earlier one counts. Without a dump that has ended it is now. Raises CriuFailed if CRIU's
    measurements are cut short.
    """
    measured = stats.of_dump(migration.directory.work)
    freezing_s, end = measured.freezing_us / 1e6, dump.get("dump_ended", time.time())
    counted = end - freezing_s - measured.frozen_us / 1e6
    seen = dump.get("seen_stopped") or end
    if migration.plan.post_copy:  # CRIU 4.2 stops its clock twice there: wrong by the time of day
        began = seen
    elif any(member.stopped for member in migration.entry.tree[:1]):
        began = counted  # seen so from the beginning
    else:
        began = min(seen, counted)
    return began, began + freezing_s
