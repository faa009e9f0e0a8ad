"""examine, on the source: inspect the tree before anything is touched, and report what it needs.

Reads only, so it is safe to run again. If anything dies here, the host is as it was, but for a row
in its journal. The findings travel to ``preflight``, which refuses for both hosts, so that people
see those of both in one answer.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from sojourn import units
from sojourn.errors import ProcessGone
from sojourn.migration.context import Host, Migration
from sojourn.model import Plan
from sojourn.preflight import inspection, memory_files
from sojourn.preflight.finding import Finding
from sojourn.preflight.inspection import Report
from sojourn.state.message import Outcome
from sojourn.system import process
from tasks.step import step


@step(deadline_s=30, opens=True, retries=5)
def examine(migration: Migration) -> Outcome:
    """Check the process on the source; without a tree to look at there is nothing more to ask."""
    # Recorded before the freeze: by it the source can tell later whether the process has died.
    with contextlib.suppress(ProcessGone):
        migration.learn(root=asdict(process.identity(migration.plan.pid)))
    report = report_of(migration.host, migration.plan, migration.id)
    if report.needs:
        # Before a refusal, so that people see what was refused.
        migration.host.ledger.record_command(migration.id, report.needs.command)
    inspection.refuse(_of_this_host(report), migration.plan)
    assert report.needs is not None
    stopping = [finding.to_json() for finding in report.findings if finding.stops]
    needs = report.needs
    return Outcome(
        f"{needs.command}: {units.processes(needs.processes)}, {units.size(needs.tree_bytes)}",
        {
            "command": needs.command,
            "tree_bytes": needs.tree_bytes,
            "processes": needs.processes,
            "memory_bytes": memory_files.bytes_of(needs.memory),
            "ghost_bytes": memory_files.bytes_of(f for f in needs.memory if f.deleted),
            "never_lazy_bytes": needs.never_lazy_bytes,
            "needs": needs.pack(),
            "findings": stopping,
        },
    )


def report_of(host: Host, plan: Plan, migration: str = "") -> Report:
    """Return the findings of this host, the source.

    ``migration`` is the one that asks: it may hold the tree itself, which is no conflict then.
    """
    claimant = None
    with contextlib.suppress(ProcessGone):
        claimant = host.journal.claimant(process.tree(plan.pid), but=migration)
    return inspection.of_source(plan, host.criu, host.worker_pid(), claimant, host.settings)


def _of_this_host(report: Report) -> list[Finding]:
    """Return the findings that are refused here: the destination must not be trusted with them."""
    if report.needs is None:
        return report.findings
    return [finding for finding in report.findings if finding.code == "MAY_NOT_LEAVE"]
