"""What a batch is called, and how it is coloured: by its hosts, and by what became of its lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sojourn.cluster.batches import PROVISIONAL, BatchState, Record, states_of
from sojourn.cluster.client import Cluster
from sojourn.cluster.planfile import SKIPPED
from sojourn.model import State
from web.rows import look

#: How many hosts a title names.
NAMED = 3

LOOKS = {
    BatchState.ABORTED: "stayed",
    BatchState.REFUSED: "stayed",
    BatchState.PAUSED: "waits",
    BatchState.ABORTING: "turns",
}

#: From the one that matters most: the worst of its lines colours a batch.
WORST = ("bad", "stayed", "turns", "good")


def look_of(record: Record, states: Iterable[str]) -> str:
    """Return the style of a batch whose lines have ended in these states.

    It is amber if lines were refused or stayed, but for those that were to stay, and red if one
    needs an operator.
    """
    if record.state is not BatchState.FINISHED:
        return LOOKS.get(record.state, "runs")
    found = {look(State(state)) for state in states if state in set(State)}
    stay = any(stay.get("code") != SKIPPED for stay in record.stays)
    found |= {"stayed"} if stay else set()
    return next((each for each in WORST if each in found), "good")


def title_of(record: Record, sources: Iterable[str]) -> str:
    """Return what a batch is, and of which hosts: ``Drain of alpha``, ``Batch from alpha``."""
    names = sorted({*sources, *(str(stay.get("source", "")) for stay in record.stays)} - {""})
    kind, preposition = ("Drain", "of") if record.kind == "drain" else ("Batch", "from")
    if not names:
        return f"{kind} {record.id[:8]}"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{kind} {preposition} {', '.join(names[:NAMED])}{more}"


def drained(record: Record) -> list[str]:
    """Return the hosts that a drain was asked to empty; none for a plan, which names many."""
    lines = record.asked.get("lines")
    found = [line for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []
    return [str(line["source"]) for line in found if "source" in line]


@dataclass(frozen=True)
class Glance:
    """A batch as the table's page links it."""

    record: Record
    title: str
    look: str


@dataclass
class Glances:
    """Batches as the table's page links them; what cannot change any more is read once."""

    titles: dict[str, str] = field(default_factory=dict)
    looks: dict[str, str] = field(default_factory=dict)

    def of(self, cluster: Cluster, count: int) -> list[Glance]:
        """Return the latest batches."""
        return [
            Glance(record, self._title(cluster, record), self._look(cluster, record))
            for record in cluster.batches.latest(count)
        ]

    def _title(self, cluster: Cluster, record: Record) -> str:
        if record.id in self.titles:
            return self.titles[record.id]
        sources = drained(record)
        if not sources:
            sources = [str(part.plan["source"]) for part in cluster.batches.parts(record.id)]
        title = title_of(record, sources)
        if record.state is not BatchState.PLANNING:
            self.titles[record.id] = title
        return title

    def _look(self, cluster: Cluster, record: Record) -> str:
        if record.state is not BatchState.FINISHED:
            self.looks.pop(record.id, None)  # it may have been resumed
            return look_of(record, ())
        if record.id not in self.looks:
            states = states_of(cluster.batches.ends(record.id), record.total)
            found = look_of(record, states)
            if set(states) & set(PROVISIONAL):
                return found
            self.looks[record.id] = found
        return self.looks[record.id]
