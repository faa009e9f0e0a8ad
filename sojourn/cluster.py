"""The cluster as operators see it, by command line or browser: ledger, registry, queue; without a host of its own."""

from __future__ import annotations

from sojourn.batch import Batches
from sojourn.errors import UsageError
from sojourn.host import SECONDS_PER_DAY
from sojourn.ledger import Account, Ledger
from sojourn.queue import Queue
from sojourn.registry import Registry
from sojourn.settings import load
from sojourn.store import Store


class Cluster:
    """The ways to ask Redis, from this machine's settings."""

    def __init__(self) -> None:
        settings = load()
        store = Store.of(settings)
        self.ledger = Ledger(store, settings.keep_days * SECONDS_PER_DAY)
        self.registry = Registry(store, settings.cluster)
        self.queue = Queue(store, settings.lease_s)
        self.batches = Batches(store, settings.keep_days * SECONDS_PER_DAY)

    def find(self, prefix: str) -> Account:
        """Return the migration whose id begins so. Raises UsageError if there is none, or more than one."""
        ids = self.ledger.find(prefix)
        if len(ids) != 1:
            have = f"{len(ids)} migrations have" if ids else "No migration has"
            raise UsageError(
                f"{have} an id that begins with {prefix!r}.", "Take more of the id: `sojourn list` shows them."
            )
        account = self.ledger.account(ids[0])
        if account is None:
            raise UsageError(f"The ledger has forgotten migration {ids[0]}.")
        return account
