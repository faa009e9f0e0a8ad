"""The cluster as hosts, command line and web pages reach it: ledger, registry, queue, batches."""

from __future__ import annotations

from sojourn.cluster.account import Account
from sojourn.cluster.audit import Trail
from sojourn.cluster.batches import Batches
from sojourn.cluster.ledger import Ledger
from sojourn.cluster.queue import Queue
from sojourn.cluster.registry import Registry
from sojourn.cluster.requests import Requests
from sojourn.cluster.sealed import Sealed
from sojourn.cluster.store import Store
from sojourn.errors import UsageError
from sojourn.settings import Settings, load


class Cluster:
    """What the hosts share in Redis, reached with these settings, or else with this machine's."""

    def __init__(self, settings: Settings | None = None) -> None:
        settings = settings or load()
        store = Store.of(settings)
        self.sealed = Sealed(store)
        self.ledger = Ledger(store, settings.keep_s)
        self.registry = Registry(store, settings.cluster)
        self.queue = Queue(store, settings.lease_s, settings.keep_s)
        self.batches = Batches(store, settings.keep_s)
        self.requests = Requests(store, settings.keep_s)
        self.audit = Trail(store, settings.audit, settings.host)

    def find(self, prefix: str) -> Account:
        """Return the one migration whose id begins with ``prefix``. Raises UsageError otherwise."""
        ids = self.ledger.find(prefix)
        if len(ids) != 1:
            have = f"{len(ids)} migrations have" if ids else "No migration has"
            raise UsageError(
                f"{have} an id that begins with {prefix!r}.",
                "Take more of the id: `sojourn list` shows them.",
            )
        account = self.ledger.account(ids[0])
        if account is None:
            raise UsageError(f"The ledger has forgotten migration {ids[0]}.")
        return account
