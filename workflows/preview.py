"""What a batch would do: the places of the real run, and the real checks of both hosts for each.

Nothing is touched. As in the real run, what its destination refuses and placement has placed is
tried elsewhere, as long as there is another host and there are tries left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sojourn.cluster.batches import Part, who
from sojourn.cluster.client import Cluster
from sojourn.cluster.placement import Hosts, Item, Planned, place_elsewhere
from sojourn.model import Json, Plan, Role
from sojourn.preflight.finding import CHECKS, Finding
from workflows.batch import would_begin
from workflows.check import findings_of_each


def preview(asked: list[Json], kind: str, cluster: Cluster) -> list[Json]:
    """Return a row for each process: ``pid``, ``command``, ``source``, ``destination``, ``why``.

    ``destination`` is None for what would stay; then ``code`` and ``hint`` are those of the check
    that refuses, or of what keeps it there. Raises UsageError for malformed lines, HostUnreachable
    if a host does not report its trees.
    """
    found = would_begin(asked, kind, cluster.registry)
    whys = [row.pop("why") for row in found["parts"]]
    parts = [Part(**{**row, "avoid": tuple(row["avoid"])}) for row in found["parts"]]
    stays = [{**stay, "destination": None, "hint": ""} for stay in found["stays"]]
    return [*_Tries(cluster, parts, whys).rows(), *stays]


class _Tries:
    """The tries of all parts of a batch, as far as the checks go."""

    def __init__(self, cluster: Cluster, parts: Sequence[Part], whys: Sequence[str]) -> None:
        self._hosts: Hosts = cluster.registry.hosts()
        self._promised = cluster.batches.promised()
        self._parts = {part.number: part for part in parts}
        self._whys = dict(zip(self._parts, whys, strict=True))
        self._ends: dict[int, list[Finding]] = {}

    def rows(self) -> list[Json]:
        """Return what each part comes to."""
        while left := [part for number, part in self._parts.items() if number not in self._ends]:
            plans = [Plan.from_json(part.plan) for part in left]
            for part, findings in zip(left, findings_of_each(plans), strict=True):
                self._judge(part, [finding for finding in findings if finding.stops])
        return [self._row(part) for part in self._parts.values()]

    def _judge(self, part: Part, against: list[Finding]) -> None:
        """Note what a part has come to, unless it would be tried elsewhere."""
        only_there = all(_is_of_destination(finding) for finding in against)
        following = self._elsewhere(part) if against and only_there and part.auto else None
        if following:
            self._parts[part.number] = following
        else:
            self._ends[part.number] = against

    def _elsewhere(self, part: Part) -> Part | None:
        """Return the part for another host that can take it, None if there is none."""
        failed = (*part.avoid, part.plan["destination"])
        item = Item(who(part.plan["pid"], part.command), part.plan["source"], part.bytes)
        others = [one for one in self._parts.values() if one.number != part.number]
        planned = [Planned(one.plan["destination"], one.bytes) for one in others]
        found = place_elsewhere(item, failed, self._hosts, [*self._promised, *planned])
        if found.destination is None or not part.may_be_tried_again:
            return None
        self._whys[part.number] = f"{failed[-1]} refuses it; {found.why}"
        return replace(part.again(found.destination), avoid=failed)

    def _row(self, part: Part) -> Json:
        plan, against = part.plan, self._ends[part.number]
        about = {"pid": plan["pid"], "command": part.command, "source": plan["source"]}
        if not against:
            there = {"destination": plan["destination"], "why": self._whys[part.number]}
            return {**about, **there, "code": "", "hint": ""}
        why = " ".join(finding.sentence for finding in against)
        first = against[0]
        refused = {"destination": None, "why": why, "code": first.code, "hint": first.hint}
        return {**about, **refused}


def _is_of_destination(finding: Finding) -> bool:
    return finding.code in CHECKS and CHECKS[finding.code].on is Role.DESTINATION
