"""Findings of the checks, one per code and offending thing, and the list of all codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from sojourn.model import Json, Role


class Verdict(StrEnum):
    """What a finding means for a migration."""

    OK = "ok"
    NOTE = "note"
    NEEDS_OPTION = "needs option"
    BLOCKS = "blocks"


@dataclass(frozen=True)
class Finding:
    """One result of one check: a stable code, a sentence that names the thing, and what to do."""

    code: str
    verdict: Verdict
    sentence: str
    hint: str = ""
    host: str = ""

    @property
    def stops(self) -> bool:
        """Whether this finding makes preflight refuse the migration as requested."""
        return self.verdict in {Verdict.NEEDS_OPTION, Verdict.BLOCKS}

    def to_json(self) -> Json:
        """Return the finding as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Finding:
        """Read back what ``to_json`` wrote."""
        return cls(**{**data, "verdict": Verdict(data["verdict"])})


@dataclass(frozen=True)
class Check:
    """What a code means: the host that checks, the condition, and the sentence if it is met.

    ``passes``: a refusal may end by itself, since it is about what others on that host use now.
    """

    on: Role
    asks: str
    passed: str
    passes: bool = False


SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION

#: Every code, in the order in which findings are shown.
CHECKS = {
    "PROCESS_GONE": Check(SOURCE, "The process exists.", "the process exists"),
    "KERNEL_THREAD": Check(SOURCE, "It is a program, not a kernel thread.", "it is a program"),
    "THREAD": Check(
        SOURCE, "The PID is that of a process, not of one of its threads.", "it is not a thread"
    ),
    "OWN_TREE": Check(
        SOURCE,
        "It is neither Sojourn's worker nor one of its ancestors.",
        "it is not Sojourn's own",
    ),
    "MAY_NOT_LEAVE": Check(
        SOURCE,
        "The settings of the source permit its users, units and the mode.",
        "the source lets it leave",
    ),
    "ZOMBIE": Check(SOURCE, "It has not ended.", "it has not ended"),
    "MIGRATING": Check(
        SOURCE, "No other migration holds a process of the tree.", "no other migration holds it"
    ),
    "TRACED": Check(
        SOURCE, "No thread of the tree is traced: CRIU must be the only tracer.", "it is not traced"
    ),
    "PRIVILEGES": Check(
        SOURCE, "CRIU may read the limits of every process.", "CRIU may read all of it"
    ),
    "SUPERVISED": Check(
        SOURCE,
        "Nobody starts the process again when it has moved: no supervisor, no master of it.",
        "nobody starts it again",
    ),
    "UNINTERRUPTIBLE": Check(
        SOURCE,
        "No thread of the tree is in uninterruptible sleep.",
        "every thread can be stopped",
    ),
    "SHELL_JOB": Check(
        SOURCE,
        "The process leads its session, and uses no terminal that is not migrated with it.",
        "it leads its session, and uses no outside terminal",
    ),
    "TREE_TORN": Check(
        SOURCE,
        "Every process comes back to its parent: it was born into its session, or leads one.",
        "every process comes back to its parent",
    ),
    "GHOST_TOO_LARGE": Check(
        SOURCE,
        "Deleted files that are open or mapped are in memory, or small enough to be migrated.",
        "no deleted file is too large",
    ),
    "FILE_DELETED": Check(
        SOURCE,
        "Every open and mapped file can be found by its path.",
        "every file can be found by its path",
    ),
    "FILE_LOCKS": Check(SOURCE, "No file is locked, or locks are migrated.", "no file is locked"),
    "TCP_ESTABLISHED": Check(
        SOURCE,
        "No TCP connection is established, or connections are migrated.",
        "no TCP connection is established",
    ),
    "TCP_IN_FLIGHT": Check(
        SOURCE,
        "No connection is waiting for the program to accept it.",
        "no connection is waiting to be accepted",
    ),
    "HELD_OUTSIDE": Check(
        SOURCE,
        "No process outside of the tree shares a pipe, memory, a connection or the like with it.",
        "it shares nothing with other processes",
    ),
    "UNIX_PEER_OUTSIDE": Check(
        SOURCE,
        "Unix sockets are connected only to processes of the tree.",
        "no Unix socket is connected outside the tree",
    ),
    "SOCKET_UNSUPPORTED": Check(
        SOURCE, "All sockets are of a type that CRIU supports.", "CRIU supports all sockets"
    ),
    "IO_URING": Check(SOURCE, "No process uses io_uring.", "io_uring is not used"),
    "INOTIFY": Check(
        SOURCE,
        "Files under inotify or fanotify can be found again.",
        "watched files can be found again",
    ),
    "PIDFD_OUTSIDE": Check(
        SOURCE, "Every pidfd refers to a process of the tree.", "no pidfd refers outside the tree"
    ),
    "FILE_UNSUPPORTED": Check(
        SOURCE,
        "All other descriptors are of a type that CRIU supports: no perf events, no BPF.",
        "CRIU supports all descriptors",
    ),
    "DEVICE": Check(
        SOURCE,
        "No device is open or mapped, except memory devices such as /dev/null.",
        "no device is used",
    ),
    "HUGETLB": Check(SOURCE, "No memory is in huge pages of hugetlbfs.", "hugetlbfs is not used"),
    "SYSV_SHM": Check(
        SOURCE,
        "System V shared memory is in an IPC namespace of the tree's own.",
        "no System V shared memory of the host",
    ),
    "SYSV_IPC": Check(
        SOURCE,
        "System V semaphores and queues that it uses are in an IPC namespace of the tree's own.",
        "no System V semaphores or queues of the host",
    ),
    "NAMESPACE": Check(
        SOURCE,
        "Mounts and namespaces of the tree's own can be restored.",
        "its namespaces can be restored",
    ),
    "LANDLOCK": Check(
        SOURCE, "No thread of the tree is confined by Landlock.", "Landlock confines no thread"
    ),
    "RESTRAINT": Check(
        SOURCE,
        "No process restrains itself by a setting that CRIU does not restore.",
        "all its restraints can be restored",
    ),
    "MEMORY_PROTECTION": Check(
        SOURCE,
        "No memory is sealed, secret, or under a protection key.",
        "all protection of its memory can be restored",
    ),
    "SHARED_CODE": Check(
        SOURCE,
        "CRIU can write to the first executable memory of each process.",
        "CRIU can put its code into every process",
    ),
    "THREAD_APART": Check(
        SOURCE,
        "Threads share namespaces, descriptors, directories and umask with their process.",
        "threads share all that CRIU makes them share",
    ),
    "CONTROL_GROUP": Check(
        SOURCE,
        "No BPF program of its control group denies something to the tree.",
        "its control group denies nothing to it",
    ),
    "BANDWIDTH": Check(
        SOURCE,
        "At the requested bandwidth, the memory can cross within the longest freeze.",
        "its memory can cross in time",
    ),
    "OPEN_FILES": Check(
        SOURCE,
        "In post-copy, CRIU may open as many files as it needs to hold the memory in pipes.",
        "CRIU may open enough files",
    ),
    "MAY_NOT_COME": Check(
        DESTINATION,
        "The settings of the destination permit the source and the mode.",
        "the destination lets it come",
    ),
    "PID_TAKEN": Check(
        DESTINATION,
        "Every PID, TID, PGID and SID of the tree is free.",
        "every PID is free",
        passes=True,
    ),
    "PID_RANGE": Check(
        DESTINATION,
        "Every PID of the tree is below kernel.pid_max.",
        "PIDs are below kernel.pid_max",
    ),
    "FILE_MISSING": Check(
        DESTINATION, "Every file, directory and program of the tree exists.", "every file exists"
    ),
    "FILE_DIFFERS": Check(
        DESTINATION,
        "Files have the same type, mode, owner, size, build ID; what the tree writes is the same.",
        "every file is the same",
    ),
    "MEMORY_FILE": Check(
        DESTINATION,
        "Files in memory that the tree alone uses have a free path here, and room.",
        "no file in memory is in the way",
        passes=True,
    ),
    "WANTED_LATER": Check(
        DESTINATION,
        "What the command lines name, and PID files of the tree, are there to be opened later.",
        "what it may open later is there",
    ),
    "PORT_TAKEN": Check(
        DESTINATION,
        "Every port that the tree uses is free.",
        "every port is free",
        passes=True,
    ),
    "SOCKET_TAKEN": Check(
        DESTINATION,
        "Every name of a Unix socket that the tree uses is free, or is its own on shared storage.",
        "every socket name is free",
        passes=True,
    ),
    "LEASE": Check(
        DESTINATION,
        "No file is under a lease that the migration would break.",
        "no lease would be broken",
        passes=True,
    ),
    "FIFO_IN_USE": Check(
        DESTINATION,
        "No process has a FIFO open that the tree uses, and no data in it would be doubled.",
        "no FIFO is in use",
        passes=True,
    ),
    "ADDRESS_MISSING": Check(
        DESTINATION,
        "Every address to which a socket of the tree is bound exists.",
        "every address exists",
    ),
    "MACHINE": Check(
        DESTINATION, "Both hosts have the same kind of processor.", "the same kind of processor"
    ),
    "CPU_FLAGS": Check(
        DESTINATION,
        "The processor has every instruction set that the source's processor has.",
        "no processor feature is missing",
    ),
    "CRIU_VERSION": Check(
        DESTINATION,
        "Both hosts run the same major and minor version of CRIU, new enough for their kernels.",
        "CRIU is compatible",
    ),
    "CRIU_FEATURE": Check(
        DESTINATION,
        "Kernel and CRIU have the features that the mode needs.",
        "CRIU has the features that the mode needs",
    ),
    "NO_ROOM": Check(
        DESTINATION,
        "Enough memory is free for the tree and its images.",
        "enough memory is free",
        passes=True,
    ),
    "LAZY_RESTORE": Check(
        DESTINATION,
        "The process can run before all of its memory is in place.",
        "it need not wait for all of its memory",
    ),
    "PIDS_EXHAUSTED": Check(
        DESTINATION,
        "The host and the worker's cgroup have enough PIDs left.",
        "enough PIDs are left",
        passes=True,
    ),
    "LIMIT": Check(
        DESTINATION,
        "The tree's limits of open files and its pipe sizes are permitted.",
        "limits are high enough",
    ),
    "CAPABILITY": Check(
        DESTINATION,
        "The kernel has every capability that a process of the tree was given individually.",
        "the kernel has all capabilities",
    ),
}


