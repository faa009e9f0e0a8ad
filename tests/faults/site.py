"""The stage of a cell: a lab, and which of its two hosts is which in one migration."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import redis

from lab import readiness
from lab.host import Host, within
from lab.lab import Lab
from sojourn.errors import StoreUnreachable
from sojourn.ledger import Ledger
from sojourn.model import Role, State
from sojourn.store import Store
from tests.lab.site import Site, left_behind, redis_tls

#: So that what stands still is moved on within seconds.
IMPATIENT = {"reconcile_s": 1, "stall_s": 3, "patience_s": 10, "max_freeze_s": 30}

#: Room for the journals of some thousand migrations; a file system of its own, so that it can be full.
STATE_MB = 64

HOSTS = ("alpha", "beta")

#: How long a host may take until its worker has announced itself.
WORKERS_S = 40

#: Ends that are told while a host is away, and change when it is back.
PASSING = {State.IN_DOUBT, State.CLEANUP_PENDING}

#: How often the ledger is asked; each lab has two cores or less.
LOOK_S = 0.2


class FaultSite(Site):
    """A lab for faults, and what is looked at from outside of it."""

    @classmethod
    def fresh(cls, lab: Lab, *, encrypted: bool = False) -> FaultSite:
        """Make the lab anew, whatever is left of it."""
        lab.down()
        lab.up(len(HOSTS), settings=IMPATIENT, state_mb=STATE_MB, encrypted=encrypted)
        return cls(lab)

    @cached_property
    def redis(self) -> redis.Redis:
        """The lab's Redis, as only a test may use it: its messages can be taken and sent again."""
        return redis.Redis.from_url(self.lab.plan.redis_url, **redis_tls(self.lab))

    @cached_property
    def ledger(self) -> Ledger:
        """What people are told."""
        return Ledger(Store(self.lab.plan.redis_url, redis_tls(self.lab)), 0)

    def make_ready(self) -> None:
        """Have both hosts up and plugged in, with workers that take steps."""
        hosts = [self.host(name) for name in HOSTS]
        silent = readiness.announced(self.lab.plan, [host.name for host in hosts], WORKERS_S)
        assert not silent, f"no worker on {', '.join(silent)}"

    def state(self, migration: str) -> State | None:
        """Return what the ledger tells of a migration; None if it tells nothing now."""
        try:
            account = self.ledger.account(migration)
        except StoreUnreachable:
            return None
        return account.state if account else None

    def why(self, migration: str) -> str:
        """Return the code of the failure that the ledger tells; nothing if it tells none now."""
        try:
            account = self.ledger.account(migration)
        except StoreUnreachable:
            return ""
        return account.failure.code if account and account.failure else ""

    def ends(self, migration: str, seconds: float) -> bool:
        """Whether the migration came to an end in time, and neither host holds anything of it any more."""
        return within(seconds, lambda: self._has_ended(migration) or _pause())

    def left(self) -> list[str]:
        """Return what was left behind, on both hosts."""
        return [f"{name}: {thing}" for name in HOSTS for thing in left_behind(self.lab.host(name))]

    def _has_ended(self, migration: str) -> bool:
        state = self.state(migration)
        return state is not None and state.final and state not in PASSING and not self.left()


def _pause() -> bool:
    time.sleep(LOOK_S)
    return False


@dataclass(frozen=True)
class Stage:
    """One migration on a site: its hosts by role, and the role of the host on which the instant comes."""

    site: FaultSite
    source: str
    destination: str
    where: Role

    @property
    def here(self) -> Host:
        """The host on which the instant comes."""
        return self.host(self.where)

    def name(self, role: Role) -> str:
        """Return the name of the host that has a role."""
        return self.source if role is Role.SOURCE else self.destination

    def host(self, role: Role) -> Host:
        """Return the host that has a role, in whatever state it is."""
        return self.site.lab.host(self.name(role))

    def queue(self, lane: str) -> str:
        """Return the name of a queue: ``source`` and ``destination`` stand for the hosts."""
        return lane.replace("source", self.source).replace("destination", self.destination)
