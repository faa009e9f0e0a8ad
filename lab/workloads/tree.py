"""A tree of processes that uses facilities of the kernel: proves that they survive the move.

The parent has two children, all three with threads. At each beat the parent exercises every chosen
facility and checks what comes back; the status shows for how many beats each one worked, and its
first error:

- ``pipes``: a number goes through a ring of pipes, parent to first child to second child to parent
- ``socketpair``: a number goes to the first child over a unix socket pair and comes back one
  greater
- ``shm``: the second child counts in shared anonymous memory; it must never run backwards
- ``deleted``: a file that was deleted while it was open still holds what was written to it
- ``log``: a log file grows by one line per beat and holds every line
- ``threads``: in each process two threads count, and none of them stalls
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# A host's own Python runs this file by its name, without the checkout on its path.
sys.path.insert(0, str(Path(__file__).parents[2]))

from lab.workloads.beating import Beat, arguments

FACILITIES = ("pipes", "socketpair", "shm", "deleted", "log", "threads")

#: What goes through pipes, sockets and files.
NUMBER = struct.Struct("Q")
THREADS = 2
TICK_S = 0.02

#: How long a thread or the second child may be without a tick before that counts as an error.
STANDSTILL_S = 5.0

#: A process's counters in the shared memory: one for the main loop of the second child, then the
#: threads'.
SLOTS_PER_PROCESS = 1 + THREADS


class Ticks:
    """Counters in shared anonymous memory, one per slot, each written by one thread only.

    Their readers take no lock, so a number is stored in one go: ``struct.pack_into`` sets its bytes
    to zero first, and another process sees that.
    """

    def __init__(self, slots: int) -> None:
        self.counts = memoryview(mmap.mmap(-1, slots * NUMBER.size)).cast("Q")

    def add(self, slot: int) -> None:
        """Count one tick."""
        self.counts[slot] += 1

    def read(self, slot: int) -> int:
        """Return a slot's count."""
        return self.counts[slot]


class Watch:
    """Checks counters that must only ever grow, and must not stall for long."""

    def __init__(self, ticks: Ticks, slots: list[int]) -> None:
        self.ticks = ticks
        self.slots = slots
        self.before = {slot: (0, time.monotonic()) for slot in slots}
        self.checked = time.monotonic()

    def __call__(self, number: int) -> str:
        """Return what is wrong at this beat, or nothing."""
        del number
        now = time.monotonic()
        if now - self.checked > 1:  # we were frozen, and so was the whole tree
            self.before = {slot: (count, now) for slot, (count, _) in self.before.items()}
        self.checked = now
        errors = [error for slot in self.slots if (error := self._check(slot, now))]
        return errors[0] if errors else ""

    def _check(self, slot: int, now: float) -> str:
        count, since = self.before[slot]
        read = self.ticks.read(slot)
        if read < count:
            return f"slot {slot} went back from {count} to {read}"
        if read > count:
            self.before[slot] = (read, now)
        elif now - since > STANDSTILL_S:
            return f"slot {slot} has stalled at {count}"
        return ""


def main() -> None:
    """Build the tree, then beat until killed."""
    options = _options()
    ticks = Ticks(3 * SLOTS_PER_PROCESS)
    first_pipe, second_pipe, last_pipe = os.pipe(), os.pipe(), os.pipe()
    ours, theirs = socket.socketpair()
    _fork(lambda: _first_child(first_pipe[0], second_pipe[1], theirs, ticks))
    _fork(lambda: _second_child(second_pipe[0], last_pipe[1], ticks))
    _count_in_threads(ticks, 0)
    facilities: dict[str, Callable[[int], str]] = {
        "pipes": lambda number: _through_ring(number, first_pipe[1], last_pipe[0]),
        "socketpair": lambda number: _there_and_back(number, ours),
        "shm": Watch(ticks, [2 * SLOTS_PER_PROCESS]),
        "deleted": _deleted_file(),
        "log": _log_file(options.out.with_suffix(".log")),
        "threads": Watch(
            ticks, [slot for slot in range(3 * SLOTS_PER_PROCESS) if slot % SLOTS_PER_PROCESS]
        ),
    }
    chosen = {name: facilities[name] for name in options.facilities.split(",")}
    _beat(Beat(options), chosen)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__)
    everything = ",".join(FACILITIES)
    parser.add_argument(
        "--with", dest="facilities", default=everything, help=f"which to exercise, of {everything}"
    )
    return parser.parse_args()


