"""What each page shows, read from Redis in one go: a migration, a host, a batch or drain.

``load`` is called in a thread and may wait for Redis; ``concerns`` tells for which migrations a
change calls for it again. Nothing here decides anything, and pages show only what the ledger, the
registry and the batches hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from sojourn import decision, units
from sojourn.cluster.account import Account
from sojourn.cluster.batches import BatchState, states_of
from sojourn.cluster.client import Cluster
from sojourn.errors import UsageError
from sojourn.model import Json, Role, State
from web import timeline
from web.batches import Glances, drained, look_of, title_of
from web.doubt import doubt_of, pieces
from web.rows import downtime_of, look, program
from workflows.intervene import effect_of_resolution

#: The most lines of a batch that are listed; its counts are of all lines.
LINES = 500

#: How many migrations of a host its page lists, in each direction; the table has the others.
LATEST = 10

#: The most batches that are linked beside the table.
BATCHES = 12


class Page(Protocol):
    """One page: its template, and the content."""

    template: ClassVar[str]

    def load(self, cluster: Cluster) -> Json:
        """Return what the template shows. Raises UsageError if there is none, StoreUnreachable."""

    def concerns(self, row: Json) -> bool:
        """Whether a change of this migration may change the page."""


@dataclass(frozen=True)
class MigrationPage:
    """One migration."""

    id: str
    template: ClassVar[str] = "migration-live.html"

    def load(self, cluster: Cluster) -> Json:
        """Return the account, its timeline, and what an operator can do."""
        account = account_of(cluster, self.id)
        return {
            "account": account,
            "plan": account.plan,
            "program": program(account.command),
            "downtime": downtime_of(account),
            "look": look(account.state),
            "where": account.where,
            "doubt": doubt_of(account),
            "pieces": pieces,
            "decision": decision.sentence(account.resolved or {}, account.plan),
            "picture": timeline.draw(account, time.time()),
            "facts": facts(account),
            "effects": {}
            if account.state.definite
            else {role: effect_of_resolution(cluster, account, role) for role in Role},
        }

    def concerns(self, row: Json) -> bool:
        """Whether it is this one."""
        return bool(row["id"] == self.id)


@dataclass(frozen=True)
class HostPage:
    """One host."""

    name: str
    rows: Callable[[], Iterable[Json]]
    template: ClassVar[str] = "host-live.html"

    def load(self, cluster: Cluster) -> Json:
        """Return what the host announces, and what leaves it and comes to it."""
        hosts = cluster.registry.hosts()
        if self.name not in hosts:
            raise UsageError(
                f"There is no host {self.name}.", f"Known hosts: {', '.join(hosts) or 'none'}."
            )
        mine = sorted(self.rows(), key=lambda row: -float(row["created"]))
        leaving = [row for row in mine if row["source"] == self.name]
        coming = [row for row in mine if row["destination"] == self.name]
        info, cordoned = hosts[self.name], cluster.registry.is_cordoned(self.name)
        busy = {"leaving": _under_way(leaving), "coming": _under_way(coming)}
        lists = {"leaving": leaving, "coming": coming}
        return {
            "name": self.name,
            "info": info,
            "cordoned": cordoned,
            "lists": {title: rows[:LATEST] for title, rows in lists.items()},
            "sizes": {title: len(rows) for title, rows in lists.items()},
            "busy": busy,
        }

    def concerns(self, row: Json) -> bool:
        """Whether it leaves this host or comes to it."""
        return self.name in {row["source"], row["destination"]}


@dataclass(frozen=True)
class BatchPage:
    """One batch or drain."""

    id: str
    template: ClassVar[str] = "batch-live.html"

    def load(self, cluster: Cluster) -> Json:
        """Return the batch, and its lines with their present attempt and their end."""
        record = cluster.batches.record(self.id)
        if record is None:
            raise UsageError(f"There is no batch {self.id}.", "It may have been forgotten.")
        parts, ends = cluster.batches.parts(self.id), cluster.batches.ends(self.id)
        listed = parts[:LINES]
        accounts = {
            account.id: account
            for account in cluster.ledger.accounts([part.migration for part in listed])
        }
        arrived = {State.COMPLETED, State.CLEANUP_PENDING}
        counts = states_of(ends, record.total)
        sources = drained(record) or [str(part.plan["source"]) for part in parts]
        return {
            "record": record,
            "title": title_of(record, sources),
            "resumable": record.state in {BatchState.PAUSED, BatchState.ABORTED}
            or (record.state is BatchState.FINISHED and record.ended and set(counts) - arrived),
            "look": look_of(record, counts),
            "look_of": _look,
            "program": program,
            "counts": {state: (count, _look(state)) for state, count in counts.items()},
            "lines": [
                (part, ends.get(part.number), accounts.get(part.migration)) for part in listed
            ],
            "more": len(parts) - len(listed),
        }

    def concerns(self, row: Json) -> bool:
        """Whether it belongs to this batch."""
        return bool(row["batch"] == self.id)


@dataclass(frozen=True)
class Surroundings:
    """What stands above the table: the hosts and the latest batches."""

    glances: Glances = field(default_factory=Glances)
    template: ClassVar[str] = "around-live.html"

    def load(self, cluster: Cluster) -> Json:
        """Return hosts and batches."""
        return {"hosts": cluster.registry.hosts(), "batches": self.glances.of(cluster, BATCHES)}

    def concerns(self, row: Json) -> bool:
        """Whether it belongs to a batch, whose count may have changed."""
        return bool(row["batch"])


def account_of(cluster: Cluster, migration: str) -> Account:
    """Return a migration. Raises UsageError if the ledger does not know it."""
    account = cluster.ledger.account(migration)
    if account is None:
        raise UsageError(
            f"The ledger knows no migration {migration}.", "It may have been forgotten."
        )
    return account


def facts(account: Account) -> list[tuple[str, str]]:
    """Return the facts of a migration, as pairs of a name and a text."""
    result, plan = account.result or {}, account.plan
    return [
        ("Asked for", units.moment(account.created)),
        ("Mode", plan.how),
        ("Memory", units.size(result.get("pages_bytes"))),
        ("Rate", units.rate(_rate(account))),
        ("Images", units.size(result.get("images_bytes"))),
        ("Downtime", units.span(result.get("downtime_ms"))),
        ("Frozen", units.span(result.get("frozen_ms"))),
        ("Settled after", units.span(result.get("settled_ms"))),
        *_waits(account),
        ("In all", units.span(result.get("total_ms"))),
    ]


def _waits(account: Account) -> list[tuple[str, str]]:
    """Return what the process waited for since it ran, of one whose memory came afterwards."""
    found = account.result or account.progress or {}
    if not found.get("faults"):
        return []
    still = [("Still to come", units.size(found["missing"]))] if "missing" in found else []
    longest = units.span(found.get("wait_longest_ms"))
    return [*still, ("Pages waited for", str(found["faults"])), ("Longest wait", longest)]


def _under_way(rows: Iterable[Json]) -> int:
    """Return the number of those that have begun and not ended."""
    return sum(
        1 for row in rows if row["look"] in {"runs", "turns"} and not State(row["state"]).final
    )


def _rate(account: Account) -> float | None:
    """Return the bytes per second of the dump, over the whole time of its step."""
    pages = (account.result or {}).get("pages_bytes")
    took = next((step.elapsed_ms for step in account.steps if step.name == "dump"), None)
    return 1000 * pages / took if pages and took else None


def _look(state: str) -> str:
    return look(State(state)) if state in set(State) else "waits"
