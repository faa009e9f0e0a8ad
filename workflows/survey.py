"""Looking around on hosts: whether their workers answer, and which processes could be migrated."""

from __future__ import annotations

from dataclasses import asdict

from celery import shared_task
from celery.exceptions import TimeoutError as NoAnswer

from sojourn.errors import HostUnreachable
from sojourn.host import this_host
from sojourn.model import Json, Plan
from sojourn.preflight import candidate
from workflows.app import the_app
from workflows.call import Call
from workflows.canvas import LANES, lane

#: How long a worker may take to answer a ping; a busy one needs 10 ms.
ANSWER_S = 2.0

#: How long a host may take to look through its processes, its queue included.
SURVEY_S = 15.0


@shared_task(name="sojourn.candidates", base=Call)
def candidates() -> list[Json]:
    """Return this host's candidates, the largest first."""
    return [asdict(each) for each in candidate.survey(this_host().worker_pid())]


def check_workers(plan: Plan) -> None:
    """Raise HostUnreachable unless both lanes of both hosts answer now; the registry may be seconds behind."""
    wanted = [f"{each}@{host}" for host in (plan.source, plan.destination) for each in LANES]
    answers = the_app().control.ping(destination=wanted, timeout=ANSWER_S)
    answered = {name for answer in answers for name in answer}
    for name in wanted:
        if name not in answered:
            host = name.split("@")[1]
            raise HostUnreachable(
                f"The worker of host {host} does not answer; nothing was touched.", "Is it running there?"
            )


def candidates_of(host: str) -> list[Json]:
    """Ask a host for its candidates. Raises HostUnreachable."""
    answer = candidates.apply_async(queue=lane(host, frozen=False), expires=SURVEY_S)
    try:
        found: list[Json] = answer.get(timeout=SURVEY_S)
    except NoAnswer:
        raise HostUnreachable(
            f"Host {host} did not answer within {SURVEY_S} s.", "Is its worker busy or down?"
        ) from None
    return found
