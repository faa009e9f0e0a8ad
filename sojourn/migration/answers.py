"""What a host answers about a migration, under its own seal: no other host can speak for it.

The message of a migration passes through both hosts and through the workers that start its
canvases, and its signature shows only that one of the cluster's hosts sent it. Some facts make a
host do what cannot be undone: by the destination's the source kills or resumes the original, by the
source's the destination ends what runs there. So each host adds its *answer* to every message that
it hands on: what its journal says at that moment, sealed in its name. Of the other host's facts the
decisive ones are taken from its answer alone, which must be that of the host that the plan in our
own journal names. What a host has found out itself, and ends or resumes a process by, is in its own
journal, and is taken from no message.

When a new answer of the other host came is kept here too: it is not dead then, whatever an operator
was shown.
"""

from __future__ import annotations

import json
import time
from itertools import chain
from typing import cast

from sojourn.migration.context import Migration
from sojourn.model import Json, Phase, Role, Verdict
from sojourn.security.seal import Opened
from sojourn.state.facts import Facts

#: What seals name an answer.
ANSWER = "answer"

#: The facts by which the other host decides, and the one that holds the answer, by whose they are.
DECISIVE = {
    Role.SOURCE: ("source_phase", "original_gone"),
    Role.DESTINATION: ("verdict", "unsettled"),
}
ANSWERS = {Role.SOURCE: "source_answer", Role.DESTINATION: "destination_answer"}

#: What each host notes for itself, and takes from no message.
OURS_ALONE = ("heard_at", "answered_at", "resolution_refused")

#: What a destination knows only by its own restore, and ends or keeps a process by.
RESTORED_HERE = (
    *("occupied", "restore_began", "restore_ended", "restore_boot", "page_server_exit"),
    *("settled_at", "memory_lost", "lost_with_original", "lost_at", "fenced", "partial"),
)

#: What a host in each role does not take as it stands in a message.
NEITHER = {*chain(*DECISIVE.values()), *ANSWERS.values(), *OURS_ALONE}
UNBELIEVED = {Role.SOURCE: NEITHER, Role.DESTINATION: {*NEITHER, *RESTORED_HERE}}


def given(migration: Migration) -> Facts:
    """Return this host's answer, for a message that it hands on."""
    migration.refresh()
    says = _source(migration) if migration.role is Role.SOURCE else _destination(migration)
    text = migration.host.sealed.text(ANSWER, migration.id, says)
    return cast("Facts", {ANSWERS[migration.role]: text})


def believed(migration: Migration, facts: Facts) -> Facts:
    """Return those facts of a message that count here, with when the other host answered."""
    other = _other(migration.role)
    kept = {name: fact for name, fact in facts.items() if name not in UNBELIEVED[migration.role]}
    text = facts.get(ANSWERS[other])
    if not isinstance(text, str):
        _report_unanswered(migration, facts)
        return cast("Facts", kept)
    answer = migration.host.sealed.opened(ANSWER, migration.id, text, by=migration.peer)
    if answer is None:
        return cast("Facts", kept)
    decisive = {name: answer.content[name] for name in DECISIVE[other] if name in answer.content}
    return cast("Facts", kept | decisive | {ANSWERS[other]: text} | _heard(migration, answer))


def _source(migration: Migration) -> Json:
    says: Json = {"phase": migration.phase}
    if migration.phase.final:
        says["source_phase"] = migration.phase
    if "original_gone" in migration.facts:
        says["original_gone"] = migration.facts["original_gone"]
    return says


def _destination(migration: Migration) -> Json:
    says: Json = {"phase": migration.phase}
    if migration.phase is Phase.REFUSED or migration.facts.get("fenced"):
        says["verdict"] = Verdict.REFUSED
    elif migration.phase is Phase.RESTORED:
        says["verdict"] = Verdict.RESTORED
    if migration.plan.post_copy and "verdict" in says:
        says["unsettled"] = migration.is_unsettled()
    return says


def _heard(migration: Migration, answer: Opened) -> Facts:
    """Return when a new answer came, by our clock; an older one may be on its way still."""
    if answer.at <= migration.facts.get("answered_at", 0):
        return {}
    return {"answered_at": answer.at, "heard_at": time.time()}


def _report_unanswered(migration: Migration, facts: Facts) -> None:
    """Log and count decisive facts of the other host without its answer, where they would count."""
    claimed = {
        name: fact
        for name, fact in facts.items()
        if name in DECISIVE[_other(migration.role)] and fact != migration.facts.get(name)
    }
    if not claimed or migration.phase.final:
        return
    why = (
        f"A message of migration {migration.id} says {', '.join(sorted(claimed))} of "
        f"{migration.peer} without an answer that {migration.peer} has sealed: "
        f"{migration.host.name} does nothing by it."
    )
    migration.host.sealed.refuse(ANSWER, migration.id, json.dumps(claimed), why)


def _other(role: Role) -> Role:
    return Role.SOURCE if role is Role.DESTINATION else Role.DESTINATION
