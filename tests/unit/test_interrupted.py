"""Interrupted system calls: what goes in place of EINTR, in images and in registers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sojourn.criu import interrupted
from sojourn.criu.protobuf import entries, fields
from sojourn.errors import CriuFailed
from sojourn.system import restart
from sojourn.system.ptrace import NAMES, Registers
from sojourn.system.restart import Thread
from sojourn.system.waits import Call, Wait
from tests.images import image, message

#: Addresses: of the instruction behind the call, the stack, a request and what remains of it.
IP, SP, REQUEST, REMAINS = 0x7F0000001002, 0x7FFC00001000, 0x7FFC00001100, 0x7FFC00001200

FAILED, NO_CALL = 2**64 - 4, 2**64 - 1

#: When the threads were frozen, in seconds since the epoch; they had waited for three seconds.
FROZEN_AT, BEGAN = 1000.0, 997.0

CODE_64, CODE_32 = 0x33, 0x23


def registers(number: int, *arguments: int, **changed: int) -> Registers:
    """Return the registers of a 64-bit call that failed with EINTR."""
    values = dict.fromkeys(NAMES, 0) | {"ip": IP, "sp": SP, "cs": CODE_64}
    names = restart.X86_64.arguments
    passed = dict(zip(names, arguments, strict=False))
    return values | passed | {"orig_ax": number, "ax": FAILED} | changed


def registers_32(number: int, *arguments: int) -> Registers:
    """Return the registers of a 32-bit call that failed with EINTR."""
    values = dict.fromkeys(NAMES, 0) | {"ip": 0x8049002, "sp": 0xFF000000, "cs": CODE_32}
    passed = dict(zip(restart.I386.arguments, arguments, strict=False))
    return values | passed | {"orig_ax": number, "ax": 2**32 - 4}


def memory(address: int, length: int, *, instruction: bytes = b"\x0f\x05") -> bytes | None:
    """Return the memory of a program: the instruction, and a request for ten seconds and a half."""
    if length == 2:
        return instruction
    if address == REQUEST:
        return struct.pack("=qq" if length == 16 else "=ii", 10, 500_000_000)
    return None


def thread(
    of: Registers | None = None,
    kernel: str = "hrtimer_nanosleep",
    since: float | None = BEGAN,
    goes_on_at: float = FROZEN_AT,
    confined: bool = False,
    reads: Callable[[int, int], bytes | None] = memory,
) -> Thread:
    """Return a frozen thread that was seen in the call whose registers are given."""
    if of is None:
        return Thread(None, reads, confined, FROZEN_AT, goes_on_at)
    abi = restart.ABIS.get(of["cs"], restart.X86_64)
    arguments = tuple(of[name] for name in abi.arguments)
    seen = Call(of["orig_ax"], arguments, of["sp"], of["ip"])
    return Thread(Wait(seen, kernel, since), reads, confined, FROZEN_AT, goes_on_at)


def changes(before: Registers, after: Registers | None) -> Registers:
    """Return the registers that are not what they were."""
    assert after is not None
    return {name: value for name, value in after.items() if value != before[name]}


def issued(number: int, **changed: int) -> Registers:
    """Return what changes for a restored thread that makes a call."""
    return {"ax": number, "ip": IP - 2} | changed


CASES = [
    ("poll without limit", registers(7, 1, 1, 2**64 - 1), issued(7)),
    ("poll with a negative int", registers(7, 1, 1, 2**32 - 1), issued(7)),
    ("poll", registers(7, 0, 0, 8000), issued(7, dx=5000)),
    ("epoll_wait", registers(232, 3, REQUEST, 1, 8000), issued(232, r10=5000)),
    ("epoll_pwait", registers(281, 3, REQUEST, 1, 8000), issued(281, r10=5000)),
    ("nanosleep", registers(35, REQUEST, REMAINS), issued(35, di=REMAINS)),
    ("nanosleep on itself", registers(35, REMAINS, REMAINS), issued(35)),
    ("nanosleep alone", registers(35, REQUEST, 0), issued(7, di=0, dx=7500)),
    ("clock_nanosleep", registers(230, 1, 0, REQUEST, REMAINS), issued(230, dx=REMAINS)),
    ("clock_nanosleep alone", registers(230, 1, 0, REQUEST, 0), issued(7, di=0, dx=7500)),
    ("futex until", registers(202, 1, 9 | 128, 0, REQUEST), issued(202)),
    ("futex", registers(202, 1, 0 | 128, 0, REQUEST), {"ax": 0, "orig_ax": NO_CALL}),
    ("sigtimedwait", registers(128, 1, 0, REQUEST, 8), issued(128)),
    ("recvfrom", registers(45, 3, REQUEST, 10), issued(45)),
]


@pytest.mark.parametrize(("name", "before", "expected"), CASES, ids=[case[0] for case in CASES])
def test_a_restored_thread_makes_its_call_once_more(
    name: str, before: Registers, expected: Registers
) -> None:
    """It stands in front of the instruction, with what is left of its time."""
    assert changes(before, restart.restored(before, thread(before))) == expected, name


@pytest.mark.parametrize(("name", "before", "expected"), CASES, ids=[case[0] for case in CASES])
def test_a_woken_thread_leaves_it_to_the_kernel(
    name: str, before: Registers, expected: Registers
) -> None:
    """The kernel rewinds the instruction itself, or runs a handler first."""
    woken = restart.woken(before, thread(before))
    if "ip" in expected:
        number = expected["ax"]
        expected = {**expected, "ax": 2**64 - 514, "orig_ax": number}
        del expected["ip"]
    assert woken is not None
    assert woken == {**before, **expected}, name


@pytest.mark.parametrize(
    "before",
    [
        registers(42, 3, REQUEST, 16),  # connect is under way all the same
        registers(3, 5),  # the descriptor is closed
        registers(202, 1, 6, 0, REQUEST),  # FUTEX_LOCK_PI
        registers(NO_CALL, 0, 0, 8000),  # not in a system call
        registers(7, 0, 0, 8000, ax=0),  # it has returned
        registers(7, 0, 0, 8000, ax=2**64 - 514),  # mended already, on the source
        registers(7, 0, 0, 8000, cs=0x10),
    ],
)
def test_others_are_left_alone(before: Registers) -> None:
    """What did not fail with EINTR, or may not be made twice, stays as it is."""
    assert restart.restored(before, thread(before)) is None
    assert restart.woken(before, thread(before)) is None


def test_it_is_done_once() -> None:
    """A thread that makes its call once more does not look interrupted."""
    before = registers(7, 0, 0, 8000)
    for way in (restart.restored, restart.woken):
        after = way(before, thread(before))
        assert after is not None
        assert way(after, thread(before)) is None


def test_another_instruction_is_left_alone() -> None:
    """A 64-bit program that calls as a 32-bit one does means other numbers."""
    before = registers(7, 0, 0, 8000)
    int_80 = partial(memory, instruction=b"\xcd\x80")
    assert restart.restored(before, thread(before, reads=int_80)) is None
    assert restart.restored(before, thread(before, reads=lambda *_: None)) is None


@pytest.mark.parametrize(
    ("seen", "left_ms"),
    [
        (thread(), 8000),  # not seen at all
        (thread(registers(7, 0, 0, 9000)), 8000),  # seen in another call
        (thread(registers(7, 0, 0, 8000), since=None), 8000),
        (thread(registers(7, 0, 0, 8000), since=990.0), 8000),  # that one had ended by then
        (thread(registers(7, 0, 0, 8000), since=1001.0), 8000),
        (thread(registers(7, 0, 0, 8000), goes_on_at=1002.0), 3000),
        (thread(registers(7, 0, 0, 8000), goes_on_at=1009.0), 0),  # it is over meanwhile
        (thread(registers(7, 0, 0, 8000), since=BEGAN + 0.0001), 5001),  # never too early
    ],
)
def test_what_is_left_is_never_too_little(seen: Thread, left_ms: int) -> None:
    """Where it is not known since when a thread waits, it waits as long as it asked for."""
    after = restart.woken(registers(7, 0, 0, 8000), seen)
    assert after is not None
    assert after["dx"] == left_ms


def test_a_confined_program_does_not_poll() -> None:
    """A filter that lets it sleep need not let it poll: it sleeps as long as it asked for."""
    before = registers(35, REQUEST, 0)
    after = restart.restored(before, thread(before, confined=True))
    assert changes(before, after) == issued(35)


def test_a_sleep_that_no_poll_can_take() -> None:
    """It begins anew: after more than 24 days of it left, it will be late once."""
    before = registers(35, REQUEST, 0)
    long = thread(before, reads=lambda _, size: struct.pack("=qq", 10**8, 0)[:size])
    code = thread(before, reads=lambda a, n: memory(a, n) if n == 2 else long.memory(a, n))
    assert changes(before, restart.restored(before, code)) == issued(35)


@pytest.mark.parametrize(
    ("kernel", "arguments", "expected"),
    [
        ("poll_schedule_timeout.constprop.0", (0, 0, 8000), issued(7, dx=5000)),
        ("futex_do_wait", (REQUEST, 9, 0, REQUEST), issued(202)),
        ("do_syscall_64", (REQUEST, REMAINS), issued(35, di=REMAINS)),
        ("hrtimer_nanosleep", (1, 0, REQUEST, REMAINS), issued(230, dx=REMAINS)),
    ],
)
def test_a_call_that_was_restarted_before(
    kernel: str, arguments: tuple[int, ...], expected: Registers
) -> None:
    """Its number is that of restart_syscall; where the kernel sleeps shows which it is."""
    before = registers(219, *arguments)
    assert changes(before, restart.restored(before, thread(before, kernel))) == expected
    assert restart.restored(before, thread()) is None
    assert restart.restored(before, thread(before, kernel="0")) is None


def test_a_32_bit_program() -> None:
    """It has registers and numbers of its own, and numbers of 32 bits."""
    before, reads = registers_32(162, REQUEST, 0), partial(memory, instruction=b"\xcd\x80")
    seen = thread(before, reads=reads)
    restored = restart.restored(before, seen)
    assert changes(before, restored) == {"ax": 168, "ip": 0x8049000, "bx": 0, "dx": 7500}
    woken = restart.woken(before, seen)
    assert changes(before, woken) == {"ax": 2**32 - 514, "orig_ax": 168, "bx": 0, "dx": 7500}
    poll = registers_32(168, 0, 0, 2**32 - 1)
    assert changes(poll, restart.restored(poll, thread(poll, reads=reads))) == {
        "ax": 168,
        "ip": 0x8049000,
    }


def core(values: Registers) -> bytes:
    """Return a thread's core image, with what stands before and behind its registers."""
    general = message(*((number, values[name]) for number, name in enumerate(NAMES, start=1)))
    floating = message((1, 0x37F), *((9, 2**32 - 1) for _ in range(32)))
    info = message((1, 0x7F0000000010), (2, general), (3, floating))
    return image(message((1, 1), (2, info), (3, message((1, 1))), (5, message((8, 0)))))


