"""How an interrupted system call goes on, so that its program never sees EINTR (x86-64 and i386).

To freeze a thread ends the system call in which it waits. The kernel would restart most of them by
itself, but not with what CRIU dumps: it turns ``ERESTART_RESTARTBLOCK`` into EINTR, since what the
kernel remembers of such a call stays behind (``compel_get_task_regs``). A few others the kernel
itself ends with EINTR whenever a thread is stopped (signal(7)). In all of them nothing was done
yet, so the call can be made once more:

* one without a limit of time, or with an absolute one, as it was;
* poll and epoll_wait with what is left of their time, which is in a register;
* a sleep with what is left of it, from where the kernel has written it for the program
  (nanosleep(2)); a sleep whose program did not ask for that becomes a poll of nothing for as long;
* a relative FUTEX_WAIT wakes up instead, which every user of a futex expects (futex(2)).

A register that held a limit of time holds another afterwards. A call through a C library cannot
notice that, since every function may change these registers.
"""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sojourn.system.ptrace import Registers
from sojourn.system.waits import Call, Wait

#: Operations of futex(2), without their flags.
FUTEX_COMMAND, FUTEX_WAIT, FUTEX_WAIT_BITSET = 0x7F, 0, 9

#: The kernel's ``ERESTARTNOHAND`` (include/linux/errno.h): it shall make the call once more, unless
#: a handler runs first, when the call ends with EINTR.
ERESTARTNOHAND = 514

#: No pointer is that small, and no clock's number that large: it tells nanosleep(2) from
#: clock_nanosleep(2) where only the arguments are left.
FIRST_ADDRESS = 4096

#: The longest time that poll(2) takes, in milliseconds.
LONGEST_MS = 2**31 - 1


@dataclass(frozen=True)
class Abi:
    """How a kind of program calls the kernel: registers, instruction, and the numbers of calls.

    ``sleeps`` and ``clock_sleeps`` have the layout of their ``struct timespec`` by number;
    ``others`` are made once more as they were.
    """

    bits: int
    arguments: tuple[str, ...]
    instruction: bytes
    restart: int
    poll: int
    epolls: frozenset[int]
    sleeps: dict[int, str]
    clock_sleeps: dict[int, str]
    futexes: frozenset[int]
    others: frozenset[int]

    @property
    def numbers(self) -> frozenset[int]:
        """Every call that may have to be made once more."""
        single = {self.restart, self.poll, *self.sleeps, *self.clock_sleeps}
        return self.epolls | self.futexes | self.others | single

    def unsigned(self, value: int) -> int:
        """Return a number as a register holds it."""
        return value % (1 << self.bits)


#: arch/x86/entry/syscalls/syscall_64.tbl. Read, write and their kin return EINTR only where a
#: socket has a limit of time (socket(7), ``SO_RCVTIMEO``), select and its kin only where they may
#: not write what is left.
X86_64 = Abi(
    bits=64,
    arguments=("di", "si", "dx", "r10", "r8", "r9"),
    instruction=b"\x0f\x05",  # syscall
    restart=219,
    poll=7,
    epolls=frozenset({232, 281}),  # epoll_wait, epoll_pwait
    sleeps={35: "=qq"},
    clock_sleeps={230: "=qq"},
    futexes=frozenset({202}),
    others=frozenset(
        {
            *(0, 1, 19, 20),  # read, write, readv, writev
            *(43, 288, 45, 47, 299, 44, 46, 307),  # accept, receive, send
            *(23, 270, 271),  # select, pselect6, ppoll
            *(65, 220),  # semop, semtimedop
            *(128, 208, 333, 441),  # rt_sigtimedwait, io_getevents, io_pgetevents, epoll_pwait2
            449,  # futex_waitv, whose limit of time is absolute
        }
    ),
)

#: arch/x86/entry/syscalls/syscall_32.tbl, of programs that run on a 64-bit kernel. The return
#: address stands behind ``int $0x80`` whichever instruction they use (the vDSO's
#: ``__kernel_vsyscall``).
I386 = Abi(
    bits=32,
    arguments=("bx", "cx", "dx", "si", "di", "bp"),
    instruction=b"\xcd\x80",
    restart=0,
    poll=168,
    epolls=frozenset({256, 319}),
    sleeps={162: "=ii"},
    clock_sleeps={267: "=ii", 407: "=qq"},
    futexes=frozenset({240, 422}),
    others=frozenset(
        {
            *(3, 4, 145, 146),
            *(364, 371, 372, 337, 417, 369, 370, 345),
            *(142, 308, 309, 413, 414),
            *(420, 177, 421, 247, 385, 416, 441, 449),
        }
    ),
)

#: By the segment of their code (arch/x86/include/asm/segment.h).
ABIS = {0x33: X86_64, 0x23: I386}

#: What either kind may have to make once more.
NUMBERS = X86_64.numbers | I386.numbers


@dataclass(frozen=True)
class Thread:
    """What is known of a frozen thread beside its registers.

    ``wait``: what it was seen in before the freeze. ``memory``: reads at an address; None where
    nothing can be read. ``confined``: it has a filter of seccomp(2). Instants are seconds since the
    epoch: the freeze, and the one at which the thread is taken to go on.
    """

    wait: Wait | None
    memory: Callable[[int, int], bytes | None]
    confined: bool
    frozen_at: float
    goes_on_at: float


def may_restart(number: int) -> bool:
    """Whether a call of this number may have to be made once more."""
    return number in NUMBERS


def restored(registers: Registers, thread: Thread) -> Registers | None:
    """Return the registers with which a thread begins that CRIU restores; None for no change."""
    again = _again(registers, thread)
    if again is None:
        return None
    changed = again.changed
    if again.number is not None:
        # The thread comes from nowhere: it stands in front of the instruction.
        before = registers["ip"] - len(again.abi.instruction)
        changed = {"ax": again.number, "ip": before, **changed}
    return {**registers, **changed}


