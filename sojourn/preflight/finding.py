"""What a check says: one finding per code and offending thing, and the list of all codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from sojourn.model import Json, Role


class Verdict(StrEnum):
    """What a finding means for a migration."""

    OK = "ok"
    NEEDS_OPTION = "needs option"
    BLOCKS = "blocks"


@dataclass(frozen=True)
class Finding:
    """One answer of one check: a stable code, a sentence that names the thing, and what to do about it."""

    code: str
    verdict: Verdict
    sentence: str
    hint: str = ""
    host: str = ""

    @property
    def stops(self) -> bool:
        """Whether a migration asked for like this is refused because of it."""
        return self.verdict is not Verdict.OK

    def to_json(self) -> Json:
        """Return the finding as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Finding:
        """Read back what ``to_json`` wrote."""
        return cls(**{**data, "verdict": Verdict(data["verdict"])})


@dataclass(frozen=True)
class Check:
    """What stands behind a code: which host knows, what is looked at, and the sentence if nothing was found."""

    on: Role
    asks: str
    passed: str


SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION

#: Every code, in the order in which people read them.
CHECKS = {
    "PROCESS_GONE": Check(SOURCE, "The process exists.", "the process exists"),
    "KERNEL_THREAD": Check(SOURCE, "It is a program, not a thread of the kernel.", "it is a program"),
    "THREAD": Check(SOURCE, "The PID is that of a process, not of one of its threads.", "the PID is a process's"),
    "OWN_TREE": Check(SOURCE, "It is neither Sojourn's worker nor one of its ancestors.", "it is none of ours"),
    "ZOMBIE": Check(SOURCE, "It has not ended already.", "it has not ended"),
    "MIGRATING": Check(SOURCE, "No other migration holds a process of the tree.", "no other migration holds it"),
    "TRACED": Check(SOURCE, "No thread of the tree is traced: CRIU must be the only tracer.", "nobody traces it"),
    "UNINTERRUPTIBLE": Check(
        SOURCE, "No thread of the tree sleeps where no signal reaches it.", "every thread can be stopped"
    ),
    "SHELL_JOB": Check(
        SOURCE,
        "The process leads its session, and no terminal is used that does not move along.",
        "it leads its session, and uses no terminal of others",
    ),
    "GHOST_TOO_LARGE": Check(
        SOURCE, "Deleted files that are open or mapped are small enough to move along.", "deleted files fit"
    ),
    "FILE_DELETED": Check(SOURCE, "Every open and mapped file can be found by its path.", "every file has its path"),
    "FILE_LOCKS": Check(SOURCE, "No file is locked, or locks move along.", "no locks in the way"),
    "TCP_ESTABLISHED": Check(
        SOURCE, "No TCP connection is established, or connections move along.", "no connections in the way"
    ),
    "TCP_IN_FLIGHT": Check(
        SOURCE, "No connection waits for the program to accept it.", "no connection waits to be accepted"
    ),
    "UNIX_PEER_OUTSIDE": Check(
        SOURCE, "Unix sockets are connected to processes of the tree only.", "unix sockets stay in the tree"
    ),
    "SOCKET_UNSUPPORTED": Check(SOURCE, "All sockets are of a family that CRIU knows.", "CRIU knows all sockets"),
    "IO_URING": Check(SOURCE, "No process uses io_uring.", "no io_uring"),
    "INOTIFY": Check(SOURCE, "Files under inotify or fanotify can be found again.", "watched files can be found again"),
    "PIDFD_OUTSIDE": Check(
        SOURCE, "PID file descriptors are of processes of the tree.", "no PID descriptors of others"
    ),
    "FILE_UNSUPPORTED": Check(
        SOURCE,
        "All other descriptors are of a type that CRIU knows: no perf events, no BPF.",
        "CRIU knows all descriptors",
    ),
    "DEVICE": Check(SOURCE, "No device is open or mapped but memory devices such as /dev/null.", "no devices"),
    "HUGETLB": Check(SOURCE, "No memory lies in huge pages of hugetlb.", "no hugetlb"),
    "SYSV_SHM": Check(
        SOURCE, "System V shared memory lies in an IPC namespace of the tree's own.", "no System V shared memory"
    ),
    "NAMESPACE": Check(
        SOURCE, "Mounts and namespaces of the tree's own can be rebuilt.", "its namespaces can be rebuilt"
    ),
    "PID_TAKEN": Check(DESTINATION, "Every PID, TID, PGID and SID of the tree is free.", "every PID is free"),
    "PID_RANGE": Check(DESTINATION, "Every PID of the tree is within kernel.pid_max.", "PIDs are within pid_max"),
    "FILE_MISSING": Check(DESTINATION, "Every file, directory and program of the tree exists.", "every file is there"),
    "FILE_DIFFERS": Check(
        DESTINATION, "Files have the same type, mode, size and build-id, as CRIU compares them.", "every file is equal"
    ),
    "PORT_TAKEN": Check(DESTINATION, "Ports of the tree are free.", "every port is free"),
    "SOCKET_TAKEN": Check(
        DESTINATION, "Names of the tree's unix sockets without a file are free.", "socket names are free"
    ),
    "ADDRESS_MISSING": Check(
        DESTINATION, "Addresses to which the tree's sockets are bound exist.", "every address exists"
    ),
    "MACHINE": Check(DESTINATION, "Both hosts have the same kind of processor.", "the same kind of processor"),
    "CPU_FLAGS": Check(
        DESTINATION, "The processor has every instruction set that the source's has.", "no processor feature is missing"
    ),
    "CRIU_VERSION": Check(
        DESTINATION,
        "Both hosts run the same major and minor version of CRIU, new enough for their kernels.",
        "CRIU is the same",
    ),
    "CRIU_FEATURE": Check(DESTINATION, "Kernel and CRIU have what the mode needs.", "CRIU has what the mode needs"),
    "NO_ROOM": Check(DESTINATION, "Memory is free for the tree and its images.", "memory is free"),
    "PIDS_EXHAUSTED": Check(DESTINATION, "The host and the worker's cgroup have PIDs left.", "PIDs are left"),
    "LIMIT": Check(DESTINATION, "Limits of open files and sizes of pipes can be had again.", "limits are wide enough"),
    "CAPABILITY": Check(
        DESTINATION, "The kernel knows every capability that was given singly.", "the kernel knows all capabilities"
    ),
}


