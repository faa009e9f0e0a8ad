"""What a pager has received and read, in a file that is mapped: it outlives the pager.

Messages of userfaultfd(2) are gone once they are read, and with them which pages are missing. So
the kernel writes them right into this file: there is no instant at which a message has been read
and is in no memory but that of a process which may be killed. Whoever takes over reads the record
from its begin and comes to the same state.

One record has 32 bytes, as a message has. The first one is the head:

==========  ======================================================================================
head        how many bytes are valid (8 bytes); whether everything is in place (1 byte, at 8)
``SPACE``   an address space: 1, PID, descriptor
``READ``    2, the number of an address space, in the order in which they came; the messages that
            were read from its descriptor follow
``END``     3, the number of an address space that has ended: its descriptor may be another's now
==========  ======================================================================================

The file is written by one process at a time, and read by its successor. Its directory belongs to
root alone, so what is in it is ours.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import ChannelFailed
from sojourn.system.userfaultfd import Event, Message

RECORD = 32

#: A record of ours: its kind, and two numbers. Kinds of messages begin at 0x12.
OWN = struct.Struct("=B7x3Q")
SPACE, READ, END = 1, 2, 3

#: How many messages are read at once, and how much the file can hold: eight million of them.
AT_ONCE = 64

#: How much of it is allocated ahead.
ROOM = 2**20
FILE_BYTES = 2**28

#: Native, not standard: the eight bytes are written in one piece.
TAIL = struct.Struct("@Q")
DONE_AT = TAIL.size


@dataclass(frozen=True)
class Space:
    """An address space that came from CRIU: its PID, in its own PID namespace, and a descriptor."""

    pid: int
    descriptor: int


@dataclass(frozen=True)
class Received:
    """A message, and the number of the address space that it is of."""

    space: int
    message: Message


@dataclass(frozen=True)
class Ended:
    """An address space, by its number, is no more."""

    space: int


class Record:
    """The record of one pager."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. It is sparse: only what is used takes memory."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, FILE_BYTES)
        self._memory = mmap.mmap(self._file, FILE_BYTES)
        self._room = 0
        self._have_room(RECORD)
        if not self._tail:
            self._set_tail(RECORD)

    @property
    def done(self) -> bool:
        """Whether everything is in place: nobody needs to take over."""
        return bool(self._memory[DONE_AT])

    def finish(self) -> None:
        """Record that everything is in place."""
        self._memory[DONE_AT] = 1

    def add(self, space: Space) -> None:
        """Record an address space. Raises OSError if the file system is full."""
        self._append(SPACE, space.pid, space.descriptor)

    def end(self, space: int) -> None:
        """Record that an address space has ended. Raises OSError if the file system is full."""
        self._append(END, space, 0)

    def read(self, space: int, descriptor: int) -> list[Message]:
        """Read what waits at a descriptor; an empty list if nothing does.

        Faults need no record: a thread whose fault was read and not served waits, and is reported
        anew once it is woken. Raises ChannelFailed if the file is full.
        """
        begin = self._tail + RECORD
        end = begin + AT_ONCE * RECORD
        if end > FILE_BYTES:
            raise ChannelFailed("The process changed its mappings eight million times meanwhile.")
        self._have_room(end)
        self._memory[begin:end] = bytes(end - begin)
        self._put(self._tail, READ, space, 0)
        with memoryview(self._memory) as memory, memory[begin:end] as place:
            try:
                os.readv(descriptor, [place])
            except BlockingIOError:
                return []
        return self._keep()

    def replay(self) -> Iterator[Space | Received | Ended]:
        """Yield all that was recorded, in order, also what was being read when the writer died."""
        self._keep()
        space = 0
        for at in range(RECORD, self._tail, RECORD):
            kind, first, second, _ = OWN.unpack_from(self._memory, at)
            if kind == SPACE:
                yield Space(first, second)
            elif kind == READ:
                space = first
            elif kind == END:
                yield Ended(first)
            else:
                yield Received(space, self._message(at))

    def _append(self, kind: int, first: int, second: int) -> None:
        self._have_room(self._tail + 2 * RECORD)
        self._put(self._tail, kind, first, second)
        self._set_tail(self._tail + RECORD)

    def _have_room(self, end: int) -> None:
        """Have the file's memory allocated up to here: a full file system would kill who writes.

        Raises OSError while it is full; nothing has been read then.
        """
        if end > self._room:
            os.posix_fallocate(self._file, self._room, end + ROOM - self._room)
            self._room = end + ROOM

    def _keep(self) -> list[Message]:
        """Return the messages behind the valid part, and make them part of it if they matter."""
        messages, at = [], self._tail + RECORD
        while at < FILE_BYTES and self._memory[at]:
            messages.append(self._message(at))
            at += RECORD
        if any(message.event is not Event.FAULT for message in messages):
            self._set_tail(at)
        return messages

    def _message(self, at: int) -> Message:
        return Message.parse(self._memory[at : at + RECORD])

    def _put(self, at: int, kind: int, first: int, second: int) -> None:
        OWN.pack_into(self._memory, at, kind, first, second, 0)

    @property
    def _tail(self) -> int:
        return int(TAIL.unpack_from(self._memory)[0])

    def _set_tail(self, tail: int) -> None:
        TAIL.pack_into(self._memory, 0, tail)
