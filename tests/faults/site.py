"""The stage of a cell: a lab, and the roles of its two hosts in one migration."""

from __future__ import annotations

import re
import time
import tomllib
from dataclasses import dataclass
from functools import cached_property

import redis

from lab import readiness
from lab.host import Host, within
from lab.lab import Lab
from sojourn.cluster.ledger import Ledger
from sojourn.cluster.store import Store
from sojourn.errors import StoreUnreachable
from sojourn.model import Role, State
from tests.lab.site import Site, left_behind, redis_tls

#: Stalled migrations are moved on within seconds.
IMPATIENT = {"reconcile_s": 1, "stall_s": 3, "patience_s": 10, "max_freeze_s": 30}

#: Room for the journals of some thousand migrations, on a file system of their own that a fault
#: can fill.
STATE_MB = 64

HOSTS = ("alpha", "beta")

#: A host's configuration, and what a site has of it beside what a test adds.
CONFIG, SITE_CONFIG = "/etc/sojourn/sojourn.toml", "/etc/sojourn/site.toml"

#: How long a host may take until its worker has announced itself.
WORKERS_S = 40

#: Ends that are reported while a host is away, and change when it is back.
PASSING = {State.IN_DOUBT, State.CLEANUP_PENDING}

#: How often the ledger is read; a lab has two cores or fewer.
LOOK_S = 0.2


class FaultSite(Site):
    """A lab for faults, and what can be observed from outside of it."""

    @classmethod
    def fresh(cls, lab: Lab, *, encrypted: bool = False) -> FaultSite:
        """Return the lab, made from scratch; remove whatever is left of an earlier one."""
        lab.down()
        lab.up(len(HOSTS), settings=IMPATIENT, state_mb=STATE_MB, encrypted=encrypted)
        return cls(lab)

    @cached_property
    def redis(self) -> redis.Redis:
        """The lab's Redis, as only a test may use it: messages can be taken and sent twice."""
        return redis.Redis.from_url(self.lab.plan.redis_url, **redis_tls(self.lab))

    @cached_property
    def ledger(self) -> Ledger:
        """What is reported to people."""
        return Ledger(Store(self.lab.plan.redis_url, redis_tls(self.lab)), 0)

    def make_ready(self) -> None:
        """Have both hosts up and plugged in, with workers that take steps."""
        hosts = [self.host(name) for name in HOSTS]
        silent = readiness.announced(self.lab.plan, [host.name for host in hosts], WORKERS_S)
        assert not silent, f"no worker on {', '.join(silent)}"

    def restore_lazily(self, name: str, setting: bool | str) -> None:
        """Have a host's ``lazy_restore`` be this one; a boot makes it the default again."""
        host = self.host(name)
        host.run(["sh", "-c", f"[ -e {SITE_CONFIG} ] || cp {CONFIG} {SITE_CONFIG}"])
        now = tomllib.loads(host.run(["cat", CONFIG]).stdout).get("lazy_restore", True)
        if now != setting:
            self.configure(host, lazy_restore=setting)

    def state(self, migration: str) -> State | None:
        """Return the state of a migration in the ledger; None if it has none now."""
        try:
            account = self.ledger.account(migration)
        except StoreUnreachable:
            return None
        return account.state if account else None

    def why(self, migration: str) -> str:
        """Return the code of a migration's failure in the ledger; empty if it has none now."""
        try:
            account = self.ledger.account(migration)
        except StoreUnreachable:
            return ""
        return account.failure.code if account and account.failure else ""

    def ends(self, migration: str, seconds: float) -> bool:
        """Whether the migration ended in time and neither host holds anything of it any more."""
        return within(seconds, lambda: self._has_ended(migration) or _pause())

    def left(self) -> list[str]:
        """Return what was left behind, on both hosts."""
        hosts = [self.lab.host(name) for name in HOSTS]
        return [
            f"{host.name}: {thing}"
            for host in hosts
            for thing in [*left_behind(host), *_ours(host)]
        ]

    def _has_ended(self, migration: str) -> bool:
        state = self.state(migration)
        return state is not None and state.final and state not in PASSING and not self.left()


def _ours(host: Host) -> list[str]:
    """Return the pagers, guards and senders that are on a host."""
    programs = host.run(["ps", "-eo", "args="]).stdout.splitlines()
    return [line for line in programs if re.search(r"sojourn\.transfer\.(pager|sender)", line)]


def _pause() -> bool:
    time.sleep(LOOK_S)
    return False


@dataclass(frozen=True)
class Stage:
    """One migration on a site: its hosts by role, and the role of the instant's host."""

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
        """Return the host that has a role, whether it is up or not."""
        return self.site.lab.host(self.name(role))

    def queue(self, lane: str) -> str:
        """Return the name of a queue: ``source`` and ``destination`` stand for the hosts."""
        return lane.replace("source", self.source).replace("destination", self.destination)