def ok(code: str, sentence: str) -> Finding:
    """Return a finding that permits the migration, with what was found."""
    return Finding(code, Verdict.OK, sentence)


def note(code: str, sentence: str, hint: str) -> Finding:
    """Return a finding that permits the migration, but that people should read."""
    return Finding(code, Verdict.NOTE, sentence, hint)


def blocks(code: str, sentence: str, hint: str = "") -> Finding:
    """Return a finding that stops the migration, whatever its options."""
    return Finding(code, Verdict.BLOCKS, sentence, hint)


def needs_option(code: str, sentence: str, option: str, *, given: bool) -> Finding:
    """Return a finding that stops the migration unless the option is given."""
    if given:
        return ok(code, f"{sentence} {option} takes care of it.")
    return Finding(code, Verdict.NEEDS_OPTION, sentence, f"Migrate with {option}.")


def complete(findings: Iterable[Finding], role: Role, host: str) -> list[Finding]:
    """Return a host's findings in the order of ``CHECKS``, and one for each check that passed."""
    found = [replace(finding, host=host) for finding in findings]
    codes = {finding.code for finding in found}
    passed = [
        Finding(code, Verdict.OK, check.passed, "", host)
        for code, check in CHECKS.items()
        if check.on is role and code not in codes
    ]
    order = list(CHECKS)
    return sorted([*found, *passed], key=lambda finding: order.index(finding.code))


def named(things: Iterable[object], limit: int = 3) -> str:
    """Return, for a sentence, the first things of a list and how many more there are."""
    names = [str(thing) for thing in things]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
