"""What the hosts of a migration find out, as it stands in journals and crosses the broker.

One class per step or act that finds it out; ``Facts`` is all of them. Each key may be missing: its
step has not run, or ran on the other host and its message has not come. All values are plain JSON:
what goes out as a member of a StrEnum comes back as a string, which compares equal.

Times are seconds since the epoch by the clock of the host that took them, unless a key says so.
"""

from __future__ import annotations

from typing import TypedDict, cast

from sojourn.model import Json, Phase, Role, Untyped, Verdict


class ExamineFacts(TypedDict, total=False):
    """The tree as the source finds it, and what it needs of the destination."""

    #: The root's ``Identity``, to know later whether it is the same process that lives.
    root: Json
    #: The beginning of the root's command line, for people.
    command: str
    tree_bytes: int
    processes: int
    #: How much memory its files on a tmpfs take, and how much of that is deleted.
    memory_bytes: int
    ghost_bytes: int
    #: What crosses in the freeze in post-copy too.
    never_lazy_bytes: int
    #: ``Needs``, packed; None once the destination has read it, so that it does not travel on.
    needs: str | None
    #: Findings of the source that refuse; None once the destination has read them.
    findings: list[Json] | None


class PreflightFacts(TypedDict, total=False):
    """What the destination must keep free until the restore."""

    needed_pids: list[int]
    #: Paths of files that the tree writes, and of which the destination has its own.
    compared: list[str]
    #: Names of Unix sockets of the tree, and the inodes of their files.
    names_seen: dict[str, int]
    #: Those of them whose files are the same on both hosts.
    shared_names: list[str]
    #: Paths of FIFOs of the tree that are one pipe on both hosts, which have one kernel.
    shared_fifos: list[str]
    #: Who holds the leases that the checks have seen: PID in its namespace, and descriptor.
    leases: list[tuple[int, int]]
    #: Paths on a tmpfs that the destination has too; None once the source has packed the others.
    kept: list[str] | None
    #: Whether the tree runs before its memory is in place.
    lazy: bool


class PageServerFacts(TypedDict, total=False):
    """Where the destination waits for the memory, and how its page server ended."""

    page_address: str
    page_port: int
    page_server_exit: int
    page_server_error: str
    page_server_code: str
    page_server_hint: str
    #: The pager that was started.
    pager: Json
    #: Where the source hands out the memory of the frozen original, in post-copy.
    memory_address: str
    memory_port: int
    #: The port where it does so since that one was taken by another program. A key of its own: the
    #: messages of the migration carry the first one, and may come later.
    moved_port: int


class DumpFacts(TypedDict, total=False):
    """The dump: its command line, how it ended, and what CRIU measured."""

    dump_command: str
    dump_exit: int
    dump_ended: float
    #: When the root was seen to stand still for the first time.
    seen_stopped: float | None
    pages_bytes: int
    #: When CRIU began to seize the tree, and when all of it stood still.
    freeze_started: float
    frozen_at: float
    pids: list[int]
    #: The content of the files of ``compared``, by their paths: SHA-256, in hexadecimal digits.
    digests: dict[str, str]
    #: Every ``Name`` that the frozen tree has, as JSON.
    names: list[Untyped]
    #: Files in memory that move with the tree: path, device, inode, and the boot of all that.
    moved: list[Json]


class CopyImagesFacts(TypedDict, total=False):
    """The small images: sizes by name, and when the destination confirmed them, as both saw it."""

    manifest: dict[str, int]
    images_bytes: int
    images_sent: float
    images_at: float | None
    #: How much longer the freeze may last, in seconds, when the images had left.
    freeze_left_s: float


class RestoreFacts(TypedDict, total=False):
    """The restore: what was there before it, and when it began and ended."""

    #: PIDs that belonged to processes of this host when the restore began: never the tree's.
    occupied: list[int]
    #: Clock ticks since the boot ``restore_boot`` (proc(5)).
    restore_began: int
    restore_ended: int
    restore_boot: str
    resumed_at: float
    #: The signal that the root had asked for at its parent's end, and that was turned off.
    parent_death_signal: int
    #: When the last page was in place, in seconds since the epoch; for how many a thread waited.
    settled_at: float
    faults: int
    #: For how long threads waited for pages of the original, in milliseconds.
    wait_median_ms: float
    wait_p99_ms: float
    wait_longest_ms: float
    #: Whether the process runs on the destination and needs its original still, in post-copy.
    unsettled: bool
    #: The original ended, or its host, while it was needed, as the source found.
    original_gone: bool
    #: What was missing can be had nowhere: how many bytes that were.
    memory_lost: int
    #: Whether that was for want of the original, as the destination found.
    lost_with_original: bool
    #: When the process was ended for that: until then its pager and its original are kept.
    lost_at: float
    #: CRIU died while it let the tree go, and an operator accepted what there is of it.
    partial: bool


class EndFacts(TypedDict, total=False):
    """What the two hosts came to."""

    verdict: Verdict
    source_phase: Phase
    #: The process ended on the source during the migration.
    gone: bool
    #: When what was left of the original was woken, by the clock of the source.
    woken_at: float
    #: The destination, where the process had arrived and ended with its host.
    died_on: str
    #: The process arrived and ended at once: how long after it ran again, and by which signal or
    #: exit code; empty if the kernel does not tell.
    ended_after_ms: float
    ended_by: str
    #: What ran on the destination was ended, since an operator gave the process to the source.
    fenced: bool
    #: One sentence per act that could not be done yet.
    pending: list[str]
    #: When this host first asked for the settling of a stalled migration.
    settling: float


class Abort(TypedDict, total=False):
    """An operator's request to give the migration up: who asked."""

    aborted_by: str


class Resolution(TypedDict, total=False):
    """An operator's word: which host is dead for good, who decided it, and when."""

    resolved: Role
    resolved_by: str
    resolved_at: float
    #: The state of the migration that the operator was shown.
    resolved_seen: str
    #: Whether it counts although the host that is declared dead announces itself.
    resolved_by_force: bool


class Answers(TypedDict, total=False):
    """What each host answers, under its own seal, and what this host notes of the other's.

    The last three are a host's own: it takes them from no message.
    """

    source_answer: str
    destination_answer: str
    #: When the last answer of the other host was sealed, by its clock, and when it came, by ours.
    answered_at: float
    heard_at: float
    #: When the operator's decision was made that this host has refused; none up to it counts.
    resolution_refused: float


class Facts(
    ExamineFacts,
    PreflightFacts,
    PageServerFacts,
    DumpFacts,
    CopyImagesFacts,
    RestoreFacts,
    EndFacts,
    Abort,
    Resolution,
    Answers,
    total=False,
):
    """All that is known of a migration beyond its plan and its phases."""


def resolution_of(facts: Facts) -> Resolution:
    """Return the operator's decision that is among the facts; empty if there is none."""
    known = {name: fact for name, fact in facts.items() if name in Resolution.__annotations__}
    return cast("Resolution", known)


def memory_port_of(facts: Facts) -> int:
    """Return the port where the source hands out memory, as far as a host knows it."""
    return facts.get("moved_port", facts["memory_port"])
