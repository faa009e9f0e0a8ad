"""The course of one run of CRIU: what it did when, by the time stamps of its own log.

CRIU writes a line of its log as ``(seconds) [pie: ][task: ]text``; the seconds count from when it
opened the log (``print_ts`` in criu/log.c). Some lines mark the begin of a part of its work. Which
ones was read in CRIU 4.2; a line that another version does not write makes one part less, and never
an error.

A process can give itself, and its files, names that look like such lines, and CRIU logs them. So
nothing but a picture may depend on what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

#: A line of a log: the time stamp, the task that wrote it where it was not CRIU itself, the text.
LINE = re.compile(r"\((\d+\.\d+)\)\s(?:pie: *)?(?: *(\d+): )?(.*)")

#: What a part belongs to: to the run, to the part of the run in which processes are dumped or
#: rebuilt, or to one of those processes.
RUN, PROCESS, PIECE = 0, 1, 2

NUMBER = re.compile(r"\d+")

#: Where a part stands in the tree of parts: the numbers of those in which it lies, and its own.
Place = tuple[int, ...]

#: How much of a log is read, and how many of its parts travel through the broker.
LONGEST_BYTES = 64 * 2**20
MOST_PARTS = 2000

#: How much of the end of a log holds at least one time stamp.
END_BYTES = 64 * 1024


@dataclass(frozen=True)
class Part:
    """A part of a run, in seconds since its log was opened.

    A part of a ``depth`` other than ``RUN`` lies in the last one before it of a lower depth. With
    ``ours`` CRIU waited for Sojourn's answer.
    """

    depth: int
    name: str
    begin_s: float
    end_s: float
    ours: bool = False


@dataclass(frozen=True)
class Mark:
    """A line by which a part begins.

    A ``PROCESS`` begins the part ``within`` of the run too, unless that is under way; ``{}`` in its
    name is the first number of the line. A part that is ``ours`` ends with the next line after
    that by which CRIU asks, and the part ``then`` begins.
    """

    pattern: str
    depth: int
    name: str
    within: str = ""
    ours: bool = False
    then: str = ""


@dataclass(frozen=True)
class Course:
    """What the log of one run shows; ``opened`` is when it was opened, in seconds since the epoch.

    ``let_go_s`` is when a dump that failed let the tree run on, None if the log does not say so.
    """

    verb: str
    opened: float
    parts: tuple[Part, ...]
    let_go_s: float | None = None


#: The part of a dump with which the freeze begins.
STOP = "stop every thread"

#: A dump takes one process after another.
DUMP = (
    Mark(r"Detected cgroup V\d freezer", RUN, STOP),
    Mark(r"Lock network", RUN, "find locks and namespaces"),
    Mark(r"Dumping task \(pid: \d+", PROCESS, "process {}", within="dump the processes"),
    Mark(r"Collecting mappings", PIECE, "mappings and descriptors"),
    Mark(r"(?:Set up|Putting) parasite blob", PIECE, "put the parasite in"),
    Mark(r"Dumping opened files", PIECE, "files and connections"),
    Mark(r"Dumping pages \(type", PIECE, "send memory"),
    Mark(r"Dumping core \(pid", PIECE, "registers and signals"),
    Mark(r"Waiting for \d+ to trap", PIECE, "take the parasite out"),
    Mark(r"Dumping mm \(pid", PIECE, "write down mappings"),
    Mark(r"Dumping pstree", RUN, "what the processes share"),
    Mark(r"Disconnect from the page server", RUN, "wait for the page server"),
    Mark(r"Unfreezing tasks into 1", RUN, "let the tree run on"),
    Mark(r"Unfreezing tasks into", RUN, "leave threads stopped"),
    Mark(r"Writing stats", RUN, "end"),
)

#: A restore rebuilds all processes side by side.
RESTORE = (
    Mark(r"CRIU run id", RUN, "read the images"),
    Mark(r"Running pre-restore scripts", RUN, "prepare"),
    Mark(r"Forking task with \d+ pid", PROCESS, "process {}", within="rebuild the processes"),
    Mark(r"Restoring resources", PIECE, "files and connections"),
    Mark(r"Restore via sigreturn", PIECE, "put the restorer in"),
    Mark(r"Switched to the restorer", PIECE, "move mappings, read memory"),
    Mark(r"^\d+: Restored$", PIECE, "wait for the others"),
    Mark(r"Running post-restore scripts", RUN, "the commit", ours=True, then="tidy"),
    Mark(r"Unlock network", RUN, "unlock network, catch threads"),
    Mark(r"Run late stage hook", RUN, "get ready to let go"),
    Mark(r"Running pre-resume scripts", RUN, "let the tree go"),
    Mark(r"Restore finished successfully", RUN, "write the statistics"),
    Mark(r"Running post-resume scripts", RUN, "write down that it runs", ours=True),
)

#: A page server does one thing, from the first process's memory on.
PAGE_SERVER = (Mark(r"Opening \d+/\d+", RUN, "receive memory"),)

MARKS = {"dump": DUMP, "page-server": PAGE_SERVER, "restore": RESTORE}

#: What CRIU logs while it waits for the answer (``rpc_send_fd``).
ASKED = "\tRPC"

#: What a dump logs when it lets the tree run on: 1 is ``TASK_ALIVE`` (criu/include/pid.h).
LET_GO = "Unfreezing tasks into 1"


def of(work: Path, verb: str) -> Course | None:
    """Read the course of a run from its log in a work directory; None without a log.

    Old logs are removed at any time; one that goes while it is read is none.
    """
    try:
        return _of(work / f"{verb}.log", verb)
    except OSError:
        return None


def _of(log: Path, verb: str) -> Course | None:
    ended_s = _last_stamp(log)
    if ended_s is None:
        return None
    with log.open(errors="replace") as file:
        course = read(verb, _beginning(file))
    # The file changed last when the last line was written; the kernel notes that by the tick of its
    # clock, which is up to 10 ms behind (CONFIG_HZ).
    opened = log.stat().st_mtime - ended_s
    return replace(course, opened=opened, parts=_most(course.parts))


def read(verb: str, lines: Iterable[str]) -> Course:
    """Return the course of a run by the lines of its log, as if that had been opened at zero."""
    reader = _Reader(MARKS[verb], side_by_side=verb == "restore")
    for line in lines:
        reader.take(line)
    return Course(verb, 0.0, reader.parts(), reader.let_go_s)


class _Reader:
    """What was read of a log so far."""

    def __init__(self, marks: tuple[Mark, ...], *, side_by_side: bool) -> None:
        self.marks = marks
        self.any_mark = re.compile("|".join(f"({mark.pattern})" for mark in marks))
        self.side_by_side = side_by_side
        self.now = 0.0
        self.let_go_s: float | None = None
        #: The name of the part that follows the answer that CRIU waits for.
        self.then = ""
        #: All parts by their places: of three numbers, one for each depth.
        self.found: dict[Place, Part] = {}
        #: The places of the parts that have not ended, by their depths and processes.
        self.under_way: dict[tuple[int, str], Place] = {}

    def take(self, line: str) -> None:
        """Read one line; one without a time stamp is passed over."""
        stamped = LINE.match(line)
        if not stamped:
            return
        stamp, task, text = stamped.groups()
        # All processes of a restore write its log, so that a stamp can be earlier than the last.
        self.now = max(self.now, float(stamp))
        if LET_GO in text:
            self.let_go_s = self.now
        marked = self.any_mark.search(text)
        if marked and marked.lastindex:
            self._begin_by(self.marks[marked.lastindex - 1], marked[0], task or "")
        elif self.then and not text.startswith(ASKED):
            self._begin(RUN, "", self.then)

    def parts(self) -> tuple[Part, ...]:
        """Return all parts, each in front of those that lie in it."""
        self._end_all(RUN, "")
        return tuple(part for _, part in sorted(self.found.items()))

    def _begin_by(self, mark: Mark, text: str, task: str) -> None:
        number = "".join(NUMBER.findall(text)[:1])
        if mark.depth == RUN:
            self._begin(RUN, "", mark.name, ours=mark.ours)
            self.then = mark.then
        elif mark.depth == PROCESS:
            self._begin(RUN, "", mark.within)
            self._begin(PROCESS, self._lane(number), mark.name.format(number))
        elif (PROCESS, self._lane(task)) in self.under_way:
            self._begin(PIECE, self._lane(task), mark.name)

    def _lane(self, process: str) -> str:
        return process if self.side_by_side else ""

    def _begin(self, depth: int, lane: str, name: str, *, ours: bool = False) -> None:
        under_way = self.under_way.get((depth, lane))
        if under_way and self.found[under_way].name == name:
            return
        self.then = ""
        self._end_all(depth, lane)
        place = (*self._parent(depth, lane), len(self.found))
        self.under_way[depth, lane] = place
        self.found[place] = Part(depth, name, self.now, self.now, ours)

    def _parent(self, depth: int, lane: str) -> Place:
        if depth == RUN:
            return ()
        return self.under_way[(RUN, "") if depth == PROCESS else (PROCESS, lane)]

    def _end_all(self, depth: int, lane: str) -> None:
        """End the part of a depth, and what lies in it; without a lane, those of all processes."""
        ended = [key for key in self.under_way if key[0] >= depth and lane in ("", key[1])]
        for key in ended:
            place = self.under_way.pop(key)
            self.found[place] = replace(self.found[place], end_s=self.now)


def _beginning(file: TextIO) -> Iterator[str]:
    """Yield the lines of a log up to the most that is read of it."""
    left = LONGEST_BYTES
    for line in file:
        left -= len(line)
        if left < 0:
            return
        yield line


def _last_stamp(log: Path) -> float | None:
    """Return the last time stamp of a log in seconds, None if there is none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - END_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((float(found[1]) for line in reversed(lines) if (found := LINE.match(line))), None)


def _most(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return as many parts as may travel: of too many processes not the pieces, then the first."""
    if len(parts) <= MOST_PARTS:
        return parts
    return tuple(part for part in parts if part.depth < PIECE)[:MOST_PARTS]
