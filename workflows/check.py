"""``sojourn check``: the checks of a migration without the migration.

It writes no row to a journal, takes no lock, and touches nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from celery import shared_task

from sojourn.errors import ProcessGone, Refused, SojournError
from sojourn.migration.context import this_host
from sojourn.model import Json, Plan, Untyped
from sojourn.preflight import inspection, never_lazy
from sojourn.preflight.finding import Finding, Verdict
from sojourn.preflight.needs import Needs
from sojourn.system import process
from tasks.examine import report_of
from workflows.ask import ask, ask_each
from workflows.call import Call

#: How long a host may take for its checks, its queue included.
CHECK_S = 30.0

#: Of many checks, how many are asked for at once: what waits in a host's queue longer expires.
AT_ONCE = 8


@shared_task(name="sojourn.check_source", base=Call)
def check_source(asked: Json) -> Json:
    """Return the source's findings, the tree's closure and, packed, what the tree needs."""
    plan = Plan.from_json(asked)
    report = report_of(this_host(), plan)
    findings = [finding.to_json() for finding in report.findings]
    needs, closure = report.needs, report.closure
    size = {} if needs is None else _size(plan, needs)
    return {
        "findings": findings,
        "needs": needs.pack() if needs else None,
        "closure": closure.to_json() if closure else None,
        **size,
    }


def _size(plan: Plan, needs: Needs) -> Json:
    """Return what the estimates need, of each mode."""
    never_lazy_bytes = needs.never_lazy_bytes
    if not plan.post_copy:
        with contextlib.suppress(ProcessGone):
            tree = process.tree(plan.pid)
            never_lazy_bytes = never_lazy.size_of(member.identity.pid for member in tree)
    return {
        "tree_bytes": needs.tree_bytes,
        "never_lazy_bytes": never_lazy_bytes,
        "processes": needs.processes,
    }


@shared_task(name="sojourn.check_destination", base=Call)
def check_destination(asked: Json, packed: str) -> list[Json]:
    """Return the destination's findings."""
    host, plan = this_host(), Plan.from_json(asked)
    found = inspection.of_destination(plan, Needs.unpack(packed), host.criu, host.settings)
    return [finding.to_json() for finding in found]


def findings_of(plan: Plan) -> tuple[list[Finding], Json]:
    """Return all findings of both hosts, and the tree's size and closure as the source reports it.

    Raises HostUnreachable.
    """
    source = ask(plan.source, check_source, plan.to_json(), within_s=CHECK_S)
    found = source.pop("findings")
    needs = source.pop("needs")
    if needs:
        found += ask(plan.destination, check_destination, plan.to_json(), needs, within_s=CHECK_S)
    return [Finding.from_json(finding) for finding in found], source


def findings_of_each(plans: Sequence[Plan]) -> list[list[Finding]]:
    """Return for each plan all findings of both hosts.

    Where a host does not answer, or cannot check, a finding says so.
    """
    found: list[list[Finding]] = []
    for start in range(0, len(plans), AT_ONCE):
        found += _findings_of_some(plans[start : start + AT_ONCE])
    return found


def _findings_of_some(plans: Sequence[Plan]) -> list[list[Finding]]:
    asked = [(plan.source, (plan.to_json(),)) for plan in plans]
    sources = ask_each(asked, check_source, within_s=CHECK_S)
    found = [_findings(answer) for answer in sources]
    needs = [None if isinstance(answer, SojournError) else answer["needs"] for answer in sources]
    goes_on = [number for number, packed in enumerate(needs) if packed]
    there = [(plans[each].destination, (plans[each].to_json(), needs[each])) for each in goes_on]
    answers = ask_each(there, check_destination, within_s=CHECK_S)
    for number, answer in zip(goes_on, answers, strict=True):
        found[number] += _findings(answer)
    return found


def _findings(answer: Untyped) -> list[Finding]:
    """Return the findings of a host's answer."""
    if isinstance(answer, SojournError):
        return [Finding(answer.code, Verdict.BLOCKS, answer.message, answer.hint)]
    findings = answer["findings"] if isinstance(answer, dict) else answer
    return [Finding.from_json(finding) for finding in findings]


def tree_bytes_of(plan: Plan) -> int:
    """Return how large a tree is, in bytes of memory, as its source reports it.

    Raises HostUnreachable, or Refused if there is no such tree.
    """
    return int(_source_of(plan)["tree_bytes"])


def closed(plan: Plan) -> Plan:
    """Return the plan for the one process whose tree has all that the plan's shares with others.

    Raises HostUnreachable, or Refused if there is no such tree.
    """
    closure = _source_of(plan)["closure"]
    if closure["one"] is None:
        trees = ", ".join(f"{tree['pid']} ({tree['command']})" for tree in closure["trees"])
        raise Refused(
            f"On {plan.source}: no single tree has all that process {plan.pid} shares; it is in "
            f"those of {trees}.",
            f"See `{inspection.command(plan)}`.",
            "HELD_OUTSIDE",
        )
    return replace(plan, pid=closure["one"])


def _source_of(plan: Plan) -> Json:
    source: Json = ask(plan.source, check_source, plan.to_json(), within_s=CHECK_S)
    if "tree_bytes" not in source:
        finding = Finding.from_json(source["findings"][0])
        raise Refused(finding.sentence, finding.hint, finding.code)
    return source
