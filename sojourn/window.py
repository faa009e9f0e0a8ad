"""What people are shown while a process runs, and its memory is not all in place.

In post-copy that is the *window*: what is missing is in the frozen original, so both hosts are
needed. In the other modes all of it is on the destination already.
"""

from __future__ import annotations

from collections.abc import Iterable

from sojourn import units
from sojourn.model import Json, Plan, State, StepRecord

#: The step after which the process runs, and the one that waits for all of its memory.
OPENS, CLOSES = "restore", "settle"


def is_open(plan: Plan, steps: Iterable[StepRecord], progress: Json) -> bool:
    """Whether the process runs and some of its memory is still to come, as far as is known."""
    done = {step.name for step in steps if step.ended is not None and not step.failed}
    known = "missing" in progress or (plan.post_copy and OPENS in done)
    return known and CLOSES not in done


def sentence(plan: Plan, steps: Iterable[StepRecord], progress: Json) -> str:
    """Return where the process runs and what it still needs; empty if it needs nothing.

    ``progress`` is that of the last event, or of the account.
    """
    if not is_open(plan, steps, progress):
        return ""
    more = _waits(progress)
    if not plan.post_copy:
        return f"It runs on {plan.destination}; {_still(progress)} to come into place there{more}."
    return (
        f"It runs on {plan.destination}; {_still(progress)} to come from {plan.source}, "
        f"so both hosts are needed{more}."
    )


def where(plan: Plan, state: State, steps: Iterable[StepRecord], progress: Json) -> str:
    """Return the same for a migration in some state; empty unless it is under way."""
    return "" if state.final else sentence(plan, steps, progress)


def to_come(progress: Json) -> str:
    """Return how much is still to come, in a few characters; empty where that is not known."""
    return f"{units.size(progress['missing'])} to come" if "missing" in progress else ""


def waited(numbers: Json) -> str:
    """Return for how many pages a process waited, by a result or an event, as part of a sentence.

    Where that is known, also how long at most.
    """
    longest = numbers.get("wait_longest_ms")
    at_most = "" if longest is None else f", {units.span(longest)} at most"
    return f"it waited for {units.counted(int(numbers.get('faults') or 0), 'page')}{at_most}"


def _still(progress: Json) -> str:
    return f"{units.size(progress['missing'])} still" if "missing" in progress else "memory still"


def _waits(progress: Json) -> str:
    """Return for how many pages threads have waited, and how long at most."""
    return f"; {waited(progress)}" if progress.get("faults") else ""