def _beat(beat: Beat, facilities: dict[str, Callable[[int], str]]) -> None:
    verified = dict.fromkeys(facilities, 0)
    errors: dict[str, str] = {}
    while True:
        for name, exercise in facilities.items():
            error = exercise(beat.counter)
            verified[name] += not error
            if error:
                errors.setdefault(name, error)
        beat({"verified": verified, "errors": errors})


def _fork(run: Callable[[], None]) -> None:
    if os.fork() == 0:
        run()


def _first_child(source: int, target: int, peer: socket.socket, ticks: Ticks) -> None:
    _count_in_threads(ticks, SLOTS_PER_PROCESS)
    threading.Thread(target=_answer, args=(peer,), daemon=True).start()
    while True:
        os.write(target, os.read(source, NUMBER.size))


def _second_child(source: int, target: int, ticks: Ticks) -> None:
    slot = 2 * SLOTS_PER_PROCESS
    _count_in_threads(ticks, slot)
    threading.Thread(target=_relay, args=(source, target), daemon=True).start()
    while True:
        ticks.add(slot)
        time.sleep(TICK_S)


def _relay(source: int, target: int) -> None:
    while True:
        os.write(target, os.read(source, NUMBER.size))


def _answer(peer: socket.socket) -> None:
    while True:
        number = NUMBER.unpack(peer.recv(NUMBER.size))[0]
        peer.send(NUMBER.pack(number + 1))


def _count_in_threads(ticks: Ticks, first_slot: int) -> None:
    for slot in range(first_slot + 1, first_slot + SLOTS_PER_PROCESS):
        threading.Thread(target=_count, args=(ticks, slot), daemon=True).start()


def _count(ticks: Ticks, slot: int) -> None:
    while True:
        ticks.add(slot)
        time.sleep(TICK_S)


def _through_ring(number: int, target: int, source: int) -> str:
    os.write(target, NUMBER.pack(number))
    back = NUMBER.unpack(os.read(source, NUMBER.size))[0]
    return "" if back == number else f"sent {number} round the ring, {back} came back"


def _there_and_back(number: int, peer: socket.socket) -> str:
    peer.send(NUMBER.pack(number))
    back = NUMBER.unpack(peer.recv(NUMBER.size))[0]
    return "" if back == number + 1 else f"sent {number} to the child, {back} came back"


def _deleted_file() -> Callable[[int], str]:
    path = Path(f"/var/tmp/tree.{os.getpid()}")
    file = path.open("wb+", buffering=0)
    path.unlink()
    file.write(NUMBER.pack(0))

    def exercise(number: int) -> str:
        file.seek(0)
        read = NUMBER.unpack(file.read(NUMBER.size))[0]
        file.seek(0)
        file.write(NUMBER.pack(number + 1))
        return "" if read == number else f"the deleted file holds {read} instead of {number}"

    return exercise


def _log_file(path: Path) -> Callable[[int], str]:
    log = path.open("ab+", buffering=0)
    log.truncate(0)

    def exercise(number: int) -> str:
        log.write(b"%012d\n" % number)
        size = os.fstat(log.fileno()).st_size
        return (
            ""
            if size == 13 * (number + 1)
            else f"the log has {size} bytes after {number + 1} lines"
        )

    return exercise


if __name__ == "__main__":
    main()