def read_core(file: Path) -> tuple[Registers, list[int]]:
    """Return the registers of an image, and the numbers of its fields."""
    content = file.read_bytes()
    ((begin, end),) = entries(content)
    outer = list(fields(content, begin, end))
    info = next(field for field in outer if field.number == 2)
    general = next(field for field in fields(content, info.begin, info.end) if field.number == 2)
    found = [field.value for field in fields(content, general.begin, general.end)]
    return dict(zip(NAMES, (value for value in found if isinstance(value, int)), strict=True)), [
        field.number for field in outer
    ]


def test_an_image_is_mended_once(tmp_path: Path) -> None:
    """The registers change and nothing else; a second delivery changes nothing."""
    before = registers(230, 1, 0, 0x404040, REMAINS)
    file = tmp_path / "core-1.img"
    file.write_bytes(core(before))
    file.chmod(0o600)
    change = partial(restart.restored, thread=thread(before))
    assert interrupted.mend(file, change)
    found, outer = read_core(file)
    # A longer number than the one before takes more room.
    assert found == before | issued(230, dx=REMAINS)
    assert outer == [1, 2, 3, 5]
    assert file.stat().st_mode & 0o777 == 0o600
    content = file.read_bytes()
    assert not interrupted.mend(file, change)
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_an_image_of_another_call_is_not_read(tmp_path: Path) -> None:
    """A tree may have a thousand threads, of which most did not see EINTR."""
    file = tmp_path / "core-1.img"
    file.write_bytes(core(registers(7, ax=0)))
    assert not interrupted.mend(file, lambda found: found)


#: ``ax`` of a call that failed, in the wrong places.
STRAY = message((11, FAILED))


@pytest.mark.parametrize(
    "content",
    [
        image() + STRAY[:4] + STRAY,
        image(STRAY),
        image(message((1, 3), (8, STRAY))),  # another architecture
        image(message((1, 1), (2, message((1, 0), (2, STRAY))))),
        core(registers(7))[:-60],
    ],
)
def test_a_malformed_image_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Nothing is guessed, and the file stays."""
    file = tmp_path / "core-1.img"
    file.write_bytes(content)
    with pytest.raises(CriuFailed):
        interrupted.mend(file, lambda found: found)
    assert file.read_bytes() == content
