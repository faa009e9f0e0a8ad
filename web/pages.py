"""What each page shows, read from Redis in one go: a migration, a host, a batch or drain.

``load`` is called in a thread and may wait for Redis; ``concerns`` says which changes of migrations call for it anew.
Nothing here decides anything, and nothing is shown that the ledger, the registry or the batches do not say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from sojourn.batch import BatchState, states_of
from sojourn.cluster import Cluster
from sojourn.errors import UsageError
from sojourn.ledger import Account
from sojourn.model import Json, Plan, Role, State, dead, where_it_runs
from web import figures, timeline
from web.rows import look
from workflows.intervene import what_a_word_does

#: So many lines of a batch are listed; the counts are of all.
LINES = 500

#: So many batches are offered beside the table.
BATCHES = 12


class Page(Protocol):
    """One page: its template, and what is in it."""

    template: ClassVar[str]

    def load(self, cluster: Cluster) -> Json:
        """Return what the template shows. Raises UsageError for what is not there, StoreUnreachable."""

    def concerns(self, row: Json) -> bool:
        """Whether a change of this migration may change the page."""


@dataclass(frozen=True)
class MigrationPage:
    """One migration."""

    id: str
    template: ClassVar[str] = "migration-live.html"

    def load(self, cluster: Cluster) -> Json:
        """Return the account, its picture, and what an operator can do."""
        account = account_of(cluster, self.id)
        return {
            "account": account,
            "plan": account.plan,
            "look": look(account.state),
            "where": where_it_runs(account.state, account.owner),
            "word": said(account),
            "picture": timeline.draw(account, time.time()),
            "facts": facts(account),
            "acts": {} if account.state.definite else {role: what_a_word_does(cluster, account, role) for role in Role},
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
        """Return what the host says of itself, and what leaves it and comes to it."""
        hosts = cluster.registry.hosts()
        if self.name not in hosts:
            raise UsageError(f"There is no host {self.name}.", f"Known hosts: {', '.join(hosts) or 'none'}.")
        mine = sorted(self.rows(), key=lambda row: -float(row["created"]))
        leaving = [row for row in mine if row["source"] == self.name]
        coming = [row for row in mine if row["destination"] == self.name]
        info, cordoned = hosts[self.name], cluster.registry.is_cordoned(self.name)
        busy = {"leaving": _under_way(leaving), "coming": _under_way(coming)}
        lists = {"leaving": leaving[:LINES], "coming": coming[:LINES]}
        return {"name": self.name, "info": info, "cordoned": cordoned, "lists": lists, "busy": busy}

    def concerns(self, row: Json) -> bool:
        """Whether it leaves this host or comes to it."""
        return self.name in {row["source"], row["destination"]}


@dataclass(frozen=True)
class BatchPage:
    """One batch or drain."""

    id: str
    template: ClassVar[str] = "batch-live.html"

    def load(self, cluster: Cluster) -> Json:
        """Return the batch, its lines as they are tried now, and what each came to."""
        record = cluster.batches.record(self.id)
        if record is None:
            raise UsageError(f"There is no batch {self.id}.", "It may have been forgotten.")
        parts, ends = cluster.batches.parts(self.id)[:LINES], cluster.batches.ends(self.id)
        accounts = {account.id: account for account in cluster.ledger.accounts([part.migration for part in parts])}
        return {
            "record": record,
            "look": BATCH_LOOKS.get(record.state, "runs"),
            "look_of": _look,
            "counts": {state: (count, _look(state)) for state, count in states_of(ends, record.total).items()},
            "lines": [(part, ends.get(part.number), accounts.get(part.migration)) for part in parts],
        }

    def concerns(self, row: Json) -> bool:
        """Whether it is a part of this batch."""
        return bool(row["batch"] == self.id)


BATCH_LOOKS = {
    BatchState.FINISHED: "good",
    BatchState.ABORTED: "stayed",
    BatchState.REFUSED: "stayed",
    BatchState.PAUSED: "waits",
    BatchState.ABORTING: "turns",
}


@dataclass(frozen=True)
class Surroundings:
    """What stands beside the table: the hosts and the latest batches."""

    template: ClassVar[str] = "around-live.html"

    def load(self, cluster: Cluster) -> Json:
        """Return hosts and batches."""
        return {"hosts": cluster.registry.hosts(), "batches": cluster.batches.latest(BATCHES)}

    def concerns(self, row: Json) -> bool:
        """Whether it belongs to a batch, whose count may have changed."""
        return bool(row["batch"])


def account_of(cluster: Cluster, migration: str) -> Account:
    """Return a migration. Raises UsageError if the ledger does not know it."""
    account = cluster.ledger.account(migration)
    if account is None:
        raise UsageError(f"The ledger knows no migration {migration}.", "It may have been forgotten.")
    return account


def said(account: Account) -> str:
    """Return an operator's word on a migration as a sentence, empty if there is none."""
    word = account.resolved
    if not word:
        return ""
    role = Role.DESTINATION if word["resolved"] == dead(Role.DESTINATION) else Role.SOURCE
    when = figures.moment(word["resolved_at"])
    return f"{word['resolved_by']} said at {when} that {account.plan.host_of(role)}, the {role}, is dead for good."


def facts(account: Account) -> list[tuple[str, str]]:
    """Return what is known of a migration in numbers and names, each with its name."""
    result, plan = account.result or {}, account.plan
    return [
        ("Asked for", figures.moment(account.created)),
        ("Mode", ", ".join([plan.mode, *_options(plan)])),
        ("Memory", figures.size(result.get("pages_bytes"))),
        ("Rate", figures.rate(_rate(account))),
        ("Images", figures.size(result.get("images_bytes"))),
        ("Downtime", figures.span(result.get("downtime_ms"))),
        ("Frozen", figures.span(result.get("frozen_ms"))),
        ("In all", figures.span(result.get("total_ms"))),
    ]


def _under_way(rows: Iterable[Json]) -> int:
    """Return how many have begun and not ended."""
    return sum(1 for row in rows if row["look"] in {"runs", "turns"} and not State(row["state"]).final)


def _options(plan: Plan) -> list[str]:
    return [name.replace("_", "-") for name in ("tcp_established", "shell_job", "file_locks") if getattr(plan, name)]


def _rate(account: Account) -> float | None:
    """Return the bytes per second of the whole dump, from its step's begin to its end."""
    pages = (account.result or {}).get("pages_bytes")
    took = next((step.elapsed_ms for step in account.steps if step.name == "dump"), None)
    return 1000 * pages / took if pages and took else None


def _look(state: str) -> str:
    return look(State(state)) if state in set(State) else "waits"