def ok(code: str, sentence: str) -> Finding:
    """Return a finding that says what was found to be well."""
    return Finding(code, Verdict.OK, sentence)


def blocks(code: str, sentence: str, hint: str = "") -> Finding:
    """Return a finding for which there is no option."""
    return Finding(code, Verdict.BLOCKS, sentence, hint)


def needs_option(code: str, sentence: str, option: str, *, given: bool) -> Finding:
    """Return a finding for which there is an option: nothing speaks against it once the option is given."""
    if given:
        return ok(code, f"{sentence} {option} moves it along.")
    return Finding(code, Verdict.NEEDS_OPTION, sentence, f"Migrate with {option}.")


def complete(findings: Iterable[Finding], role: Role, host: str) -> list[Finding]:
    """Return the findings of a host in the order of the codes, with a sentence for each check that found nothing."""
    found = [Finding(each.code, each.verdict, each.sentence, each.hint, host) for each in findings]
    told = {each.code for each in found}
    quiet = [
        Finding(code, Verdict.OK, check.passed, "", host)
        for code, check in CHECKS.items()
        if check.on is role and code not in told
    ]
    order = list(CHECKS)
    return sorted([*found, *quiet], key=lambda each: order.index(each.code))


def named(things: Iterable[object], limit: int = 3) -> str:
    """Return the first things of a list and how many more there are: for sentences."""
    words = [str(thing) for thing in things]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
