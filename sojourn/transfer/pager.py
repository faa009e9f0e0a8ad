"""The pager: puts the memory of a restored tree into place while the tree runs already.

``criu restore --lazy-pages`` leaves out what may come later, and hands over a userfaultfd(2)
descriptor for each process, through the socket ``lazy-pages.socket`` in its work directory:
a PID of 32 bits, then one byte with the descriptor; for a zombie its negative PID; at the end, when
the tree is about to run, a number instead of a PID (criu/uffd.c). The pager takes the place of
CRIU's own daemon, at whose death the kernel hands out zeros, and nobody notices.

It serves first what a thread waits for, and fills the rest in large pieces, upwards. The pages come
from the page store, whose memory is given back as it goes; or, in post-copy, from the frozen
original (``sojourn.transfer.supply``).

It does not work alone: another process shares its descriptors and waits for its end, the **guard**.
Whichever of the two dies, the other one goes on as the pager, with a new guard; what was read so
far is in a file that both map (``sojourn.transfer.pager_record``). Until then the threads that
touch a missing page wait.

* Both die before the commit: the rebuilder finds that out and lets nothing run.
* Both die after it: what is missing cannot be put into place any more; the tree is ended, and the
  process is lost (``sojourn.migration.settling``).
* The worker or Redis dies: neither is needed.
* The connection to the original breaks: threads wait where they touch what is missing, and the
  pager connects again until it can.
* The original is gone: what is missing is nowhere. The pager holds the descriptors, so that nobody
  reads zeros, until the tree is ended.
* CRIU dies: the phase in the journal decides. Before the commit nothing is taken from the page
  store, so that another restore can follow.
* The host dies: the process dies with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import stat
import struct
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from sojourn.criu import mm_image, pagemap, pstree
from sojourn.criu.pagemap import PAGE, Run
from sojourn.errors import ChannelFailed, CriuFailed, JournalFailed
from sojourn.model import Phase, Role
from sojourn.security.tls import TlsIdentity
from sojourn.state.facts import Facts, memory_port_of
from sojourn.state.journal import Journal
from sojourn.system import clone, json_file, userfaultfd
from sojourn.system.run import Child
from sojourn.system.userfaultfd import Event, Message
from sojourn.transfer import channel, pair, program
from sojourn.transfer.address_space import AddressSpace
from sojourn.transfer.filling import Filling
from sojourn.transfer.page_store import PageStore
from sojourn.transfer.pager_record import Ended, Record, Space
from sojourn.transfer.supply import CONNECT_S, Supply

#: The name of the socket that CRIU connects to, in its work directory.
SOCKET = "lazy-pages.socket"

#: What CRIU sends when the tree is about to run: ``LAZY_PAGES_RESTORE_FINISHED``.
FINISHED = 0x52535446

#: A variable in the environment of pagers and guards, by which they are found. It is not that of
#: the processes which end with a step.
VARIABLE = "SOJOURN_PAGER"

#: Files in the work directory. ``READY`` is there once all descriptors are, ``TITLED`` once
#: arguments and environments are in place, and ``FILLED`` once nothing is missing any more. With
#: the memory in the original, ``CONNECTED`` is there once it can be asked for, and ``GONE`` once it
#: is gone. ``PROGRESS`` has, as JSON, how much is missing, and the waits.
RECORD, READY, FILLED = "pager.record", "pager.ready", "pager.filled"
TITLED = "pager.titled"
CONNECTED, GONE, PROGRESS = "pager.connected", "pager.gone", "pager.progress"
FILES = (RECORD, READY, TITLED, FILLED, CONNECTED, GONE, PROGRESS, pair.PAIR)

#: How often to look for what comes first, the source or CRIU, in seconds.
LOOK_S = 0.05

#: How often it is written, and how often to look which processes have ended, in seconds.
PROGRESS_S, ENDED_S = 0.2, 0.05

#: How many bytes are put into place at once: while threads wait for pages, and while none does.
PIECE_AMONG_FAULTS, PIECE = 2**18, 2**21

#: How much of arguments and of the environment is in place before the tree runs.
MOST_OF_A_TITLE = 2**16

#: After how many pieces tests can have a pager wait, to kill it just there.
INSTANTS = {0: "fill.begin", 8: "fill.middle"}

#: How long to wait before the next try, in milliseconds: where a message, or CRIU, must come first;
#: and where only the journal can change something.
SOON_MS, IDLE_MS = 1, 50

#: How long to wait after a failure, in seconds: all is held, and nothing is lost meanwhile.
AGAIN_S = 1


@dataclass(frozen=True)
class Assignment:
    """All that a pager needs; ``deadline_s`` is how long CRIU may take to connect.

    With ``from_original`` the memory comes from the host ``peer``, and ``secret`` and
    ``certificates`` are for the connections to it; where it listens is in the journal.
    """

    migration: str
    journal: str
    images: str
    work: str
    before_commit: bool
    deadline_s: float
    from_original: bool = False
    secret: str = ""
    certificates: str = ""
    peer: str = ""


def start(assignment: Assignment, log: Path) -> Child:
    """Start a pager; it prints a line once it listens. It imports the same code as the caller."""
    mark = (VARIABLE, assignment.migration)
    return program.start("sojourn.transfer.pager", asdict(assignment), log, mark)


class Pager:
    """The memory of one tree on its way into place."""

    def __init__(self, assignment: Assignment, record: Record) -> None:
        """Begin with nothing: ``receive`` or ``resume`` comes next."""
        self._assignment, self._record = assignment, record
        self._images, self._work = Path(assignment.images), Path(assignment.work)
        self._journal = Journal(Path(assignment.journal))
        #: By the numbers that the record gives them; those that have ended are left out.
        self._fillings: dict[int, Filling] = {}
        self._taken = 0
        #: Where arguments and environments are that are missing, and whether none is any more.
        self._titles: list[tuple[Filling, int, int]] = []
        self._titled = False
        self._by_descriptor: dict[int, int] = {}
        self._poll = select.poll()
        self._connection: socket.socket | None = None
        self._supply = Supply(self._dial, self._poll) if assignment.from_original else None
        self._reported = self._looked = 0.0
        self._faults = 0
        self._pieces = 0
        self._filled_at: float | None = None
        #: Whether the tree may run: nobody will restore from the same images once more.
        self._committed = False

    def receive(self, listener: socket.socket) -> None:
        """Receive the descriptors of all processes. Raises OSError if CRIU does not send them."""
        self._connection = self._called(listener)
        self._connection.settimeout(self._assignment.deadline_s)
        for _ in pstree.read(self._images):
            self._receive_one(self._connection)
        self._poll.register(self._connection, select.POLLIN)
        # The tree is not let run before: it would wait for pages that nobody can send.
        while not self._is_connected():
            time.sleep(LOOK_S)
        (self._work / READY).touch()

    def _called(self, listener: socket.socket) -> socket.socket:
        """Wait for CRIU; connect to the original meanwhile. Raises OSError after the deadline."""
        until = time.monotonic() + self._assignment.deadline_s
        listener.settimeout(LOOK_S)
        while True:
            self._is_connected()
            try:
                return listener.accept()[0]
            except TimeoutError:
                if time.monotonic() > until:
                    raise

    def _is_connected(self) -> bool:
        """Connect to the original, if there is need; return whether nothing is wanting."""
        if self._supply is None:
            return True
        self._supply.go_on(self._fillings.values(), committed=False)
        connected, mark = self._supply.is_connected, self._work / CONNECTED
        if connected and not mark.exists():
            mark.touch()
        return connected

    def resume(self) -> None:
        """Go on where a predecessor stopped, with the descriptors that it shared."""
        close_connections()
        for found in self._record.replay():
            if isinstance(found, Space):
                self._add(found)
            elif isinstance(found, Ended):
                self._drop(found.space)
            else:
                self._follow(self._fillings[found.space], found.message)
        for filling in self._fillings.values():
            # What the predecessor has read and not done is reported once more.
            filling.wake_all()

    def work(self, guard: int) -> bool:
        """Serve and fill until all is in place; return False if the guard ended before that."""
        ended = os.pidfd_open(guard)
        self._poll.register(ended, select.POLLIN)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, ended)
            undo.callback(self._poll.unregister, ended)
            timeout = 0
            while not (self._is_filled() and self._committed):
                ready = [descriptor for descriptor, _ in self._poll.poll(timeout)]
                if ended in ready:
                    return False
                waited = self._handle(ready)
                timeout = self._fill(PIECE_AMONG_FAULTS if waited else PIECE)
        self._report()
        return True

    def _receive_one(self, connection: socket.socket) -> None:
        """Receive one process: a zombie has no memory."""
        raw = channel.exactly(connection, 4)
        if len(raw) < 4:
            raise ChannelFailed("CRIU ended before it had handed over all processes.")
        (pid,) = struct.unpack("=i", raw)
        if pid < 0:
            return
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        space = Space(pid, descriptors[0])
        self._add(space)
        self._record.add(space)

    def _add(self, space: Space) -> None:
        store = None
        if self._supply is None:
            store = PageStore(pagemap.pages_image(self._images, space.pid))
        runs = pagemap.absent_runs if store is None else pagemap.lazy_runs
        missing = AddressSpace.of(runs(self._images, space.pid))
        wiped = (
            Run(begin, end - begin, 0)
            for begin, end in mm_image.wiped_on_fork(self._images, space.pid)
        )
        zero = AddressSpace.of(wiped)
        filling = Filling(space.descriptor, space.pid, missing, store, zero)
        self._take(filling)
        for begin, end in mm_image.titles(self._images, space.pid):
            self._titles.append((filling, begin & -PAGE, min(end, begin + MOST_OF_A_TITLE)))

    def _take(self, filling: Filling) -> None:
        self._by_descriptor[filling.descriptor] = self._taken
        self._fillings[self._taken] = filling
        self._taken += 1
        self._poll.register(filling.descriptor, select.POLLIN)

    def _close_ended(self) -> None:
        """Close the descriptors of processes that have ended.

        A program can fork thousands of children before its memory is in place, each of which would
        take a descriptor, keep the page store from being freed, and be asked for pages for.
        """
        now = time.monotonic()
        if now < self._looked + ENDED_S:
            return
        self._looked = now
        for number, filling in [*self._fillings.items()]:
            if userfaultfd.is_gone(filling.descriptor):
                self._record.end(number)  # first: the next child may get the same descriptor
                self._drop(number)
                os.close(filling.descriptor)

    def _drop(self, number: int) -> None:
        """Take an address space that has ended off all lists."""
        filling = self._fillings.pop(number)
        filling.end()
        self._by_descriptor.pop(filling.descriptor)
        self._poll.unregister(filling.descriptor)
        if self._supply is not None:
            self._supply.forget(filling)

    def _handle(self, ready: list[int]) -> bool:
        """Do what has come; return whether a thread waited for a page."""
        before = self._faults
        for descriptor in ready:
            if self._connection and descriptor == self._connection.fileno():
                self._hear(self._connection)
            elif descriptor in self._by_descriptor:
                self._read(self._by_descriptor[descriptor])
        return self._faults > before

    def _hear(self, connection: socket.socket) -> None:
        """Hear from CRIU that the tree is about to run, or that CRIU has ended."""
        if connection.recv(4) == struct.pack("=I", FINISHED):
            self._committed = True
        self._poll.unregister(connection)
        self._connection = None

    def _read(self, number: int) -> None:
        filling = self._fillings[number]
        for message in self._record.read(number, filling.descriptor):
            if message.event is Event.FAULT:
                self._faults += 1
                wanted = filling.serve(message.second, committed=self._committed)
                if wanted is not None and self._supply is not None:
                    self._supply.want(filling, wanted)
            else:
                self._follow(filling, message)

    def _follow(self, filling: Filling, message: Message) -> None:
        if message.event is Event.FORK:
            self._take(filling.fork(message.first))
        else:
            filling.follow(message)

    def _fill(self, length: int) -> int:
        """Put one piece into place if there is one; return how long the next turn may wait, in ms.

        Before the commit only what was asked for, or ``before_commit``, comes into place.
        """
        self._look_for_the_commit()
        self._show_progress()
        self._close_ended()
        self._place_titles()
        if self._supply is not None:
            return self._fetch(self._supply)
        unfilled = next((one for one in self._fillings.values() if not one.is_complete), None)
        if unfilled is None or not (self._committed or self._assignment.before_commit):
            return SOON_MS if self._titles else IDLE_MS
        self._pause(self._pieces)
        moved = unfilled.fill(length, committed=self._committed)
        self._pieces += moved
        return 0 if moved else SOON_MS

    def _fetch(self, supply: Supply) -> int:
        """Go on with what comes from the original; return how long the next turn may wait."""
        self._pause(supply.pieces)
        supply.go_on(self._fillings.values(), committed=self._committed)
        if supply.is_gone:
            (self._work / GONE).touch()
        if supply.is_ready:
            return 0
        return SOON_MS if supply.holds_back or self._titles else IDLE_MS

    def _place_titles(self) -> None:
        """Put arguments and environments into place, and leave word of that before the tree runs.

        Whoever reads them in ``/proc``, such as ps(1), pgrep(1) or a supervisor, does not wait for
        a missing page: he gets nothing (proc_pid_cmdline(5)), and takes the program for another.
        """
        if self._titled:
            return
        for filling, begin, end in self._titles:
            run = filling.missing.from_address(begin)
            if run is None or run.address >= end or filling.gone:
                continue
            length = (end - run.address + PAGE - 1) & -PAGE
            wanted = filling.serve(run.address, committed=self._committed, length=length)
            if wanted is not None and self._supply is not None:
                self._supply.hurry(filling, wanted)
        self._titles = [one for one in self._titles if _is_missing(*one)]
        if not self._titles:
            (self._work / TITLED).touch()
            self._titled = True

    def _dial(self, purpose: str) -> socket.socket:
        """Connect to the sender. Raises ChannelFailed."""
        wanted = self._assignment
        entry = self._journal.entry(wanted.migration, Role.DESTINATION)
        facts = entry.facts if entry else Facts()
        if "memory_port" not in facts:
            raise ChannelFailed("It is not known yet where the original's memory is.")
        identity = TlsIdentity.of(wanted.certificates, wanted.peer)
        return channel.connect(
            facts["memory_address"],
            memory_port_of(facts),
            bytes.fromhex(wanted.secret),
            purpose,
            identity,
            timeout_s=CONNECT_S,
        )

    def _pause(self, pieces: int) -> None:
        if self._committed and pieces in INSTANTS:
            self._journal.pause(self._assignment.migration, INSTANTS[pieces])

    def _show_progress(self) -> None:
        """Leave word of how much is missing, for people; a full file system keeps the old one."""
        now = time.monotonic()
        if now < self._reported + PROGRESS_S:
            return
        self._reported = now
        missing = sum(filling.missing_bytes for filling in self._fillings.values())
        progress = {"missing": missing, "faults": self._faults, **self._waits()}
        with contextlib.suppress(OSError):
            json_file.write(self._work / PROGRESS, progress)

    def _waits(self) -> dict[str, float]:
        """Return for how long threads waited for pages of the original, in ms."""
        waits = sorted(self._supply.waits) if self._supply else []
        if not waits:
            return {}
        at = {"median": len(waits) // 2, "p99": len(waits) * 99 // 100, "longest": len(waits) - 1}
        return {f"wait_{name}_ms": round(waits[index] * 1000, 2) for name, index in at.items()}

    def _look_for_the_commit(self) -> None:
        """Once CRIU is gone, or for a successor, the journal alone shows whether the tree runs."""
        if self._committed or self._connection:
            return
        entry = self._journal.entry(self._assignment.migration, Role.DESTINATION)
        self._committed = entry is not None and entry.phase is Phase.RESTORED

    def _is_filled(self) -> bool:
        """Whether nothing is missing; leave word of that as soon as it is so, since it stays so."""
        filled = all(filling.is_complete for filling in self._fillings.values())
        if filled and self._filled_at is None:
            (self._work / FILLED).touch()
            self._filled_at = time.time()
        return filled

    def _report(self) -> None:
        """Leave in the journal that the process needs nobody any more."""
        self._journal.pause(self._assignment.migration, "fill.end")
        entry = self._journal.entry(self._assignment.migration, Role.DESTINATION)
        if entry is not None:
            settled_at = self._filled_at or time.time()
            facts: Facts = {"settled_at": settled_at, "faults": self._faults}
            if self._supply is not None:
                facts["pages_bytes"] = self._supply.bytes
            self._journal.learn(entry, facts | cast("Facts", self._waits()))
        self._record.finish()


def _is_missing(filling: Filling, begin: int, end: int) -> bool:
    run = None if filling.gone else filling.missing.from_address(begin)
    return run is not None and run.address < end


def close_connections() -> None:
    """Close what a predecessor had open to the network; its descriptors are ours by number alone.

    The other descriptors are the processes', and whoever closes one of them damages memory.
    """
    for path in Path("/proc/self/fd").iterdir():
        number = int(path.name)
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as found:
                    ours = found.family in {socket.AF_INET, socket.AF_INET6}
                if ours:
                    os.close(number)


def in_pairs(assignment: Assignment, listener: socket.socket) -> None:
    """Work as a pager with a guard, or wait as a guard to become the pager; never return."""
    work = Path(assignment.work)
    record = Record(work / RECORD)
    pager: Pager | None = None
    # Never freed: a socket of theirs has a number that may be that of another descriptor by now.
    predecessors = []
    while True:
        alive = os.pidfd_open(os.getpid())
        guard = clone.sharing_descriptors()
        if guard == 0:
            select.select([alive], [], [])
            if record.done or not (work / READY).exists():
                os._exit(0)
            predecessors.append(pager)
            pager = Pager(assignment, record)
            pager.resume()
            continue
        # A successor goes on without: who reads the old PIDs finds that those processes are dead.
        with contextlib.suppress(OSError):
            pair.name(work, os.getpid(), guard)
        if pager is None:
            pager = Pager(assignment, record)
            pager.receive(listener)
        if _works(pager, guard):
            os._exit(0)
        os.waitpid(guard, 0)


def _works(pager: Pager, guard: int) -> bool:
    """Work; return False if the guard ended. After a failure all is held, and tried once more."""
    while True:
        try:
            return pager.work(guard)
        except (OSError, ChannelFailed, JournalFailed):
            logging.exception("The pager goes on")
            time.sleep(AGAIN_S)


def _prepare() -> None:
    """Take as many descriptors as may be had, and be the last that the kernel ends for memory."""
    program.take_all_descriptors()
    with contextlib.suppress(OSError):  # CAP_SYS_RESOURCE is missing
        Path("/proc/self/oom_score_adj").write_text("-1000")


def main() -> None:
    """Read the assignment and carry it out."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    assignment = Assignment(**json.load(sys.stdin))
    try:
        _prepare()
        listener = program.listen(Path(assignment.work), SOCKET)
        print("listening", flush=True)  # noqa: T201  (this is the protocol with the step)
        in_pairs(assignment, listener)
    # Nothing runs yet that could miss a page: the restore is refused without a pager.
    except (OSError, ChannelFailed, CriuFailed, JournalFailed):
        logging.exception("The pager could not begin")
    finally:
        # Never by Python's own way: it would close what the guard holds.
        os._exit(1)


if __name__ == "__main__":
    main()
