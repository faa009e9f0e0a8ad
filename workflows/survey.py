"""Which processes of a host could be migrated, and whether its worker answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from celery import shared_task

from sojourn.cluster.selector import Process
from sojourn.errors import HostUnreachable
from sojourn.migration.context import this_host
from sojourn.model import Json, Plan
from sojourn.preflight import candidate
from workflows.ask import answering, ask
from workflows.call import Call
from workflows.canvas import LANES

#: How long a host may take to look through its processes, its queue included.
SURVEY_S = 15.0


@shared_task(name="sojourn.candidates", base=Call)
def candidates() -> list[Json]:
    """Return this host's candidates, the largest first."""
    return [asdict(tree) for tree in candidate.survey(this_host().worker_pid())]


@shared_task(name="sojourn.survey", base=Call)
def survey() -> Json:
    """Return this host's name and its trees but our own, with the fields that selectors read."""
    host = this_host()
    worker = host.worker_pid()
    found = [
        tree
        for tree in candidate.survey(worker)
        if not tree.verdict or not candidate.is_ours(tree.pid, worker)
    ]
    trees = [
        asdict(tree) | {"members": [asdict(one) for one in candidate.members_of(tree.pid)]}
        for tree in found
    ]
    return {"host": host.name, "trees": trees}


def check_workers(plan: Plan) -> None:
    """Raise HostUnreachable unless both lanes of both hosts answer now.

    The registry may be seconds behind.
    """
    wanted = [f"{lane}@{host}" for host in (plan.source, plan.destination) for lane in LANES]
    answered = answering(wanted)
    for name in wanted:
        if name not in answered:
            host = name.split("@")[1]
            raise HostUnreachable(
                f"The worker of host {host} does not answer; nothing was touched.",
                "Is it running there?",
            )


def candidates_of(host: str) -> list[Json]:
    """Ask a host for its candidates. Raises HostUnreachable."""
    found: list[Json] = ask(host, candidates, within_s=SURVEY_S)
    return found


def trees_of(host: str) -> list[SeenTree]:
    """Ask a host for its trees, as selectors read them. Raises HostUnreachable."""
    return read_trees(ask(host, survey, within_s=SURVEY_S))


def read_trees(answer: Json) -> list[SeenTree]:
    """Read back what ``survey`` returned on a host."""
    return [SeenTree.from_json(tree) for tree in answer["trees"]]


@dataclass(frozen=True)
class SeenTree:
    """A tree of another host, as that host's survey returned it."""

    pid: int
    command: str
    memory_bytes: int
    verdict: str
    stoppable: bool
    members: tuple[Process, ...]

    def asked_for(self, options: Json) -> SeenTree:
        """Return the tree as it is for these options of a plan, which may lift its verdict."""
        lifts = self.stoppable and options.get("stop_unit", False)
        return replace(self, verdict="") if lifts else self

    @classmethod
    def from_json(cls, tree: Json) -> SeenTree:
        """Read back one tree of a survey."""
        members = tuple(Process(**member) for member in tree["members"])
        stoppable = bool(tree.get("stoppable", False))  # a worker of an older version has none
        return cls(
            tree["pid"],
            tree["command"],
            tree["memory_bytes"],
            tree["verdict"],
            stoppable,
            members,
        )
