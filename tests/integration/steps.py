"""Steps that do nothing but record that they ran, and fail or wait where a test wants that.

A test chooses by a file per migration: ``{"second": "fail"}``, or ``{"second@alpha": "wait"}`` for
one host.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any, cast

from celery import shared_task

from sojourn.errors import CommandFailed, Temporary
from sojourn.migration.context import Host, Migration, this_host
from sojourn.model import Json, Phase, Role, Verdict
from sojourn.preflight.candidate import Candidate
from sojourn.state import commit
from sojourn.state.facts import Facts
from sojourn.state.message import Message, Outcome
from tasks.policy import HostStep
from tasks.step import step
from workflows.canvas import DESTINATION, SOURCE, Both, Pipeline, Step, linked

#: How long a step waits to be let go before it gives up.
PATIENCE_S = 20


def act(place: Path, migration: str, acting: dict[str, str]) -> None:
    """Choose how the steps of a migration act."""
    (place / f"{migration}.acting").write_text(json.dumps(acting))


def acts(place: Path, migration: str) -> list[str]:
    """Return the steps of a migration that ran, each as ``step@host``, in their order."""
    record = place / f"{migration}.acts"
    return record.read_text().splitlines() if record.exists() else []


def let_go(place: Path, migration: str) -> None:
    """Let the steps go on that act as ``wait``."""
    (place / f"{migration}.go").touch()


def trees(host: Host) -> list[Candidate]:
    """Return the trees that a test has listed for a host, by their PIDs."""
    file = host.settings.state_dir.parent / f"{host.name}.trees"
    pids = json.loads(file.read_text()) if file.exists() else []
    return [Candidate(pid, f"program {pid}", 0, 1, 10_000_000, 0, "") for pid in pids]


def _write(place: Path, migration: str, line: str) -> None:
    with (place / f"{migration}.acts").open("a") as record:
        record.write(f"{line}\n")


def _act(migration: Migration, name: str) -> None:
    host, place = migration.host.name, migration.host.settings.state_dir.parent
    _write(place, migration.id, f"{name}@{host}")
    file = place / f"{migration.id}.acting"
    acting: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    how, _, failures = acting.get(f"{name}@{host}", acting.get(name, "")).partition(" ")
    if how == "fail":
        raise CommandFailed(f"{name} broke on {host}", "mend it")
    if how == "defect":
        raise ValueError("an error without a class of its own")
    # The attempt under way has been recorded above.
    if how == "temporary" and acts(place, migration.id).count(f"{name}@{host}") <= int(failures):
        raise Temporary(f"{name} has no room on {host}", "wait")
    if how == "slow":
        time.sleep(PATIENCE_S)
    if how == "wait":
        _wait(place / f"{migration.id}.go")


def _wait(go: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not go.exists() and time.monotonic() < until:
        time.sleep(0.01)


def _made(name: str, facts: dict[Role, Json] | None = None, **how: Any) -> HostStep:
    def work(migration: Migration) -> Outcome:
        _act(migration, name)
        found = {f"{name}_{migration.role}": migration.host.name}
        found |= (facts or {}).get(migration.role, {})
        return Outcome(f"{name} is done", cast("Facts", found))

    work.__name__ = f"test_{name}"
    return step(**{"deadline_s": 15, **how})(work)


zeroth = _made("zeroth", opens=True)
first = _made("first")
second = _made("second", retries=2)
third = _made("third")
fourth = _made(
    "fourth", {Role.SOURCE: {"source_phase": "retired"}, Role.DESTINATION: {"verdict": "restored"}}
)
fifth = _made("fifth")
undo_first = _made("undo_first", {Role.SOURCE: {"source_phase": "resumed"}}, undo=True)
undo_second = _made("undo_second", {Role.DESTINATION: {"verdict": "refused"}}, undo=True)
undo_third = _made("undo_third", undo=True)
overtaken = _made("overtaken", begins_in={Phase.FROZEN})
quick = _made("quick", opens=True, deadline_s=1)
quick_undo = _made("quick_undo", deadline_s=1, undo=True)
early = _made("early", {Role.SOURCE: {"unsettled": True}})

PIPELINE = Pipeline(
    Step(zeroth, SOURCE),
    Step(zeroth, DESTINATION),
    Both(
        [Step(first, DESTINATION, undo=undo_first), Step(second, DESTINATION, undo=undo_second)],
        [Step(first, SOURCE, undo=undo_first)],
    ),
    Step(third, SOURCE, undo=undo_third, frozen=True),
    Both([Step(fourth, DESTINATION)], [Step(fourth, SOURCE), Step(fifth, SOURCE)]),
)


def commit_there(journal: Path, migration: str) -> None:
    """Write both phases of a commit, as the rebuilder does when CRIU asks."""
    with contextlib.closing(commit.connect(str(journal))) as connection:
        for moment in commit.TRANSITIONS:
            assert commit.write(connection, str(journal), migration, moment)


def _passing(name: str, *phases: Phase, **how: Any) -> HostStep:
    """Make a step that writes these phases."""

    def work(migration: Migration) -> Outcome:
        _act(migration, name)
        for phase in phases:
            migration.become(phase)
        # The rebuilder writes the phases that follow, in a process of its own.
        if phases and phases[-1] is Phase.RESTORING:
            commit_there(migration.host.journal.path, migration.id)
            migration.refresh()
        return Outcome(f"{name} is done", ENDS.get(name, {}))

    work.__name__ = f"test_{name}"
    return step(**{"deadline_s": 15, **how})(work)


ENDS: dict[str, Facts] = {
    "arrive": {"verdict": Verdict.RESTORED},
    "leave": {"source_phase": Phase.RETIRED},
}

#: A pipeline that writes the phases of a real migration.
PHASED = Pipeline(
    Step(zeroth, SOURCE),
    Step(zeroth, DESTINATION),
    Step(_passing("freeze", Phase.FREEZING, Phase.FROZEN, Phase.RELEASED), SOURCE),
    Step(_passing("arrive", Phase.RESTORING), DESTINATION),
    Step(_passing("leave", Phase.RETIRED, begins_in={Phase.RELEASED}), SOURCE),
)


@shared_task(name="test.roll_back")  # type: ignore[untyped-decorator, unused-ignore]  # Celery has no types
def roll_back(handed: str) -> None:
    """Undo everything, and record that it was called."""
    message = Message.from_text(handed)
    _write(this_host().settings.state_dir.parent, message.id, "roll_back")
    linked(PIPELINE.backward(), message).apply_async()


@shared_task(name="test.marker")  # type: ignore[untyped-decorator, unused-ignore]  # the same
def marker(text: str) -> str:
    """Return the text, so that a test knows that what was sent before has been taken."""
    return text
