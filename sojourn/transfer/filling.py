"""Putting the missing pages of one address space into place, wherever they come from."""

from __future__ import annotations

import contextlib
import errno
from typing import Final, Protocol

from sojourn.criu.pagemap import PAGE, Run
from sojourn.system import userfaultfd
from sojourn.system.userfaultfd import Message
from sojourn.transfer.address_space import AddressSpace
from sojourn.transfer.page_store import PageStore

#: How much comes with the page for which a thread waits: what is next to it is wanted soon.
AROUND_A_FAULT = 2**16


class Pages(Protocol):
    """Pages that can be put into place, by where they come from: a page store, or what arrived."""

    def held(self, offset: int, length: int) -> tuple[int, int]:
        """Return how many bytes from here on were given back, and how many behind those there are.

        Both are cut at ``length``.
        """

    def address(self, offset: int, length: int) -> int:
        """Return where in this process they are."""


class Filling:
    """An address space on its way to be complete.

    ``pid`` is that of the original, in its own PID namespace, and ``store`` is None where the
    original has the pages still: then ``put`` puts into place what has come from there.

    ``wiped`` is what a child finds zero (``MADV_WIPEONFORK`` of madvise(2)). ``family`` are the
    fillings that began as this one and parted by fork(2): they share the page store, whose memory
    can be given back only while one of them needs it.
    """

    def __init__(
        self,
        descriptor: int,
        pid: int,
        missing: AddressSpace,
        store: PageStore | None,
        wiped: AddressSpace,
        family: list[Filling] | None = None,
    ) -> None:
        """Begin; ``descriptor`` is the userfaultfd(2) of the process."""
        self.descriptor: Final = descriptor
        self.pid: Final = pid
        self.missing = missing
        self._store, self._wiped = store, wiped
        self._family = family if family is not None else []
        self._family.append(self)
        #: Parts of the page store that are in place and could not be given back yet.
        self._placed: list[tuple[int, int]] = []
        #: Whether the process has ended, or runs another program: nothing is missing any more.
        self.gone = False

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to put into place."""
        return self.gone or self.missing.next() is None

    @property
    def missing_bytes(self) -> int:
        """How much is left to put into place."""
        return 0 if self.gone else self.missing.length

    def fork(self, descriptor: int) -> Filling:
        """Return the filling of a child, whose address space begins as a copy of this one."""
        missing = self.missing.fork()
        for run in self._wiped.runs:
            missing.forget(run.address, run.address + run.length)
        wiped = self._wiped.fork()
        return Filling(descriptor, self.pid, missing, self._store, wiped, self._family)

    def end(self) -> None:
        """Leave the others alone: the process has ended, and its descriptor will be closed."""
        self.gone = True
        self._family.remove(self)

    def follow(self, message: Message) -> None:
        """Follow a change of the mappings."""
        self.missing.apply(message)
        self._wiped.apply(message)

    def serve(self, address: int, *, committed: bool, length: int = AROUND_A_FAULT) -> Run | None:
        """Put the page into place that a thread waits for, with what follows. Safe to repeat.

        Where that cannot be done yet the thread is woken: it comes back, and so does the message.
        Return what must come from the original first; then the thread waits on.
        """
        page = address & -PAGE
        run = self.missing.at(page)
        if run is None:
            done = self._zero(page)
        elif self._store is None:
            return _cut(run, length)
        else:
            done = self._place(_cut(run, length), self._store, committed=committed)
        if not done:
            self._wake(page, PAGE)
        return None

    def fill(self, length: int, *, committed: bool) -> bool:
        """Put up to ``length`` bytes into place, the lowest that are missing.

        Return whether that was possible: if not, messages must be read first, or CRIU has not made
        the mapping yet.
        """
        run = self.missing.next()
        if run is None or self._store is None:
            return False
        return self._place(_cut(run, length), self._store, committed=committed)

    def put(self, run: Run, pages: Pages, *, committed: bool) -> bool:
        """Put pages of the original into place, as far as they are still missing where they were.

        Return False if messages must be read first. What has moved since the pages were asked for
        is asked for anew.
        """
        at, end = run.address, run.address + run.length
        while not self.gone and (part := self.missing.from_address(at)) and part.address < end:
            part = _cut(part, end - part.address)
            if part.offset - part.address != run.offset - run.address:
                at = part.address + part.length
            elif not self._place(part, pages, committed=committed):
                return False
        # Whoever waits where nothing was put must be reported once more.
        self._wake(run.address, run.length)
        return True

    def wake_all(self) -> None:
        """Have all threads that wait look again."""
        self._wake(userfaultfd.LOWEST, userfaultfd.HIGHEST - userfaultfd.LOWEST)

    def _place(self, run: Run, pages: Pages, *, committed: bool) -> bool:
        given_back, there = pages.held(run.offset, run.length)
        if given_back:
            self._settled(run, given_back)
            return True
        run = _cut(run, there)
        source = pages.address(run.offset, run.length)
        try:
            placed = userfaultfd.copy(self.descriptor, run.address, source, run.length)
        except OSError as error:
            return self._refused(error, run, pages, committed=committed)
        self.missing.forget(run.address, run.address + placed)
        if committed and self._store is not None:
            self._give_back(self._store, run.offset, placed)
        return True

    def _give_back(self, store: PageStore, offset: int, length: int) -> None:
        """Free what is in place here, as soon as no relative needs it."""
        self._placed.append((offset, length))
        if self._is_alone():
            for part in self._placed:
                store.give_back(*part)
            self._placed.clear()

    def _refused(self, error: OSError, run: Run, pages: Pages, *, committed: bool) -> bool:
        """Do what follows from the kernel's answer; return whether there was progress."""
        if error.errno == errno.EEXIST:
            self._settled(run, PAGE)
            return True
        if error.errno == errno.ENOENT and run.length > PAGE:
            # The program has divided the mapping: it must be found where.
            return self._place(_cut(run, run.length // 2 & -PAGE), pages, committed=committed)
        if error.errno == errno.ENOENT and committed:
            # It is not mapped, such as in a child of which madvise(2) keeps it away.
            self._settled(run, PAGE)
            return True
        if error.errno in userfaultfd.GONE:
            self.gone = True
            return True
        if error.errno in {errno.EAGAIN, errno.ENOENT, errno.ENOMEM}:
            return False
        raise error

    def _settled(self, run: Run, length: int) -> None:
        """Note that a part was in place already; a thread may have waited for it."""
        self.missing.forget(run.address, run.address + length)
        self._wake(run.address, length)

    def _zero(self, page: int) -> bool:
        """Put zeros into place: the process had nothing there."""
        try:
            userfaultfd.zero(self.descriptor, page, PAGE)
        except OSError as error:
            self.gone = self.gone or error.errno in userfaultfd.GONE
            return self.gone
        return True

    def _wake(self, address: int, length: int) -> None:
        if self.gone:
            return  # the descriptor may be another's by now
        with contextlib.suppress(OSError):  # the process is gone
            userfaultfd.wake(self.descriptor, address, length)

    def _is_alone(self) -> bool:
        return all(other is self or other._needs_nothing() for other in self._family)

    def _needs_nothing(self) -> bool:
        return self.is_complete or userfaultfd.is_gone(self.descriptor)


def _cut(run: Run, length: int) -> Run:
    return Run(run.address, min(run.length, length), run.offset)
