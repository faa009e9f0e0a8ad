"""What a step returns, and what one step hands to the next through the broker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from sojourn.errors import UsageError
from sojourn.model import MIGRATION_ID, Plan
from sojourn.state.facts import Facts


@dataclass(frozen=True)
class Outcome:
    """How an attempt of a step went well: a sentence for the operator, facts for later steps."""

    sentence: str
    facts: Facts = field(default_factory=Facts)

    @property
    def lasts(self) -> bool:
        """Whether it answers later deliveries too: that memory is on its way changes by itself."""
        return not self.facts.get("unsettled")


@dataclass(frozen=True)
class Message:
    """A migration as it crosses the broker: its id, its plan, and the facts of both hosts so far.

    It reports what happened, never what to do: each host decides by its own journal.
    """

    id: str
    plan: Plan
    facts: Facts = field(default_factory=Facts)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not MIGRATION_ID.fullmatch(self.id):
            raise UsageError(f"{self.id!r} is not the id of a migration.")
        if not isinstance(self.facts, dict):
            raise UsageError("The facts of a message are a mapping.")

    def with_facts(self, facts: Facts) -> Message:
        """Return the message with more facts: of two with the same name the later counts.

        What is pending adds up, and each sentence of it stands there once.
        """
        merged = self.facts | facts
        pending = [*self.facts.get("pending", []), *facts.get("pending", [])]
        if pending:
            merged["pending"] = list(dict.fromkeys(pending))
        return replace(self, facts=merged)

    def to_text(self) -> str:
        """Return the message as JSON text: what carries messages need not look into it."""
        return json.dumps({"id": self.id, "plan": self.plan.to_json(), "facts": self.facts})

    @classmethod
    def from_text(cls, text: str) -> Message:
        """Build a message from an untrusted text. Raises UsageError for a malformed one."""
        try:
            data = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            data = None
        if not isinstance(data, dict) or set(data) != {"id", "plan", "facts"}:
            raise UsageError("The message of a migration is malformed.")
        return cls(data["id"], Plan.from_json(data["plan"]), data["facts"])

    @classmethod
    def handed(cls, handed: str | Sequence[str]) -> Message:
        """Build the message that a step is handed: one text, or one of each side of a ``Both``.

        Raises UsageError if they are not all of one migration.
        """
        texts = [handed] if isinstance(handed, str) else handed
        messages = [cls.from_text(text) for text in texts]
        if not messages or any(each.id != messages[0].id for each in messages):
            raise UsageError("The messages of one step must be of one migration.")
        return reduce(lambda joined, other: joined.with_facts(other.facts), messages)
