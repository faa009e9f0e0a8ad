"""Steps that do nothing but write down that they did it, and fail when they are told to.

A test tells them by a file per migration: ``{"second": "fail"}``, or ``{"second@alpha": "wait"}`` for one host.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from celery import shared_task

from sojourn import commit
from sojourn.errors import CommandFailed, Temporary
from sojourn.host import Host, Migration, this_host
from sojourn.model import Json, Message, Outcome, Phase, Role
from sojourn.preflight.candidate import Candidate
from tasks.step import HostStep, step
from workflows.canvas import backward
from workflows.conclude import conclude
from workflows.pipeline import DESTINATION, SOURCE, Pipeline, Step

#: How long a step waits for a test's word before it gives up.
PATIENCE_S = 20


def act(place: Path, migration: str, acting: dict[str, str]) -> None:
    """Tell the steps of a migration how to act."""
    (place / f"{migration}.acting").write_text(json.dumps(acting))


def acts(place: Path, migration: str) -> list[str]:
    """Return what was written down for a migration."""
    record = place / f"{migration}.acts"
    return record.read_text().splitlines() if record.exists() else []


def let_go(place: Path, migration: str) -> None:
    """Let the steps go on that were told to wait."""
    (place / f"{migration}.go").touch()


def trees(host: Host) -> list[Candidate]:
    """Return the trees that a test has written down for a host, by their PIDs."""
    told = host.settings.state_dir.parent / f"{host.name}.trees"
    pids = json.loads(told.read_text()) if told.exists() else []
    return [Candidate(pid, f"program {pid}", 0, 1, 10_000_000, 0, "") for pid in pids]


def _write(place: Path, migration: str, line: str) -> None:
    with (place / f"{migration}.acts").open("a") as record:
        record.write(f"{line}\n")


def _act(migration: Migration, name: str) -> None:
    host, place = migration.host.name, migration.host.settings.state_dir.parent
    _write(place, migration.id, f"{name}@{host}")
    told_by = place / f"{migration.id}.acting"
    acting: dict[str, str] = json.loads(told_by.read_text()) if told_by.exists() else {}
    told = acting.get(f"{name}@{host}", acting.get(name, ""))
    if told == "fail":
        raise CommandFailed(f"{name} broke on {host}", "mend it")
    if told == "defect":
        raise ValueError("nobody foresaw this")
    if told.startswith("temporary") and acts(place, migration.id).count(f"{name}@{host}") <= int(told.split()[1]):
        raise Temporary(f"{name} has no room on {host}", "wait")
    if told == "slow":
        time.sleep(PATIENCE_S)
    if told == "wait":
        _wait(place / f"{migration.id}.go")


def _wait(go: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not go.exists() and time.monotonic() < until:
        time.sleep(0.01)


def _made(name: str, facts: dict[Role, Json] | None = None, **how: Any) -> HostStep:
    def work(migration: Migration) -> Outcome:
        _act(migration, name)
        told = (facts or {}).get(migration.role, {})
        return Outcome(f"{name} is done", {f"{name}_{migration.role}": migration.host.name, **told})

    work.__name__ = f"test_{name}"
    return step(**{"deadline_s": 15, **how})(work)


zeroth = _made("zeroth", opens=True)
first = _made("first")
second = _made("second", retries=2)
third = _made("third")
fourth = _made("fourth", {Role.SOURCE: {"source_phase": "retired"}, Role.DESTINATION: {"verdict": "restored"}})
undo_first = _made("undo_first", {Role.SOURCE: {"source_phase": "resumed"}}, undo=True)
undo_second = _made("undo_second", {Role.DESTINATION: {"verdict": "refused"}}, undo=True)
undo_third = _made("undo_third", undo=True)
overtaken = _made("overtaken", begins_in={Phase.FROZEN})
quick = _made("quick", opens=True, deadline_s=1)
quick_undo = _made("quick_undo", deadline_s=1, undo=True)

PIPELINE = Pipeline(
    Step(zeroth, SOURCE),
    Step(zeroth, DESTINATION),
    Step(first, SOURCE, undo=undo_first),
    Step(first, DESTINATION, undo=undo_first),
    Step(second, DESTINATION, undo=undo_second),
    Step(third, SOURCE, undo=undo_third, frozen=True),
    Step(fourth, SOURCE),
    Step(fourth, DESTINATION),
)


def _passing(name: str, *phases: Phase, **how: Any) -> HostStep:
    """Make a step that writes these phases; what CRIU's action script writes in the middle of one is written so."""

    def work(migration: Migration) -> Outcome:
        _act(migration, name)
        for phase in phases:
            migration.become(phase)
        if phases and phases[-1] is Phase.RESTORING:
            for moment in commit.TRANSITIONS:
                assert commit.main(str(migration.host.journal.path), migration.id, moment) == 0
            migration.refresh()
        return Outcome(f"{name} is done", ENDS.get(name, {}))

    work.__name__ = f"test_{name}"
    return step(**{"deadline_s": 15, **how})(work)


ENDS: dict[str, Json] = {"arrive": {"verdict": "restored"}, "leave": {"source_phase": "retired"}}

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
    """Undo everything, and write down that it was asked for."""
    message = Message.from_text(handed)
    _write(this_host().settings.state_dir.parent, message.id, "roll_back")
    backward(PIPELINE, message, conclude).apply_async()


@shared_task(name="test.breaks")  # type: ignore[untyped-decorator, unused-ignore]  # the same
def breaks(handed: str) -> None:
    """Fail, and write down that it was called."""
    message = Message.from_text(handed)
    _write(this_host().settings.state_dir.parent, message.id, "breaks")
    raise ValueError("nobody foresaw this")


@shared_task(name="test.marker")  # type: ignore[untyped-decorator, unused-ignore]  # the same
def marker(word: str) -> str:
    """Answer, so that a test knows that what was sent before has been taken."""
    return word
