"""What to do about a migration that has stalled on this host, decided from its own journal alone.

Nothing here acts on a migration of which a step is at work: the caller holds the migration's lock.
"""

from __future__ import annotations

from enum import Enum

from sojourn import units
from sojourn.cluster.account import Account
from sojourn.migration.context import Migration
from sojourn.migration.destination import aftermath, end_fenced, may_restore, refuse
from sojourn.migration.serving import is_busy
from sojourn.migration.settling import is_broken, lose
from sojourn.migration.source import fate, resume_original, retire_original
from sojourn.model import Phase, Role, State, Verdict
from sojourn.settings import Settings
from sojourn.state.facts import Facts, resolution_of

#: The source's phases in which no image has left this host, so that no other host can have restored
#: the tree: it is resumed whatever others know.
RESUMED_ALONE = {Phase.OPEN, Phase.FREEZING, Phase.FROZEN}


class Move(Enum):
    """What the reconciler does next about one row."""

    LEAVE = "nothing: it moves, or may still"
    RESUME = "resume the process on this host, which may do so alone or by an operator's decision"
    SETTLE = "ask for the destination's verdict and act by it"
    FINISH = "finish what a final phase permits, and give back what is held"


def next_move(migration: Migration, still_s: float, *, given_up: bool = False) -> Move:
    """Return what to do about a row that has not changed for ``still_s`` seconds.

    ``given_up``: the ledger has the migration's end already, so a destination that still waits for
    the memory waits in vain.
    """
    phase, settings = migration.phase, migration.host.settings
    if given_up and phase is Phase.RESERVED:
        return Move.SETTLE if still_s >= settings.stall_s else Move.LEAVE
    # The clock first: to find what is at work means to look at every process of the host.
    if still_s < _waits_s(migration, settings) or migration.at_work():
        return Move.LEAVE
    if is_busy(migration) or (migration.is_unsettled() and not is_broken(migration)):
        return Move.LEAVE
    if phase.final:
        return Move.FINISH
    if phase is Phase.RELEASED and migration.is_declared_dead(Role.DESTINATION):
        return Move.RESUME
    return Move.RESUME if phase in RESUMED_ALONE else Move.SETTLE


def finish(migration: Migration) -> str:
    """Do what is left to do after a final phase, and return what that was. Safe to repeat."""
    sentence = f"the process runs on {migration.host.name}"
    if migration.phase is Phase.RETIRED:
        sentence = retire_original(migration)
    elif migration.phase is Phase.RESUMED:
        sentence = resume_original(migration)
    elif migration.phase is Phase.REFUSED:
        refuse(migration)
        sentence = f"{migration.host.name} has refused the process"
    elif is_broken(migration) or "memory_lost" in migration.facts:
        sentence = f"the process was ended, since {lose(migration)} bytes of its memory are lost"
    elif migration.facts.get("fenced"):
        ended = units.processes(end_fenced(migration))
        sentence = f"{ended} ended here, since it runs on the source"
    migration.clear()
    return f"{sentence}; nothing of the migration is left here but its logs"


def _waits_s(migration: Migration, settings: Settings) -> float:
    """Return how long a row may stay unchanged before it counts as stalled.

    While the process runs there is time. Inside the freeze only a message can be under way between
    two steps. A phase that belongs to one step, of which no process is left, has lost that step and
    waits for nothing.
    """
    phase = migration.phase
    if phase in {Phase.FREEZING, Phase.RESTORING, Phase.ACCEPTED} or migration.is_unsettled():
        return 0
    if migration.facts.get("resolved"):
        return settings.stall_s
    if phase is Phase.OPEN or (phase is Phase.RESERVED and not may_restore(migration)):
        return settings.patience_s
    return settings.stall_s


#: What a final row proves of the whole migration. The source resumes alone before ``released``,
#: when the destination cannot have all images, or with its ``refused``; it retires the original
#: with its ``restored``. So the source's row proves the verdict too. An earlier step may have found
#: memory still on its way; what has ended has not.
PROOF: dict[Phase, Facts] = {
    Phase.RESUMED: {"source_phase": Phase.RESUMED, "verdict": Verdict.REFUSED},
    Phase.RETIRED: {
        "source_phase": Phase.RETIRED,
        "verdict": Verdict.RESTORED,
        "unsettled": False,
    },
    Phase.RESTORED: {"verdict": Verdict.RESTORED, "unsettled": False},
    Phase.REFUSED: {"verdict": Verdict.REFUSED},
}


def known_end(migration: Migration) -> Facts:
    """Return the facts that prove from here alone how the migration ended; empty if none do."""
    proof = PROOF.get(migration.phase, Facts())
    if migration.is_unsettled():
        return {}
    if migration.phase is Phase.RESTORED:
        return proof | aftermath(migration) if not migration.facts.get("fenced") else {}
    if migration.phase is Phase.RESUMED:
        return proof | fate(migration)
    # A refusal alone is no end: the source still has to resume, unless it is dead for good.
    if migration.phase is Phase.REFUSED and not migration.is_declared_dead(Role.SOURCE):
        return {}
    return proof


#: What a row of the journal means for the ledger, and who owns the process then.
MEANING = {
    Phase.RETIRED: (State.COMPLETED, Role.DESTINATION),
    Phase.RESTORED: (State.COMPLETED, Role.DESTINATION),
    Phase.RESUMED: (State.ROLLED_BACK, Role.SOURCE),
    Phase.REFUSED: (State.ROLLED_BACK, Role.SOURCE),
}


def account_of(migration: Migration) -> Account:
    """Return a migration as this host's journal knows it, for a ledger that has lost it."""
    journal, entry = migration.host.journal, migration.entry
    facts = journal.known(entry)
    # A fenced host had restored the tree and ended it again, because it runs on the source.
    phase = Phase.REFUSED if facts.get("fenced") else entry.phase
    state, owner = MEANING.get(phase, (State.RUNNING, Role.SOURCE))
    if state is State.ROLLED_BACK and facts.get("gone"):
        state = State.LOST
    if state is State.COMPLETED and "memory_lost" in facts:
        state = State.LOST
    if state is State.COMPLETED and "ended_after_ms" in facts:
        state = State.ENDED
    if migration.is_unsettled():
        state = State.RUNNING  # it may be lost yet
    steps = tuple(journal.steps(entry.id))
    decision = dict(resolution_of(facts))
    owner_host = None if state in {State.ENDED, State.LOST} else entry.plan.host_of(owner)
    return Account(
        entry.id,
        entry.plan,
        state,
        entry.created,
        owner_host,
        steps,
        role=entry.role,
        resolved=decision,
        command=facts.get("command", ""),
    )
