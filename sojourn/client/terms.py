"""The types of what callers write and read; docs/reference/json.md explains the fields."""

from __future__ import annotations

from typing import Any, Literal, Protocol, Required, TypedDict, TypeVar

from sojourn.model import Untyped

Mode = Literal["stop-and-copy", "post-copy"]


class Options(TypedDict, total=False):
    """How processes migrate; what is left out is as the hosts' settings have it."""

    mode: Mode
    tcp_established: bool
    shell_job: bool
    file_locks: bool
    stop_unit: bool
    max_freeze_s: float
    bandwidth_mbit: int | None


class One(Options, total=False):
    """One process: which, from where, to where, and how."""

    pid: Required[int]
    source: Required[str]
    destination: Required[str]


class Partial(Options, total=False):
    """The same where the task before may contribute the rest."""

    pid: int
    source: str
    destination: str


class OfADrain(Options, total=False):
    """How a host is emptied: ``skip`` are selectors of what stays, such as ``{"unit": "nginx"}``.

    After ``timeout_s`` seconds nothing more begins; what no host can take waits for ``wait_s``.
    """

    skip: list[dict[str, Any]] | None
    timeout_s: float | None
    wait_s: float | None


class Line(Options, total=False):
    """One line of a plan: which processes of a host, to where, and how."""

    pid: int
    command: str
    user: str
    cgroup: str
    unit: str
    all: bool
    source: Required[str]
    destination: str
    priority: int


class Failure(TypedDict):
    """Why a migration did not arrive; empty texts where there is nothing to say."""

    code: str
    message: str
    hint: str
    step: str
    host: str
    log: str


class Step(TypedDict):
    """One step of a migration; ``started`` in seconds since the epoch by the clock of its host."""

    name: str
    host: str
    started: float
    elapsed_ms: float | None
    outcome: str
    failed: bool


class Migration(TypedDict):
    """A migration that has ended: what ``migrate.delay(…).get()`` returns. Times are in ms."""

    id: str
    state: str
    pid: int
    source: str
    destination: str
    mode: str
    command: str | None
    owner: str | None
    frozen_ms: float | None
    downtime_ms: float | None
    freeze: dict[str, float] | None
    settled_ms: float | None
    total_ms: float | None
    pages_bytes: int | None
    images_bytes: int | None
    faults: int | None
    wait_median_ms: float | None
    wait_p99_ms: float | None
    wait_longest_ms: float | None
    rounds: int
    steps: list[Step]
    failure: Failure | None
    pending: list[str]
    ended: dict[str, Any] | None
    resolved: dict[str, Any] | None


class End(TypedDict):
    """What became of one line of a batch."""

    line: int
    id: str
    state: str
    pid: int
    source: str
    destination: str
    command: str
    owner: str | None
    failure: Failure | None
    tries: int
    avoided: list[str]


class Batch(TypedDict):
    """A batch that has ended: what ``migrate_many`` and ``drain`` come to."""

    id: str
    kind: str
    asked: dict[str, Any]
    by: str
    created: float
    state: str
    total: int
    stays: list[dict[str, Any]]
    failure: Failure | None
    until: float | None
    waits: float | None
    timed_out: bool
    counts: dict[str, int]
    migrations: list[End]


Outcome_co = TypeVar("Outcome_co", covariant=True)


class Pending(Protocol[Outcome_co]):
    """What a call returns: Celery's AsyncResult, of which these are the parts that callers use."""

    @property
    def id(self) -> str:
        """The id of the task, and of the migration or batch."""

    @property
    def state(self) -> str:
        """``QUEUED``, ``RUNNING``, ``FREEZING``, ``FROZEN``, … and at the end Celery's own."""

    @property
    def info(self) -> Untyped:
        """While it is under way its progress, then its result or error."""

    def get(self, timeout: float | None = None, propagate: bool = True) -> Outcome_co:
        """Wait for the end. Raises MigrationError where a process did not arrive."""

    def ready(self) -> bool:
        """Whether it has ended."""

    def successful(self) -> bool:
        """Whether it has ended as it was asked for."""

    def failed(self) -> bool:
        """Whether it has ended otherwise."""

    def revoke(
        self, *, terminate: bool = False, wait: bool = False, timeout: float | None = None
    ) -> None:
        """Withdraw it before it began, abort it afterwards."""
