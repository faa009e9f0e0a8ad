"""A PID that is not there: what a person who typed it is shown."""

from __future__ import annotations

from sojourn import units
from sojourn.cluster.client import Cluster
from sojourn.cluster.whereabouts import last_move
from sojourn.errors import ProcessGone, Refused
from sojourn.model import Plan


def refusal(cluster: Cluster, plan: Plan) -> Refused:
    """Return the refusal of a plan whose process is not on its source."""
    message = f"There is no process {plan.pid} on {plan.source}; nothing was touched."
    return Refused(message, hint(cluster, plan), ProcessGone.code)


def hint(cluster: Cluster, plan: Plan) -> str:
    """Return where the process is now if a migration moved it, else where to look."""
    move = last_move(cluster.ledger, plan.pid, plan.source)
    if move is None:
        return f"It may have ended: `sojourn ps {plan.source}` shows what is there."
    return (
        f"It moved to {move.plan.destination}: migration {move.id[:8]}, "
        f"asked for at {units.moment(move.created)}."
    )
