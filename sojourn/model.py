"""The terms of a migration as types: what travels, what is recorded, what it ends as.

Everything here is frozen and turns into plain JSON and back. Nothing here touches the system.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from sojourn.errors import UsageError
from sojourn.text import quoted

Json = dict[str, Any]

#: A value of a library without types, such as Celery or Kombu.
Untyped = Any

HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62})")
MIGRATION_ID = re.compile(r"[0-9a-f-]{8,40}")

#: How long a freeze may last by default, in seconds; and the longest that can be asked for.
MAX_FREEZE_S, LONGEST_FREEZE_S = 120.0, 86_400.0

#: The mode of a migration for which none was asked.
DEFAULT_MODE = "stop-and-copy"

#: The largest limit of a migration's bandwidth, in megabits per second, which is more than one
#: connection carries; scp(1) takes no larger one either. And a megabit in bytes.
MAX_BANDWIDTH_MBIT, MBIT_BYTES = 100_000, 125_000

#: The largest PID that a 64-bit kernel hands out (``PID_MAX_LIMIT``, proc(5)).
PID_MAX = 4_194_304


class Role(StrEnum):
    """A host's part in one migration."""

    SOURCE = "source"
    DESTINATION = "destination"


class Phase(StrEnum):
    """Where a migration stands in one host's journal; written before the act that it permits."""

    # On the source.
    #: The migration has a row here; the process runs.
    OPEN = "open"
    #: CRIU may be stopping and dumping the tree.
    FREEZING = "freezing"
    #: The tree is dumped and stopped; this host may still resume it alone.
    FROZEN = "frozen"
    #: The images may have left: from here on only the destination decides.
    RELEASED = "released"
    #: Final: the process runs on the destination, so the original is killed.
    RETIRED = "retired"
    #: Final: the process stays on the source.
    RESUMED = "resumed"

    # On the destination.
    #: Memory and images may come; nothing is rebuilt yet.
    RESERVED = "reserved"
    #: CRIU may be rebuilding the tree, of which nothing may run yet.
    RESTORING = "restoring"
    #: The commit: the tree may run here.
    ACCEPTED = "accepted"
    #: Final: the tree runs here.
    RESTORED = "restored"
    #: Final: this host will never run the tree.
    REFUSED = "refused"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self in {Phase.RETIRED, Phase.RESUMED, Phase.RESTORED, Phase.REFUSED}


class Verdict(StrEnum):
    """The destination's durable answer to the question who owns the process."""

    RESTORED = "restored"
    REFUSED = "refused"


class State(StrEnum):
    """Where a migration stands for the people who asked for it."""

    #: It waits for places on both hosts.
    QUEUED = "queued"
    #: Its canvas has been sent.
    RUNNING = "running"
    #: A step failed; whatever was done is being undone.
    ROLLING_BACK = "rolling back"
    #: The process runs on the destination, and nothing is left on the source.
    COMPLETED = "completed"
    #: The process runs on the destination; something is left to do, or to look at.
    CLEANUP_PENDING = "completed, clean-up pending"
    #: Preflight refused it before anything was touched.
    REFUSED = "refused"
    #: A host did not answer before anything was touched.
    UNREACHABLE = "unreachable"
    #: It failed, and the process runs on the source.
    ROLLED_BACK = "rolled back"
    #: The destination's verdict is not known; the tree stays frozen until it is.
    IN_DOUBT = "in doubt"
    #: The process runs nowhere: it arrived on the destination, and ended there at once.
    ENDED = "arrived and ended"
    #: The process has ended with a host, or during the migration.
    LOST = "lost"
    #: An operator gave it up, and the process runs on the source.
    ABORTED = "aborted"

    @property
    def word(self) -> str:
        """The state as one word, for a command line."""
        return self.replace(",", "").replace(" ", "-")

    @property
    def exit_code(self) -> int:
        """The command line's exit code for a migration that ended so."""
        return _EXIT_CODES.get(self, 1)

    @property
    def final(self) -> bool:
        """Whether nobody need wait any longer; ``in doubt`` waits for an operator."""
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
    State.ENDED: 17,
}


def where_it_runs(state: State, owner: str | None) -> str:
    """Return the sentence that says where the process is after a migration that did not arrive."""
    if state in {State.REFUSED, State.UNREACHABLE}:
        return "Nothing was touched."
    if state is State.LOST:
        return "The process is gone."
    if state is State.ENDED:
        return "The process runs nowhere."
    return (
        f"The process runs on {owner}."
        if owner
        else "It is not known yet on which host the process runs."
    )


