"""What is to be done about a migration that stands still on this host: decided from its own journal alone.

Nothing here acts on a migration of which a step is at work: whoever asks holds the migration's lock.
"""

from __future__ import annotations

from enum import Enum

from sojourn.arrival import fate, may_restore, refuse
from sojourn.host import Migration
from sojourn.journal import Entry, Journal
from sojourn.ledger import Account
from sojourn.model import Json, Phase, Role, State, Verdict
from sojourn.original import resume_original, retire_original
from sojourn.settings import Settings


class Move(Enum):
    """What the reconciler does next about one row."""

    LEAVE = "nothing: it moves, or may still"
    RESUME = "give the process back to this host, which may do so alone, or by an operator's word"
    SETTLE = "ask for the destination's verdict and act by it"
    FINISH = "finish what a final phase permits, and give back what is held"


def next_move(migration: Migration, still_s: float, *, given_up: bool = False) -> Move:
    """Return what to do about a row that nobody works on and that has not changed for ``still_s`` seconds.

    ``given_up``: people are told that it ended, so a destination that still waits for the memory waits for nothing.
    """
    phase, settings = migration.phase, migration.host.settings
    if given_up and phase is Phase.RESERVED:
        return Move.SETTLE if still_s >= settings.stall_s else Move.LEAVE
    # The clock first: who is at work is known only by a look at every process of the host.
    if still_s < _waits_s(migration, settings) or migration.at_work():
        return Move.LEAVE
    if phase.final:
        return Move.FINISH
    if phase is Phase.RELEASED and migration.is_declared_dead(Role.DESTINATION):
        return Move.RESUME
    return Move.RESUME if phase in {Phase.OPEN, Phase.FREEZING, Phase.FROZEN} else Move.SETTLE


def finish(migration: Migration) -> str:
    """Do what is left to do after a final phase; return what that was. Again is harmless."""
    said = f"the process runs on {migration.host.name}"
    if migration.phase is Phase.RETIRED:
        said = retire_original(migration)
    elif migration.phase is Phase.RESUMED:
        said = resume_original(migration)
    elif migration.phase is Phase.REFUSED:
        refuse(migration)
        said = f"{migration.host.name} has refused the process"
    migration.clear()
    return f"{said}; nothing of the migration is left here but its logs"


def _waits_s(migration: Migration, settings: Settings) -> float:
    """Return how long a row may stand still before it is moved on.

    While the process runs there is time. Inside the freeze only a message can be under way between two steps. A phase
    that belongs to one step, of which no process is left, has lost that step and waits for nothing.
    """
    phase = migration.phase
    if phase in {Phase.FREEZING, Phase.RESTORING, Phase.ACCEPTED}:
        return 0
    if migration.facts.get("resolved"):
        return settings.stall_s
    if phase is Phase.OPEN or (phase is Phase.RESERVED and not may_restore(migration)):
        return settings.patience_s
    return settings.stall_s


#: What a final row says of the whole migration. The source resumes alone before ``released``, when the destination can
#: never have all images, or with its ``refused``; it retires with its ``restored``. So each proves the verdict.
PROOF: dict[Phase, Json] = {
    Phase.RESUMED: {"source_phase": Phase.RESUMED, "verdict": Verdict.REFUSED},
    Phase.RETIRED: {"source_phase": Phase.RETIRED, "verdict": Verdict.RESTORED},
    Phase.RESTORED: {"verdict": Verdict.RESTORED},
    Phase.REFUSED: {"verdict": Verdict.REFUSED},
}


def end_known(migration: Migration) -> Json:
    """Return the facts by which this host alone can say how the migration ended; empty if it can not."""
    told = PROOF.get(migration.phase, {})
    if migration.phase is Phase.RESTORED:
        return told | fate(migration) if not migration.facts.get("gave_way") else {}
    if migration.phase is Phase.RESUMED:
        return told | {"gone": migration.facts.get("gone", False)}
    if migration.phase is Phase.REFUSED and not migration.is_declared_dead(Role.SOURCE):
        return {}
    return told


#: What a row of the journal means for the ledger, and who owns the process then.
MEANING = {
    Phase.RETIRED: (State.COMPLETED, Role.DESTINATION),
    Phase.RESTORED: (State.COMPLETED, Role.DESTINATION),
    Phase.RESUMED: (State.ROLLED_BACK, Role.SOURCE),
    Phase.REFUSED: (State.ROLLED_BACK, Role.SOURCE),
}


def account_of(journal: Journal, entry: Entry) -> Account:
    """Return a migration as this host's journal knows it, for a ledger that has lost it."""
    phase = Phase.REFUSED if entry.facts.get("gave_way") else entry.phase
    state, owner = MEANING.get(phase, (State.RUNNING, Role.SOURCE))
    if state is State.ROLLED_BACK and entry.facts.get("gone"):
        state = State.LOST
    steps = tuple(journal.steps(entry.id))
    word = {name: fact for name, fact in entry.facts.items() if name.startswith("resolved")}
    owner_host = entry.plan.host_of(owner)
    return Account(entry.id, entry.plan, state, entry.created, owner_host, steps, role=entry.role, resolved=word)
