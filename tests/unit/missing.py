"""Memory of a real process whose pages are missing, by userfaultfd(2)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.criu.pagemap import PAGE, Run
from sojourn.system import process
from sojourn.transfer.address_space import AddressSpace
from sojourn.transfer.filling import Filling
from sojourn.transfer.page_store import PageStore
from sojourn.transfer.pager_record import Record, Space

#: userfaultfd(2) by machine; ``UFFDIO_API`` with all events, ``UFFDIO_REGISTER`` for missing pages.
USERFAULTFD = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
API, API_VERSION, REGISTER, MISSING = 0xC018AA3F, 0xAA, 0xC020AA00, 1
EVENTS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6

PAGES = 64

#: What a child waits for.
GO = {signal.SIGUSR1}

libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Child:
    """A process with memory that is missing, and what puts it into place."""

    pid: int
    address: int
    descriptor: int
    answers: int
    store: PageStore
    record: Record

    def filling(self, *, wiped: int = 0) -> Filling:
        """Return the filling of all its memory; children find the first ``wiped`` pages zero."""
        missing = AddressSpace.of([Run(self.address, PAGES * PAGE, 0)])
        zero = AddressSpace.of([Run(self.address, wiped * PAGE, 0)] if wiped else [])
        return Filling(self.descriptor, self.pid, missing, self.store, zero)

    def remote(self) -> Filling:
        """Return the same with the pages in an original, where they have these addresses."""
        missing = AddressSpace.of([Run(self.address, PAGES * PAGE, self.address)])
        return Filling(self.descriptor, self.pid, missing, None, AddressSpace.of([]))

    def answer(self) -> bytes:
        """Return what the process has found."""
        return os.read(self.answers, 64)


Act = Callable[[int], bytes]


def missing_memory() -> tuple[int, int]:
    """Map memory whose pages are missing; return its address and the descriptor."""
    descriptor = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    fcntl.ioctl(descriptor, API, bytearray(struct.pack("=3Q", API_VERSION, EVENTS, 0)))
    memory = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    globals()["kept"] = memory
    range_ = bytearray(struct.pack("=4Q", address, PAGES * PAGE, MISSING, 0))
    fcntl.ioctl(descriptor, REGISTER, range_)
    return address, descriptor


@contextlib.contextmanager
def starter(tmp_path: Path) -> Iterator[Callable[[Act], Child]]:
    """Yield what starts a child that does something with its memory, and answers."""
    children: list[int] = []

    def begin(act: Act) -> Child:
        pages = tmp_path / "pages-1.img"
        pages.write_bytes(b"".join(struct.pack("=Q", page + 1) * 512 for page in range(PAGES)))
        reader, writer = os.pipe()
        places, place = os.pipe()
        pid = os.fork()
        if pid == 0:
            address, descriptor = missing_memory()
            os.write(place, struct.pack("=2Q", address, descriptor))
            signal.sigwait(GO)
            os.write(writer, act(address))
            os._exit(0)
        children.append(pid)
        address, number = struct.unpack("=2Q", os.read(places, 16))
        with process.borrowed(pid, number) as copy:
            assert copy is not None
            descriptor = os.dup(copy)
        child = Child(
            pid, address, descriptor, reader, PageStore(pages), Record(tmp_path / "record")
        )
        child.record.add(Space(pid, descriptor))
        os.kill(pid, signal.SIGUSR1)
        return child

    # Blocked, so that a child which does not wait yet still gets it.
    signal.pthread_sigmask(signal.SIG_BLOCK, GO)
    yield begin
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GO)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def word(address: int, page: int) -> int:
    """Read the number of a page, in the child."""
    return int(struct.unpack("=Q", ctypes.string_at(address + page * PAGE, 8))[0])