@dataclass(frozen=True)
class Identity:
    """One process for certain: its PID, its start time in clock ticks since boot, and that boot.

    A PID alone is reused; see proc(5), field 22 of ``/proc/PID/stat``, and
    ``/proc/sys/kernel/random/boot_id``.
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

    The first three flags are CRIU's options of the same names (https://criu.org/CLI): established
    TCP connections move along, the tree belongs to a shell's session, file locks move along. With
    ``stop_unit`` a supervisor on the source is kept from starting the process there again. A freeze
    that lasts longer than ``max_freeze_s`` seconds is rolled back. Memory and images are sent at
    ``bandwidth_mbit`` megabits per second at most, or as fast as the network carries them.

    ``mode`` decides when the memory crosses: in ``stop-and-copy`` while the process is frozen, in
    ``post-copy`` while it runs on the destination already.
    """

    pid: int
    source: str
    destination: str
    mode: str = DEFAULT_MODE
    tcp_established: bool = False
    shell_job: bool = False
    file_locks: bool = False
    max_freeze_s: float = MAX_FREEZE_S
    stop_unit: bool = False
    bandwidth_mbit: int | None = None

    FLAGS = ("tcp_established", "shell_job", "file_locks", "stop_unit")
    MODES = (DEFAULT_MODE, "post-copy")

    def __post_init__(self) -> None:
        _check_pid(self.pid)
        check_host_name(self.source, "source")
        check_host_name(self.destination, "destination")
        if self.source == self.destination:
            raise UsageError(
                f"Source and destination are the same host, {self.source}; nothing to migrate."
            )
        if self.mode not in self.MODES:
            raise UsageError(
                f"There is no mode {quoted(self.mode)}.", f"Modes: {', '.join(self.MODES)}."
            )
        _check_freeze(self.max_freeze_s)
        _check_bandwidth(self.bandwidth_mbit)

    @property
    def post_copy(self) -> bool:
        """Whether the process needs its original for a while after it has arrived."""
        return self.mode == "post-copy"

    @property
    def bytes_per_s(self) -> int | None:
        """How many bytes may be sent per second; None without a limit."""
        return None if self.bandwidth_mbit is None else self.bandwidth_mbit * MBIT_BYTES

    def role_of(self, host: str) -> Role:
        """Return the part that ``host`` plays. Raises UsageError for a host that plays none."""
        if host == self.source:
            return Role.SOURCE
        if host == self.destination:
            return Role.DESTINATION
        raise UsageError(
            f"{host} has no part in a migration from {self.source} to {self.destination}."
        )

    def host_of(self, role: Role) -> str:
        """Return the host that plays ``role``."""
        return self.source if role is Role.SOURCE else self.destination

    @property
    def how(self) -> str:
        """How it is done, for people: the mode, the options that were given, and the limit."""
        options = [name.replace("_", "-") for name in self.FLAGS if getattr(self, name)]
        mbit = self.bandwidth_mbit
        limit = [] if mbit is None else [f"at most {mbit} Mbit/s"]
        return ", ".join([self.mode, *options, *limit])

    def describe(self) -> str:
        """Return the plan as part of a sentence."""
        return f"pid {self.pid} from {self.source} to {self.destination}"

    def to_json(self) -> Json:
        """Return the plan as plain JSON."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Json) -> Plan:
        """Build a plan from untrusted JSON. Raises UsageError for an unknown key or a bad value."""
        if not isinstance(data, dict):
            raise UsageError(f"The options of a migration are a mapping, not {quoted(data)}.")
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise UsageError(
                    f"A migration has no option {quoted(key)}.", f"Options: {', '.join(known)}."
                )
        for key in cls.FLAGS:
            if not isinstance(data.get(key, False), bool):
                raise UsageError(f"{key} is true or false, not {quoted(data[key])}.")
        try:
            return cls(**data)
        except TypeError:
            missing = [key for key in ("pid", "source", "destination") if key not in data]
            raise UsageError(f"A migration needs {' and '.join(missing)}.") from None


def _check_pid(pid: object) -> None:
    # To Python, True is an int, and would be PID 1.
    if not isinstance(pid, int) or isinstance(pid, bool):
        raise UsageError(f"A PID is a whole number, not {quoted(pid)}.")
    if pid == 1:
        raise UsageError("PID 1 is the host's init; it cannot be migrated.")
    if not 1 < pid <= PID_MAX:
        raise UsageError(f"{pid} is not a PID of a process: PIDs go from 2 to {PID_MAX}.")


def _check_freeze(seconds: object) -> None:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= LONGEST_FREEZE_S:  # type: ignore[operator]
        raise UsageError(
            f"A freeze may last more than 0 and up to {LONGEST_FREEZE_S:.0f} seconds, "
            f"not {quoted(seconds)}."
        )


def _check_bandwidth(mbit: object) -> None:
    whole = isinstance(mbit, int) and not isinstance(mbit, bool)
    if mbit is not None and not (whole and 1 <= mbit <= MAX_BANDWIDTH_MBIT):  # type: ignore[operator]
        raise UsageError(
            "A bandwidth is a whole number of megabits per second, from 1 to "
            f"{MAX_BANDWIDTH_MBIT}, not {quoted(mbit)}."
        )


def check_host_name(name: object, what: str) -> None:
    """Raise UsageError if this cannot be a host's name; ``what`` names the option that has it."""
    if not isinstance(name, str) or not HOST_NAME.fullmatch(name):
        raise UsageError(
            f"{quoted(name)} is not a name of a host ({what}): small letters, digits and hyphens."
        )


@dataclass(frozen=True)
class Failure:
    """Why a migration did not arrive: a stable code, a sentence, a hint, and where it failed."""

    code: str
    message: str
    hint: str = ""
    step: str = ""
    host: str = ""
    log: str = ""


@dataclass(frozen=True)
class StepRecord:
    """One line of a migration's timeline, in seconds since the epoch by the clock of ``host``."""

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
