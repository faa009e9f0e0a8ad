"""This host, and a migration as it stands on this host: what steps and tools work with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Unpack, cast

from sojourn.cluster.client import Cluster
from sojourn.criu.commands import Criu
from sojourn.errors import StoreUnreachable, Temporary
from sojourn.model import Identity, Json, Member, Phase, Plan, Role, StepRecord
from sojourn.security.tls import TlsIdentity
from sojourn.settings import Settings, load
from sojourn.state.entry import Entry
from sojourn.state.facts import Facts
from sojourn.state.journal import Journal
from sojourn.system import process
from sojourn.system.caller import Caller
from sojourn.transfer import channel, pager, rebuilder, sender
from sojourn.transfer.holder import Assignment
from sojourn.transfer.image_directory import ImageDirectory

#: How often, ten milliseconds apart, a migration's processes are killed before those that are left
#: must be stuck in the kernel.
KILL_ROUNDS = 200

#: The name in timelines of an operator's decision that a host has refused.
RESOLVE = "resolve"

#: By what those are found that work for a migration, and end with it.
WORKERS_VARIABLES = [process.MIGRATION_VARIABLE, rebuilder.VARIABLE]


class Host:
    """One host: its name, settings and journal, and the cluster's ledger, registry and queue."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.host
        self.criu = Criu(settings.criu)
        self.journal = Journal(settings.state_dir / "journal.db")
        cluster = Cluster(settings)
        self.ledger, self.registry = cluster.ledger, cluster.registry
        self.queue, self.batches = cluster.queue, cluster.batches
        self.requests = cluster.requests
        self.audit = cluster.audit
        self.sealed = cluster.sealed

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
    def facts(self) -> Facts:
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
    def tls_identity(self) -> TlsIdentity | None:
        """Who we are for the other host, and who that must be; None without certificates here."""
        return TlsIdentity.of(self.host.settings.certificates, self.peer)

    def become(self, phase: Phase, **facts: Unpack[Facts]) -> None:
        """Write the next phase, with facts; the act that it permits may follow.

        Raises PhaseConflict.
        """
        self.entry = self.host.journal.advance(self.entry, phase, facts)

    def learn(self, **facts: Unpack[Facts]) -> None:
        """Keep facts in this host's journal."""
        self.entry = self.host.journal.learn(self.entry, facts)

    def read_resolution(self) -> None:
        """Learn an operator's decision on a dead host, which waits in the ledger for its return.

        Each counts once, and none that is older than the last. Raises StoreUnreachable.
        """
        decision = cast("Facts", self.host.ledger.resolution(self.id))
        if not decision or decision["resolved_at"] <= self.facts.get("resolved_at", 0):
            return
        if not self.refuses_resolution(decision):
            self.note_decision(decision)
            self.learn(**decision)

    def note_decision(self, facts: Facts, refused: str = "") -> None:
        """Keep in the audit trail that an operator's decision has come here, if there is a new one.

        ``refused`` is why it is not acted upon.
        """
        if facts.get("resolved_at") in {None, self.facts.get("resolved_at")}:
            return
        caller = Caller.named(facts.get("resolved_by", ""))
        what = f"{self.plan.describe()}: the {facts.get('resolved')} is dead"
        self.host.audit.record(caller, "resolve", self.id, what, refused)

    def refuses_resolution(self, facts: Facts) -> bool:
        """Whether an operator's decision among these facts does not count here, since it is wrong.

        One that was refused counts never again: the operator may decide once more, or force it.
        """
        if not self._is_on_peer(facts) or facts.get("resolved_by_force"):
            return False
        if facts["resolved_at"] <= self.facts.get("resolution_refused", 0):
            return True
        sign = self._sign_of_life()
        if sign:
            self._refuse_resolution(facts, sign)
        return bool(sign)

    def _is_on_peer(self, facts: Facts) -> bool:
        """Whether there is a decision on the other host that has not been acted upon here."""
        is_known = facts.get("resolved_at") == self.facts.get("resolved_at")
        return "resolved" in facts and not is_known and self.peer == self._declared(facts)

    def _declared(self, facts: Facts) -> str:
        return self.plan.host_of(facts["resolved"])

    def _sign_of_life(self) -> str:
        """Return what shows that the other host is not dead; empty where nothing is known.

        Its announcement is in Redis, where it can be hidden; when it answered is known here.
        """
        with contextlib.suppress(StoreUnreachable):
            if self.host.registry.are_alive(self.peer):
                return "announces itself"
        silent_s = time.time() - self.host.journal.heard_at(self.peer)
        if silent_s < self.host.settings.patience_s:
            return f"answered {silent_s:.0f} s ago"
        return ""

    def _refuse_resolution(self, decision: Facts, sign: str) -> None:
        """Note, log, count and show that a decision does not count here."""
        sentence = (
            f"{decision['resolved_by']} declared {self.peer} dead, but that host {sign}: "
            f"{self.host.name} does nothing by it, and process {self.plan.pid} stays as it is."
        )
        self.note_decision(decision, sentence)
        self.learn(resolution_refused=decision["resolved_at"])
        now, ledger = time.time(), self.host.ledger
        ledger.refuse_resolution(self.id, cast("Json", decision), sentence)
        shown = StepRecord(RESOLVE, self.host.name, now, now, sentence, failed=True)
        ledger.record_step(self.id, self.role, shown)

    def is_declared_dead(self, role: Role) -> bool:
        """Whether an operator has declared the host of this role dead for good."""
        return bool(self.facts.get("resolved") == role)

    def record_tree(self, members: Iterable[Member]) -> None:
        """Keep who makes up the tree."""
        self.entry = self.host.journal.record_tree(self.entry, members)

    def refresh(self) -> None:
        """Read the journal again: the rebuilder and the holder write to it too."""
        entry = self.host.journal.entry(self.id, self.role)
        assert entry is not None
        # The rebuilder writes phases and logs none of them.
        if entry.phase is not self.phase:
            self.host.journal.log_phase(entry)
        self.entry = entry

    def assignment(
        self, *, address: str, port: int, purposes: tuple[str, ...], deadline_s: float
    ) -> Assignment:
        """Return the assignment for a holder of this migration's page channel on this host."""
        return Assignment(
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
        """Return the holders, rebuilders and CRIUs that work for this migration here.

        Not a rebuilder, and its CRIU, that wait for a restore to begin.
        """
        waits = (self.directory.work / rebuilder.SOCKET).exists()
        variables = [process.MIGRATION_VARIABLE] if waits else WORKERS_VARIABLES
        return process.carrying(variables, self.id)

    def end_processes(self) -> None:
        """End them, those that wait, and what they start meanwhile. Safe to repeat."""
        _end(lambda: process.carrying(WORKERS_VARIABLES, self.id))

    def pagers(self) -> list[Identity]:
        """Return the pager of this migration here, and its guard."""
        # To look for them means to look at every process of the host.
        may_be = self.role is Role.DESTINATION and self.facts.get("lazy")
        return process.carrying([pager.VARIABLE], self.id) if may_be else []

    def end_pagers(self) -> None:
        """End them both. Raises Temporary while the process runs and needs them. Safe to repeat."""
        if self.is_unsettled():
            raise Temporary(
                f"Memory is still coming into place on {self.host.name}; what it needs is kept."
            )
        _end(self.pagers)

    def senders(self) -> list[Identity]:
        """Return what hands out the memory of the frozen original here, in post-copy."""
        may_be = self.role is Role.SOURCE and self.plan.post_copy
        return process.carrying([sender.VARIABLE], self.id) if may_be else []

    def end_senders(self) -> None:
        """End it: the original will run, or is not needed any more. Safe to repeat."""
        _end(self.senders)

    def is_serving(self) -> bool:
        """Whether the process may run on the other host and need what the original here has."""
        return self.role is Role.SOURCE and self.plan.post_copy and self.phase is Phase.RELEASED

    def must_keep_original(self) -> bool:
        """Whether the original here is needed still, until the destination reports the opposite."""
        return self.is_serving() and bool(self.facts.get("unsettled", True))

    def is_unsettled(self) -> bool:
        """Whether the process runs here and its memory is not all in place, as was read last.

        A host that crashed meanwhile took the process along.
        """
        facts = self.facts
        ended = {"settled_at", "lost_at", "fenced"} & facts.keys()
        in_this_boot = facts.get("restore_boot") == process.boot_id()
        lazy = bool(facts.get("lazy"))
        return self.phase is Phase.RESTORED and lazy and in_this_boot and not ended

    def is_deciding(self) -> bool:
        """Whether a restore is under way here, which must not be cut short before its verdict."""
        return self.phase in {Phase.RESTORING, Phase.ACCEPTED}

    def clear(self) -> None:
        """End what runs for this migration, unmount its tmpfs, free its slot. The logs stay.

        Raises Temporary while memory comes into place from that tmpfs.
        """
        self.end_pagers()
        self.end_processes()
        if not self.is_serving():
            self.end_senders()
        # The processes are ended first, since a file system in use cannot be unmounted. The journal
        # is changed last: a death in between leaves something to finish, not something forgotten.
        self.directory.remove()
        for path in self.host.journal.held(self.entry, "mount"):
            self.host.journal.let_go(self.entry, "mount", path)
        if self.phase is Phase.RESTORED:
            self.host.journal.let_go_all(self.entry, "file")  # they are the running tree's now
        self.host.journal.let_go_all(self.entry, "arriving")
        self.give_slot_back()

    def give_slot_back(self) -> None:
        """Let another migration have this one's place among the frozen trees."""
        self.host.journal.let_go(self.entry, "slot", "freeze")


def _end(found: Callable[[], list[Identity]]) -> None:
    for _ in range(KILL_ROUNDS):
        left = found()
        if not left:
            return
        process.kill([Member(who) for who in left])
        time.sleep(0.01)


@cache
def this_host() -> Host:
    """Return the host that this process works for, opened at the first call of each process."""
    return Host(load())
