"""preflight, on the destination: check this host against what the tree needs, and refuse in time.

Reads only, so it is safe to run again. If anything dies here, both hosts are as they were, but for
a row in their journals. It refuses for both hosts: what ``examine`` found on the source has come
along.
"""

from __future__ import annotations

from sojourn import units
from sojourn.migration.context import Migration
from sojourn.preflight import files, inspection, lazy_restore, memory_files, names, unread
from sojourn.preflight.finding import Finding, Verdict
from sojourn.preflight.needs import Needs
from sojourn.state.facts import Facts
from sojourn.state.message import Outcome
from tasks.step import step

#: What ``examine`` found for this step alone must not travel on: messages inside the freeze stay
#: small.
SPENT: Facts = {"needs": None, "findings": None}


@step(deadline_s=30, opens=True, retries=5)
def preflight(migration: Migration) -> Outcome:
    """Check what can be known here, and refuse for both hosts."""
    host, plan = migration.host, migration.plan
    needs = Needs.unpack(migration.facts["needs"] or "")
    source = map(Finding.from_json, migration.facts["findings"] or [])
    found = inspection.of_destination(plan, needs, host.criu, host.settings)
    inspection.refuse([*source, *found], plan)
    notes = "".join(f". {one.sentence}" for one in found if one.verdict is Verdict.NOTE)
    looked_at = units.counted(len(needs.files), "file"), units.counted(len(needs.pids), "PID")
    checked = f"{' and '.join(looked_at)} checked"
    sentence = f"{host.name} can take it: {checked}{notes}".removesuffix(".")
    here = memory_files.left(needs.files, needs.memory)
    compared = [file.path for file in files.to_compare(here)]
    facts = Facts(
        needed_pids=list(needs.pids),
        compared=compared,
        kept=memory_files.kept(needs.memory),
        names_seen={name.path: name.inode for name in needs.names},
        shared_names=names.shared(needs.names),
        shared_fifos=unread.shared(needs.fifos),
        leases=[lease.holder for lease in needs.leases],
        lazy=plan.post_copy
        or lazy_restore.is_chosen(found, wanted=bool(host.settings.lazy_restore)),
    )
    return Outcome(sentence, SPENT | facts)
