"""The words of a migration as types: what travels, what is recorded, what it ends as.

Everything here is frozen and turns into plain JSON and back. Nothing here touches the system.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from sojourn.errors import UsageError

Json = dict[str, Any]

HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62})")
MIGRATION_ID = re.compile(r"[0-9a-f-]{8,40}")

#: How long a freeze may last, in seconds, where nobody says otherwise; and the longest that can be asked for.
MAX_FREEZE_S, LONGEST_FREEZE_S = 120.0, 86_400.0

#: The largest PID that a 64-bit kernel hands out (``PID_MAX_LIMIT``, proc(5)).
PID_MAX = 4_194_304


class Role(StrEnum):
    """A host's part in one migration."""

    SOURCE = "source"
    DESTINATION = "destination"


class Phase(StrEnum):
    """Where a migration stands in one host's journal; written before the act that it permits."""

    # source
    OPEN = "open"
    FREEZING = "freezing"
    FROZEN = "frozen"
    RELEASED = "released"
    RETIRED = "retired"
    RESUMED = "resumed"
    # destination
    RESERVED = "reserved"
    RESTORING = "restoring"
    ACCEPTED = "accepted"
    RESTORED = "restored"
    REFUSED = "refused"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self in {Phase.RETIRED, Phase.RESUMED, Phase.RESTORED, Phase.REFUSED}


class Verdict(StrEnum):
    """What the destination answers when it is asked who owns the process."""

    RESTORED = "restored"
    REFUSED = "refused"


def dead(role: Role) -> str:
    """Return an operator's word that a host is gone for good, as the fact ``resolved`` holds it."""
    return f"{role} is dead"


class State(StrEnum):
    """Where a migration stands for the people who asked for it."""

    QUEUED = "queued"
    RUNNING = "running"
    ROLLING_BACK = "rolling back"
    COMPLETED = "completed"
    CLEANUP_PENDING = "completed, clean-up pending"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    ROLLED_BACK = "rolled back"
    IN_DOUBT = "in doubt"
    LOST = "lost"
    ABORTED = "aborted"
    FAILED = "failed"

    @property
    def exit_code(self) -> int:
        """The command line's exit code for a migration that ended so."""
        return _EXIT_CODES.get(self, 1)

    @property
    def final(self) -> bool:
        """Whether people need not wait any longer; ``in doubt`` waits for an operator, not for the program."""
        return self not in {State.QUEUED, State.RUNNING, State.ROLLING_BACK}

    @property
    def definite(self) -> bool:
        """Whether the migration has ended, and it is known how."""
        return self.final and self is not State.IN_DOUBT

    @property
    def arrived(self) -> bool:
        """Whether the process runs on the destination."""
        return self in {State.COMPLETED, State.CLEANUP_PENDING}


_EXIT_CODES = {
    State.COMPLETED: 0,
    State.REFUSED: 10,
    State.ROLLED_BACK: 11,
    State.IN_DOUBT: 12,
    State.LOST: 13,
    State.UNREACHABLE: 14,
    State.ABORTED: 15,
    State.CLEANUP_PENDING: 16,
}


def where_it_runs(state: State, owner: str | None) -> str:
    """Return the sentence that people look for first when a migration did not go as asked."""
    if state in {State.REFUSED, State.UNREACHABLE}:
        return "Nothing was touched."
    if state is State.LOST:
        return "The process is gone."
    return f"The process runs on {owner}." if owner else "Nobody knows yet on which host the process runs."


@dataclass(frozen=True)
class Identity:
    """One process for certain: its PID, its start time in clock ticks since boot, and the boot that counts them.

    A PID alone is reused; see proc(5), field 22 of ``/proc/PID/stat``, and ``/proc/sys/kernel/random/boot_id``.
    """

    pid: int
    start_time: int
    boot_id: str


