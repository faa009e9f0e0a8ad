"""What is reported of an end: the finished migration, and an id by which it counts once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import NAMESPACE_OID, uuid5

from sojourn.model import Json, State

#: The types of notices: an end that is known, and a doubt, which may still become one.
ENDED, IN_DOUBT = "migration.ended", "migration.in_doubt"


@dataclass(frozen=True)
class Notice:
    """One end of one migration.

    ``id`` is the same whenever and by whichever host this end is reported, so that whoever receives
    it twice can tell. ``body`` is what is sent, as JSON text.
    """

    id: str
    type: str
    migration: str
    state: str
    body: str


def notice_of(result: Json, host: str, at: float, **more: object) -> Notice:
    """Return the notice of an end that ``host`` recorded at this time (seconds since the epoch).

    ``result`` is the finished migration as ``--json`` gives it; ``more`` is added to it.
    """
    migration, state = str(result["id"]), State(result["state"])
    name = str(uuid5(NAMESPACE_OID, f"notice of {migration}: {state}"))
    kind = IN_DOUBT if state is State.IN_DOUBT else ENDED
    body = {
        "id": name,
        "type": kind,
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        "host": host,
        "data": {**result, **more},
    }
    return Notice(name, kind, migration, state, json.dumps(body))
