"""examine, on the source: look at the tree before anything is touched, and tell what it needs of the destination.

Reads only, so it is safe to run again. If anything dies here, the host is as it was, but for a row in its journal.
What was found is told to ``preflight``, which refuses for both hosts, so that people hear of both at once.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from sojourn import process
from sojourn.errors import ProcessGone
from sojourn.host import Host, Migration
from sojourn.model import Outcome, Plan
from sojourn.preflight import inspection
from sojourn.preflight.inspection import Report
from tasks.step import step


@step(deadline_s=30, opens=True, retries=5)
def examine(migration: Migration) -> Outcome:
    """Check the process on the source; without a tree to look at there is nothing more to ask."""
    with contextlib.suppress(ProcessGone):
        migration.learn(root=asdict(process.identity(migration.plan.pid)))
    report = report_of(migration.host, migration.plan, migration.id)
    if report.needs is None:
        inspection.refuse(report.findings, migration.plan)
    assert report.needs is not None  # noqa: S101  (a report without needs has a finding that refuses)
    stopping = [finding.to_json() for finding in report.findings if finding.stops]
    needs = report.needs
    return Outcome(
        f"{needs.command}: {needs.processes} processes, {needs.tree_bytes / 1e6:.0f} MB",
        {
            "tree_bytes": needs.tree_bytes,
            "processes": needs.processes,
            "needs": needs.pack(),
            "findings": stopping,
        },
    )


def report_of(host: Host, plan: Plan, migration: str = "") -> Report:
    """Return what this host, the source, finds; ``migration`` is the one that asks, which may hold the tree itself."""
    claimant = None
    with contextlib.suppress(ProcessGone):
        claimant = host.journal.claimant(process.tree(plan.pid), but=migration)
    return inspection.of_source(plan, host.criu, host.worker_pid(), claimant)