@dataclass(frozen=True)
class Member:
    """One process of a tree, and whether it was stopped (``T``) before we touched it."""

    identity: Identity
    stopped: bool = False

    def to_json(self) -> Json:
        """Return the member as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Member:
        """Read back what ``to_json`` wrote."""
        return cls(Identity(**data["identity"]), data["stopped"])


@dataclass(frozen=True)
class Plan:
    """What was asked for: which process, from where to where, and how.

    The three flags are CRIU's options of the same names (https://criu.org/CLI): established TCP connections
    move along, the tree belongs to a shell's session, file locks move along. A freeze that lasts longer than
    ``max_freeze_s`` seconds is rolled back.
    """

    pid: int
    source: str
    destination: str
    mode: str = "stop-and-copy"
    tcp_established: bool = False
    shell_job: bool = False
    file_locks: bool = False
    max_freeze_s: float = MAX_FREEZE_S

    MODES = ("stop-and-copy",)

    def __post_init__(self) -> None:
        _check_pid(self.pid)
        check_host_name(self.source, "source")
        check_host_name(self.destination, "destination")
        if self.source == self.destination:
            raise UsageError(f"Source and destination are the same host, {self.source}; nothing to migrate.")
        if self.mode not in self.MODES:
            raise UsageError(f"There is no mode {self.mode!r}.", f"Modes: {', '.join(self.MODES)}.")
        _check_freeze(self.max_freeze_s)

    def role_of(self, host: str) -> Role:
        """Return the part that ``host`` plays. Raises UsageError for a host that plays none."""
        if host == self.source:
            return Role.SOURCE
        if host == self.destination:
            return Role.DESTINATION
        raise UsageError(f"{host} has no part in a migration from {self.source} to {self.destination}.")

    def host_of(self, role: Role) -> str:
        """Return the host that plays ``role``."""
        return self.source if role is Role.SOURCE else self.destination

    def describe(self) -> str:
        """Return the plan as people would say it."""
        return f"pid {self.pid} from {self.source} to {self.destination}"

    def to_json(self) -> Json:
        """Return the plan as plain JSON."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Json) -> Plan:
        """Build a plan from untrusted JSON. Raises UsageError for a key or a value that makes no sense."""
        if not isinstance(data, dict):
            raise UsageError(f"A migration is asked for with a mapping of options, not with {data!r}.")
        known = {each.name: each for each in fields(cls)}
        for key in data:
            if key not in known:
                raise UsageError(f"A migration has no option {key!r}.", f"Options: {', '.join(known)}.")
        for key in ("tcp_established", "shell_job", "file_locks"):
            if not isinstance(data.get(key, False), bool):
                raise UsageError(f"{key} is true or false, not {data[key]!r}.")
        try:
            return cls(**data)
        except TypeError:
            missing = [key for key in ("pid", "source", "destination") if key not in data]
            raise UsageError(f"A migration needs {' and '.join(missing)}.") from None


def _check_pid(pid: object) -> None:
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise UsageError(f"A PID is a whole number, not {pid!r}.")
    if pid == 1:
        raise UsageError("PID 1 is the host's init; it can not be migrated.")
    if not 1 < pid <= PID_MAX:
        raise UsageError(f"{pid} is not a PID of a process: PIDs go from 2 to {PID_MAX}.")


def _check_freeze(seconds: object) -> None:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= LONGEST_FREEZE_S:  # type: ignore[operator]
        raise UsageError(f"A freeze may last more than 0 and up to {LONGEST_FREEZE_S:.0f} seconds, not {seconds!r}.")


def check_host_name(name: object, what: str) -> None:
    """Raise UsageError if this can not be a host's name; ``what`` says whose it was to be."""
    if not isinstance(name, str) or not HOST_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name of a host ({what}): small letters, digits and hyphens.")


@dataclass(frozen=True)
class Outcome:
    """How one attempt of a step went well: a sentence for the operator, and what later steps must know."""

    sentence: str
    facts: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a migration did not go as asked: a stable code, a sentence, a hint, and where it happened."""

    code: str
    message: str
    hint: str = ""
    step: str = ""
    host: str = ""
    log: str = ""


@dataclass(frozen=True)
class StepRecord:
    """One line of a migration's timeline. Times are seconds since the epoch by the clock of ``host``."""

    name: str
    host: str
    started: float
    ended: float | None = None
    outcome: str = ""
    failed: bool = False

    @property
    def elapsed_ms(self) -> float | None:
        """How long the step took, or None while it runs."""
        return None if self.ended is None else (self.ended - self.started) * 1000


@dataclass(frozen=True)
class Message:
    """What one step hands to the next through the broker: the migration's id, its plan, and facts of other hosts.

    It says what happened, never what to do: each host decides by its own journal.
    """

    id: str
    plan: Plan
    facts: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not MIGRATION_ID.fullmatch(self.id):
            raise UsageError(f"{self.id!r} is not the id of a migration.")
        if not isinstance(self.facts, dict):
            raise UsageError("The facts of a message are a mapping.")

    def with_facts(self, facts: Mapping[str, Any]) -> Message:
        """Return the message with more facts; of two with the same name the later counts."""
        return replace(self, facts={**self.facts, **facts})

    def to_text(self) -> str:
        """Return the message as JSON text: what handles messages on their way need not look into it."""
        return json.dumps({"id": self.id, "plan": self.plan.to_json(), "facts": self.facts})

    @classmethod
    def from_text(cls, text: str) -> Message:
        """Build a message from an untrusted text. Raises UsageError for anything that is not one."""
        try:
            data = json.loads(text)
        except (TypeError, ValueError):
            data = None
        if not isinstance(data, dict) or set(data) != {"id", "plan", "facts"}:
            raise UsageError("That is not a message of a migration.")
        return cls(data["id"], Plan.from_json(data["plan"]), data["facts"])
