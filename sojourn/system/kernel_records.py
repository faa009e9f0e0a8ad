"""What the kernel's own records of a process hold and no file of ``/proc`` shows, read by BPF.

Two small programs run in the kernel while a file is read: one is called for each thread of a
process, one for each of its memory areas (https://docs.kernel.org/bpf/bpf_iterators.html). They
only read. The process is neither stopped nor interrupted, unlike by ptrace(2), and nothing stays
in the kernel once the descriptors here are closed, which the end of this program does too.

Needs Linux 6.1, for a file of one process only, CAP_SYS_ADMIN, and the kernel's types
(``sojourn.system.btf``). Where something of that is missing, ``Unavailable`` gives the reason.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sojourn.system import bpf
from sojourn.system.bpf import Unavailable
from sojourn.system.btf import Types

TYPES = Path("/sys/kernel/btf/vmlinux")

#: Commands of bpf(2).
PROG_LOAD, LINK_CREATE, ITER_CREATE = 5, 28, 33

#: ``BPF_PROG_TYPE_TRACING``, and ``BPF_TRACE_ITER``: what kind of program that is.
TRACING, ITERATOR = 26, 28

#: Helpers of bpf-helpers(7).
PROBE_READ_KERNEL, SEQ_WRITE = 113, 127

#: ``union bpf_attr`` for loading a program, up to ``attach_btf_id``.
LOAD = struct.Struct("=IIQQIIQII16sIIIIQIIQII")

#: How much of the security modules' part of a thread's credentials is read; more than is used.
SECURITY_BYTES = 64
THREAD = struct.Struct(f"={SECURITY_BYTES // 8}QQQ")
AREA = struct.Struct("=QQ")

READ_BYTES = 2**16


@dataclass(frozen=True)
class Thread:
    """One thread: its credentials' security words, its memory's flags, its work at system calls.

    All are bits and addresses whose meaning depends on the kernel.
    """

    security: tuple[int, ...]
    memory_flags: int
    call_work: int


def threads(pid: int) -> list[Thread]:
    """Return the threads of a process, by its PID here; empty if it is gone. Raises Unavailable."""
    data = _read(_thread_program(), pid)
    return [
        Thread(security=tuple(words), memory_flags=memory, call_work=work)
        for *words, memory, work in THREAD.iter_unpack(data)
    ]


def areas(pid: int, flags: int) -> dict[int, int]:
    """Return where the memory areas with any of these flags begin, and all flags of each.

    Raises Unavailable.
    """
    return dict(AREA.iter_unpack(_read(_area_program(flags), pid)))


@cache
def _types() -> Types:
    names = {"task_struct", "cred", "mm_struct", "vm_area_struct", "thread_info"}
    names |= {"bpf_iter__task", "bpf_iter__task_vma", "bpf_iter_task", "bpf_iter_task_vma"}
    try:
        return Types(TYPES.read_bytes(), names)
    except (OSError, ValueError, struct.error) as error:
        raise Unavailable(f"{TYPES} cannot be read: {error}") from None


def _offset(structure: str, member: str) -> int:
    try:
        return _types().offset(structure, member)
    except LookupError:
        raise Unavailable(f"This kernel has no {structure}.{member}.") from None


# Instructions of https://docs.kernel.org/bpf/standardization/instruction-set.html. Registers 1 to 5
# are arguments, 0 is a result, 6 to 9 survive calls, 10 is the stack.


def _instruction(
    code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("=BBhi", code, target | source << 4, offset, value)


def _copy(target: int, source: int) -> bytes:
    return _instruction(0xBF, target, source)


def _load(target: int, address: int, offset: int = 0) -> bytes:
    return _instruction(0x79, target, address, offset)


def _set(target: int, value: int) -> bytes:
    return _instruction(0xB7, target, value=value)


def _add(target: int, value: int) -> bytes:
    return _instruction(0x07, target, value=value)


def _call(helper: int) -> bytes:
    return _instruction(0x85, value=helper)


def _read_to_stack(place: int, size: int, address: int, offset: int) -> bytes:
    """Copy kernel memory at a register and an offset to the stack; zeros if it is not mapped."""
    where = _copy(1, 10) + _add(1, place) + _set(2, size) + _copy(3, address) + _add(3, offset)
    return where + _call(PROBE_READ_KERNEL)


def _follow(register: int, address: int, offset: int) -> bytes:
    """Load what is at an address into a register, by way of the stack."""
    return _read_to_stack(-8, 8, address, offset) + _load(register, 10, -8)


def _write_out(place: int, size: int) -> bytes:
    """Append a part of the stack to what is read from the iterator's file."""
    # ``meta`` is the first member of the context, which register 6 holds, and ``seq`` is its first.
    sequence = _load(1, 6) + _load(1, 1) + _copy(2, 10) + _add(2, place) + _set(3, size)
    return sequence + _call(SEQ_WRITE)


