"""Looking around on hosts: whether their workers answer, and which processes could be migrated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from celery import shared_task
from celery.exceptions import TimeoutError as NoAnswer

from sojourn.errors import HostUnreachable
from sojourn.host import this_host
from sojourn.model import Json, Plan
from sojourn.preflight import candidate
from sojourn.selector import Process
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


@shared_task(name="sojourn.survey", base=Call)
def survey() -> Json:
    """Return this host's name and its trees but our own, with all that a selector looks at."""
    host = this_host()
    worker = host.worker_pid()
    found = [each for each in candidate.survey(worker) if not each.verdict or not candidate.is_ours(each.pid, worker)]
    trees = [asdict(each) | {"members": [asdict(one) for one in candidate.members_of(each.pid)]} for each in found]
    return {"host": host.name, "trees": trees}


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
    found: list[Json] = _ask(host, candidates)
    return found


def trees_of(host: str) -> list[SeenTree]:
    """Ask a host for its trees, as selectors look at them. Raises HostUnreachable."""
    return read_trees(_ask(host, survey))


def read_trees(told: Json) -> list[SeenTree]:
    """Read back what ``survey`` told of a host."""
    return [SeenTree.from_json(each) for each in told["trees"]]


@dataclass(frozen=True)
class SeenTree:
    """A tree of another host, as its survey told of it."""

    pid: int
    command: str
    memory_bytes: int
    verdict: str
    members: tuple[Process, ...]

    @classmethod
    def from_json(cls, told: Json) -> SeenTree:
        """Build it from what was told."""
        members = tuple(Process(**member) for member in told["members"])
        return cls(told["pid"], told["command"], told["memory_bytes"], told["verdict"], members)


def _ask(host: str, task: Any) -> Any:  # noqa: ANN401  (Celery has no types)
    answer = task.apply_async(queue=lane(host, frozen=False), expires=SURVEY_S)
    try:
        found = answer.get(timeout=SURVEY_S)
    except NoAnswer:
        raise HostUnreachable(
            f"Host {host} did not answer within {SURVEY_S} s.", "Is its worker busy or down?"
        ) from None
    return found
