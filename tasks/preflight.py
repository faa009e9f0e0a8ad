"""preflight, on the destination: check this host against what the tree needs, and say no before anything is touched.

Reads only, so it is safe to run again. If anything dies here, both hosts are as they were, but for a row in
their journals. It refuses for both hosts: what ``examine`` found on the source has come along.
"""

from __future__ import annotations

from sojourn.host import Migration
from sojourn.model import Outcome
from sojourn.preflight import inspection
from sojourn.preflight.finding import Finding
from sojourn.preflight.needs import Needs
from tasks.step import step

#: What was told for this step alone, and must not travel on: the messages inside the freeze stay small.
SPENT = {"needs": None, "findings": None}


@step(deadline_s=30, opens=True, retries=5)
def preflight(migration: Migration) -> Outcome:
    """Check what can be known here, and refuse for both hosts."""
    host, plan = migration.host, migration.plan
    needs = Needs.unpack(migration.facts["needs"])
    found = inspection.of_destination(plan, needs, host.criu, host.settings.images_bytes)
    inspection.refuse([*map(Finding.from_json, migration.facts["findings"]), *found], plan)
    sentence = f"{host.name} can take it: {len(needs.files)} files and {len(needs.pids)} PIDs looked at"
    return Outcome(sentence, {**SPENT, "needed_pids": list(needs.pids)})
