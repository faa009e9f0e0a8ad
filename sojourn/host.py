"""This host, and a migration as it stands on this host: what steps and tools are handed to work with."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from sojourn import channel, process
from sojourn.batch import Batches
from sojourn.criu import Criu
from sojourn.holder import Errand
from sojourn.images import ImageDirectory
from sojourn.journal import Entry, Journal
from sojourn.ledger import Ledger
from sojourn.model import Identity, Json, Member, Phase, Plan, Role, dead
from sojourn.queue import Queue
from sojourn.registry import Registry
from sojourn.settings import Settings, load
from sojourn.store import Store
from sojourn.tls import Party

SECONDS_PER_DAY = 86_400

#: How often, ten milliseconds apart, what works for a migration is killed before it must be stuck in the kernel.
KILL_ROUNDS = 200


class Host:
    """One host: its name, settings, journal, and its ways to the cluster's ledger, registry and queue."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.host
        self.criu = Criu(settings.criu)
        self.journal = Journal(settings.state_dir / "journal.db")
        store = Store.of(settings)
        self.ledger = Ledger(store, settings.keep_days * SECONDS_PER_DAY)
        self.registry = Registry(store, settings.cluster)
        self.queue = Queue(store, settings.lease_s)
        self.batches = Batches(store, settings.keep_days * SECONDS_PER_DAY)

    @property
    def action_script(self) -> Path:
        """CRIU's action script; not in the runtime directory, since ``/run`` is mounted ``noexec`` on many hosts."""
        return self.settings.state_dir / "action-script"

    @property
    def worker_file(self) -> Path:
        """Where the worker leaves its PID."""
        return self.settings.runtime_dir / "worker.pid"

    def worker_pid(self) -> int | None:
        """Return the PID of this host's worker, None where none has started."""
        return int(self.worker_file.read_text()) if self.worker_file.exists() else None

    def directory(self, migration: str) -> ImageDirectory:
        """Return the place of a migration's images and logs on this host."""
        return ImageDirectory(self.settings.runtime_dir / migration)


class Migration:
    """One migration as it stands on this host. Every change goes to the journal first."""

    def __init__(self, host: Host, entry: Entry) -> None:
        self.host = host
        self.entry = entry
        self.directory = host.directory(entry.id)

    @property
    def id(self) -> str:
        """The migration's id, the same on both hosts."""
        return self.entry.id

    @property
    def plan(self) -> Plan:
        """What was asked for."""
        return self.entry.plan

    @property
    def role(self) -> Role:
        """This host's part."""
        return self.entry.role

    @property
    def phase(self) -> Phase:
        """Where this host's journal stands, as it was read last."""
        return self.entry.phase

    @property
    def facts(self) -> Json:
        """What earlier steps here and on the other host have found out."""
        return self.entry.facts

    @property
    def secret(self) -> bytes:
        """The secret of this migration's page channel."""
        return channel.secret_for(self.host.settings.key.get_secret_value(), self.id)

    @property
    def peer(self) -> str:
        """The name of the other host."""
        return self.plan.host_of(Role.DESTINATION if self.role is Role.SOURCE else Role.SOURCE)

    @property
    def party(self) -> Party | None:
        """Who we are for the other host, and who that must be; None where this host has no certificates."""
        return Party.of(self.host.settings.certificates, self.peer)

    def become(self, phase: Phase) -> None:
        """Write the next phase; the act that it permits may follow. Raises PhaseConflict."""
        self.entry = self.host.journal.advance(self.entry, phase)

    def learn(self, **facts: object) -> None:
        """Keep facts in this host's journal."""
        self.entry = self.host.journal.learn(self.entry, facts)

    def hear_operator(self) -> None:
        """Learn an operator's word on a dead host; it waits in the ledger for one that comes back.

        Raises StoreUnreachable.
        """
        word = self.host.ledger.word(self.id)
        if word and word["resolved_at"] != self.facts.get("resolved_at"):
            self.learn(**word)

    def is_declared_dead(self, role: Role) -> bool:
        """Whether an operator has said that this migration's source, or its destination, is gone for good."""
        return bool(self.facts.get("resolved") == dead(role))

    def record_tree(self, members: Iterable[Member]) -> None:
        """Keep who makes up the tree."""
        self.entry = self.host.journal.record_tree(self.entry, members)

    def refresh(self) -> None:
        """Read the journal again: CRIU's action script and the holder write to it too."""
        entry = self.host.journal.entry(self.id, self.role)
        assert entry is not None  # noqa: S101  (rows are never deleted)
        if entry.phase is not self.phase:
            self.host.journal.witness(entry)
        self.entry = entry

    def errand(self, *, address: str, port: int, purposes: tuple[str, ...], deadline_s: float) -> Errand:
        """Return the errand for a holder of this migration's page channel on this host."""
        return Errand(
            migration=self.id,
            role=self.role,
            journal=str(self.host.journal.path),
            place=str(self.directory.place),
            criu=str(self.host.settings.criu),
            secret=self.secret.hex(),
            certificates=str(self.host.settings.certificates or ""),
            peer=self.peer,
            address=address,
            port=port,
            purposes=purposes,
            deadline_s=deadline_s,
        )

    def at_work(self) -> list[Identity]:
        """Return the holders, CRIUs and action scripts that work for this migration here."""
        return process.carrying(process.MIGRATION_VARIABLE, self.id)

    def end_processes(self) -> None:
        """End them, and what they start meanwhile. Again is harmless."""
        for _ in range(KILL_ROUNDS):
            left = self.at_work()
            if not left:
                return
            process.kill([Member(who) for who in left])
            time.sleep(0.01)

    def is_deciding(self) -> bool:
        """Whether a restore is under way here whose verdict nobody may cut short."""
        return self.phase in {Phase.RESTORING, Phase.ACCEPTED}

    def clear(self) -> None:
        """End what still runs for this migration, unmount its tmpfs, give its slot back. The logs stay."""
        self.end_processes()
        self.directory.remove()
        for path in self.host.journal.held(self.entry, "mount"):
            self.host.journal.let_go(self.entry, "mount", path)
        self.give_slot_back()

    def give_slot_back(self) -> None:
        """Let another migration have this one's place among the frozen trees."""
        self.host.journal.let_go(self.entry, "slot", "freeze")


@cache
def this_host() -> Host:
    """Return the host that this process works for, opened at the first call of each process."""
    return Host(load())
