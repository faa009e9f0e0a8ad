"""The processes of a host, and what preflight finds out about each; nothing here touches one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sojourn.cluster import records
from sojourn.cluster.client import Cluster
from sojourn.model import Json, Plan
from sojourn.preflight.candidate import Candidate
from sojourn.preflight.finding import Finding, Verdict
from web.rows import program
from workflows.check import findings_of
from workflows.survey import candidates_of

#: The most trees that are listed, those with the most memory.
LISTED = 200

#: How much of a command line is shown, in characters, as `sojourn ps` does.
COMMAND = 60


@dataclass(frozen=True)
class Tree(Candidate):
    """A process of a host with the figures of its tree, as the host reported it."""

    @property
    def shown(self) -> str:
        """The command line as the page shows it."""
        return program(self.command[:COMMAND])

    @property
    def asks(self) -> bool:
        """Whether preflight can be asked for more: all but what can never be migrated."""
        return not self.verdict or self.stoppable


def load(cluster: Cluster, name: str) -> Json:
    """Return what the page lists. Raises UsageError, HostUnreachable, StoreUnreachable."""
    cluster.registry.check_host(name)
    found = [records.of(Tree, tree) for tree in candidates_of(name)]
    trees = [tree for tree in found if tree]
    return {"trees": trees[:LISTED], "more": max(0, len(trees) - LISTED)}


def check(cluster: Cluster, plan: Plan) -> Json:
    """Return what preflight finds on both hosts: ``look``, ``verdict``, ``findings``.

    Raises UsageError, HostUnreachable, StoreUnreachable.
    """
    for host in (plan.source, plan.destination):
        cluster.registry.check_host(host)
    findings, _ = findings_of(plan)
    return judged(findings)


def judged(findings: Iterable[Finding]) -> Json:
    """Return findings in a few words, and those that speak against a migration, or note a thing."""
    shown = sorted(
        (finding for finding in findings if finding.verdict is not Verdict.OK),
        key=lambda finding: list(Verdict).index(finding.verdict),
        reverse=True,
    )
    verdicts = {finding.verdict for finding in shown}
    look, sentence = "good", "can be migrated"
    if Verdict.BLOCKS in verdicts:
        look, sentence = "bad", "cannot be migrated"
    elif Verdict.NEEDS_OPTION in verdicts:
        look, sentence = "stayed", "needs an option"
    fields = ("code", "verdict", "host", "sentence", "hint")
    listed = [{name: str(getattr(finding, name)) for name in fields} for finding in shown]
    return {"look": look, "verdict": sentence, "findings": listed}