def _unless_zero(register: int, body: bytes) -> bytes:
    """Run a body unless a register is zero, and end the program."""
    skip = _instruction(0x15, register, offset=len(body) // 8)
    return skip + body + _set(0, 0) + _instruction(0x95)


@cache
def _thread_program() -> int:
    record = -8 - THREAD.size
    body = (
        _follow(8, 7, _offset("task_struct", "real_cred"))
        + _follow(8, 8, _offset("cred", "security"))
        + _read_to_stack(record, SECURITY_BYTES, 8, 0)
        + _follow(8, 7, _offset("task_struct", "mm"))
        + _read_to_stack(record + SECURITY_BYTES, 8, 8, _offset("mm_struct", "flags"))
        + _call_work(record + SECURITY_BYTES + 8)
        + _write_out(record, THREAD.size)
    )
    start = _copy(6, 1) + _load(7, 1, _offset("bpf_iter__task", "task"))
    return _loaded(start + _unless_zero(7, body), "bpf_iter_task")


def _call_work(place: int) -> bytes:
    """Copy what a thread does at system calls to the stack; zeros where the kernel has none."""
    try:
        work = _offset("thread_info", "syscall_work")
    except Unavailable:  # an architecture without the generic entry code
        return _set(8, 0) + _read_to_stack(place, 8, 8, 0)
    return _read_to_stack(place, 8, 7, _offset("task_struct", "thread_info") + work)


@cache
def _area_program(flags: int) -> int:
    record = -8 - AREA.size
    wide = _instruction(0x18, 9, value=_signed(flags)) + _instruction(0, value=_signed(flags >> 32))
    write = _write_out(record, AREA.size)
    body = (
        _read_to_stack(record, 8, 7, _offset("vm_area_struct", "vm_start"))
        + _read_to_stack(record + 8, 8, 7, _offset("vm_area_struct", "vm_flags"))
        + _load(8, 10, record + 8)
        + wide
        + _instruction(0x5F, 8, 9)  # 8 &= 9
        + _instruction(0x15, 8, offset=len(write) // 8)
        + write
    )
    start = _copy(6, 1) + _load(7, 1, _offset("bpf_iter__task_vma", "vma"))
    return _loaded(start + _unless_zero(7, body), "bpf_iter_task_vma")


def _signed(number: int) -> int:
    """Return the lowest 32 bits as a signed number, as instructions hold them."""
    return int.from_bytes((number & 0xFFFFFFFF).to_bytes(4, "little"), "little", signed=True)


def _loaded(program: bytes, kind: str) -> int:
    """Return the descriptor of a program after the kernel has verified it."""
    try:
        function = _types().function(kind)
    except LookupError:
        raise Unavailable(f"This kernel has no {kind}.") from None
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    attributes = LOAD.pack(
        *(TRACING, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence)),
        *(0, 0, 0, 0, 0, b"", 0, ITERATOR),
        *(0, 0, 0, 0, 0, 0, 0, function),
    )
    return bpf.call(PROG_LOAD, attributes)[0]


def _read(program: int, pid: int) -> bytes:
    """Return what a program writes about a process."""
    # ``struct { tid, pid, pid_fd }`` in ``union bpf_iter_link_info``.
    about = ctypes.create_string_buffer(struct.pack("=IIII", 0, pid, 0, 0))
    link, _ = bpf.call(
        LINK_CREATE,
        struct.pack("=IIIIQII", program, 0, ITERATOR, 0, ctypes.addressof(about), 16, 0),
    )
    try:
        file, _ = bpf.call(ITER_CREATE, struct.pack("=II", link, 0))
        try:
            return _contents(file)
        finally:
            os.close(file)
    finally:
        os.close(link)


def _contents(file: int) -> bytes:
    parts = []
    # A process that is gone is ESRCH, or nothing at all.
    try:
        while part := os.read(file, READ_BYTES):
            parts.append(part)
    except ProcessLookupError:
        return b""
    return b"".join(parts)
