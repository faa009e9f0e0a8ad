"""The order of the phases of a migration on each host: what comes first, and what may follow."""

from __future__ import annotations

from sojourn.model import Phase, Role

FIRST_PHASE = {Role.SOURCE: Phase.OPEN, Role.DESTINATION: Phase.RESERVED}

#: The phases that may follow a phase. Anything else is a PhaseConflict, whoever requests it.
PERMITTED = {
    Phase.OPEN: {Phase.FREEZING, Phase.RESUMED},
    Phase.FREEZING: {Phase.FROZEN, Phase.RESUMED},
    Phase.FROZEN: {Phase.RELEASED, Phase.RESUMED},
    Phase.RELEASED: {Phase.RETIRED, Phase.RESUMED},
    Phase.RESERVED: {Phase.RESTORING, Phase.REFUSED},
    Phase.RESTORING: {Phase.ACCEPTED, Phase.REFUSED},
    Phase.ACCEPTED: {Phase.RESTORED, Phase.REFUSED},  # see sojourn.migration.destination.refuse
}


def way(last: Phase | None, phase: Phase) -> list[Phase]:
    """Return the phases after one up to another, on the shortest way.

    Without a last phase, the row was opened in the other one.
    """
    if last is phase:
        return []
    following = PERMITTED.get(last, set()) if last else set()
    if last is None or phase in following:
        return [phase]
    ways = [[first, *rest] for first in sorted(following) if (rest := way(first, phase))]
    return min(ways, key=len, default=[])