def woken(registers: Registers, thread: Thread) -> Registers | None:
    """Return the registers for a stopped thread, which the kernel lets go on; None for no change.

    The kernel makes the call, or runs a handler first and ends the call with EINTR.
    """
    again = _again(registers, thread)
    if again is None:
        return None
    changed = again.changed
    if again.number is not None:
        failed = again.abi.unsigned(-ERESTARTNOHAND)
        changed = {"ax": failed, "orig_ax": again.number, **changed}
    return {**registers, **changed}


@dataclass(frozen=True)
class Again:
    """What a thread does in place of seeing EINTR: it makes a call with these registers changed.

    ``number`` is None if it makes none: then the registers hold a result.
    """

    abi: Abi
    number: int | None
    changed: Registers


def _again(registers: Registers, thread: Thread) -> Again | None:
    """Return what a thread does in place of seeing EINTR; None if it does not, or shall see it."""
    abi = ABIS.get(registers["cs"])
    if abi is None or abi.unsigned(registers["ax"]) != abi.unsigned(-errno.EINTR):
        return None
    # A 64-bit program can make calls by the numbers of 32-bit ones too: by their instruction.
    size = len(abi.instruction)
    if thread.memory(registers["ip"] - size, size) != abi.instruction:
        return None
    return Interrupted(abi, registers, thread).again()


@dataclass(frozen=True)
class Interrupted:
    """A call that was ended by the freeze, and failed with EINTR."""

    abi: Abi
    registers: Registers
    thread: Thread

    def again(self) -> Again | None:
        """Return what to do in place of EINTR; None to leave it."""
        abi, number = self.abi, self._number()
        if number == abi.poll or number in abi.epolls:
            return Again(abi, number, self._limit_ms(2 if number == abi.poll else 3))
        if number in abi.sleeps:
            return self._sleep(number, 0, abi.sleeps[number])
        if number in abi.clock_sleeps:
            return self._sleep(number, 2, abi.clock_sleeps[number])
        if number in abi.futexes:
            return self._futex(number)
        return Again(abi, number, {}) if number in abi.others else None

    def _number(self) -> int | None:
        """Return the call's number, also of one that was restarted before; None if unknown."""
        number = self.registers["orig_ax"]
        if number != self.abi.restart:
            return number
        wait = self._seen()
        if wait is None or len(wait.kernel) < len("0 "):
            return None
        # The kernel restarts four calls in this way: poll, futex, and a sleep by either name.
        if "poll" in wait.kernel:
            return self.abi.poll
        if "futex" in wait.kernel:
            return _only(self.abi.futexes)
        by_clock = self._argument(0) < FIRST_ADDRESS
        return _only(self.abi.clock_sleeps if by_clock else self.abi.sleeps)

    def _argument(self, index: int) -> int:
        return self.registers[self.abi.arguments[index]]

    def _limit_ms(self, index: int) -> Registers:
        limit_ms = self._argument(index) & 0xFFFFFFFF
        if limit_ms > LONGEST_MS:  # negative: without a limit
            return {}
        return {self.abi.arguments[index]: _in_ms(self._left_s(limit_ms / 1000))}

    def _sleep(self, number: int, request: int, timespec: str) -> Again:
        names, remaining = self.abi.arguments, self._argument(request + 1)
        if remaining:
            return Again(self.abi, number, {names[request]: remaining})
        left_ms = self._left_of_sleep_ms(self._argument(request), timespec)
        # A filter of seccomp(2) that lets the program sleep need not let it poll.
        if self.thread.confined or left_ms is None or left_ms > LONGEST_MS:
            return Again(self.abi, number, {})
        nothing = {names[0]: 0, names[1]: 0, names[2]: left_ms}
        return Again(self.abi, self.abi.poll, nothing)

    def _left_of_sleep_ms(self, request: int, timespec: str) -> int | None:
        asked = self.thread.memory(request, struct.calcsize(timespec))
        # Without knowing since when it sleeps, nothing is left but to sleep as long as asked for.
        if asked is None or self._seen() is None:
            return None
        seconds, nanoseconds = struct.unpack(timespec, asked)
        return _in_ms(self._left_s(seconds + nanoseconds / 1e9))

    def _futex(self, number: int) -> Again | None:
        command = self._argument(1) & FUTEX_COMMAND
        if command == FUTEX_WAIT:
            return Again(self.abi, None, {"ax": 0, "orig_ax": self.abi.unsigned(-1)})
        return Again(self.abi, number, {}) if command == FUTEX_WAIT_BITSET else None

    def _left_s(self, total_s: float) -> float:
        """Return how much of a call's time is left, rather too much than too little."""
        wait = self._seen()
        if wait is None or wait.since is None:
            return total_s
        ends = wait.since + total_s
        # One that would have ended before the freeze is not the one that was seen: it began since.
        if not 0 < ends - self.thread.frozen_at <= total_s:
            return total_s
        return max(0.0, ends - self.thread.goes_on_at)

    def _seen(self) -> Wait | None:
        """Return what the thread was seen in before the freeze, if it is this very call."""
        wait, registers = self.thread.wait, self.registers
        arguments = tuple(registers[name] for name in self.abi.arguments)
        call = Call(registers["orig_ax"], arguments, registers["sp"], registers["ip"])
        return wait if wait and wait.call == call else None


def _only(numbers: Collection[int]) -> int | None:
    """Return the number if there is one; None where an old or a new layout may be meant."""
    return next(iter(numbers)) if len(numbers) == 1 else None


def _in_ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)
