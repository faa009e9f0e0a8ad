"""``sojourn check``: the checks of a migration without the migration. No journal row, no lock, nothing is touched."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.exceptions import TimeoutError as NoAnswer

from sojourn.errors import HostUnreachable, Refused
from sojourn.host import this_host
from sojourn.model import Json, Plan
from sojourn.preflight import inspection
from sojourn.preflight.finding import Finding
from sojourn.preflight.needs import Needs
from tasks.examine import report_of
from workflows.call import Call
from workflows.canvas import lane

#: How long a host may take for its checks, its queue included.
CHECK_S = 30.0


@shared_task(name="sojourn.check_source", base=Call)
def check_source(asked: Json) -> Json:
    """Return the source's findings and, packed, what the tree needs."""
    report = report_of(this_host(), Plan.from_json(asked))
    findings = [finding.to_json() for finding in report.findings]
    needs = report.needs
    told = {"tree_bytes": needs.tree_bytes, "processes": needs.processes} if needs else {}
    return {"findings": findings, "needs": needs.pack() if needs else None, **told}


@shared_task(name="sojourn.check_destination", base=Call)
def check_destination(asked: Json, packed: str) -> list[Json]:
    """Return the destination's findings."""
    host, plan = this_host(), Plan.from_json(asked)
    found = inspection.of_destination(plan, Needs.unpack(packed), host.criu, host.settings.images_bytes)
    return [finding.to_json() for finding in found]


def findings_of(plan: Plan) -> tuple[list[Finding], Json]:
    """Return all findings of both hosts, and what the source says of the tree's size. Raises HostUnreachable."""
    source = _ask(plan.source, check_source, plan.to_json())
    found = source.pop("findings")
    needs = source.pop("needs")
    if needs:
        found += _ask(plan.destination, check_destination, plan.to_json(), needs)
    return [Finding.from_json(each) for each in found], source


def tree_bytes_of(plan: Plan) -> int:
    """Ask the source how large a tree is, in bytes of memory. Raises HostUnreachable, or Refused if there is none."""
    source = _ask(plan.source, check_source, plan.to_json())
    if "tree_bytes" not in source:
        finding = Finding.from_json(source["findings"][0])
        raise Refused(finding.sentence, finding.hint, finding.code)
    return int(source["tree_bytes"])


def _ask(host: str, task: Any, *arguments: Any) -> Any:  # noqa: ANN401  (Celery has no types)
    try:
        return task.apply_async(arguments, queue=lane(host, frozen=False), expires=CHECK_S).get(timeout=CHECK_S)
    except NoAnswer:
        raise HostUnreachable(
            f"Host {host} did not answer within {CHECK_S:g} s.", "Is its worker busy or down?"
        ) from None
