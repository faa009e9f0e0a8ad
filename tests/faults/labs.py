"""Several labs at once: one thread per lab takes work from a shared queue.

A cell mostly waits, so several labs together take little longer than one. A lab in which something
went wrong is made again, so that one failure does not cause the next.
"""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from lab.errors import LabFailed
from lab.lab import Lab
from sojourn.errors import SojournError
from tests.faults.site import HOSTS, FaultSite

DEFAULT_LABS = 3

#: Maximum attempts to start a lab before its thread gives up.
STARTS = 3


class Verdict(Protocol):
    """The outcome of a piece of work."""

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is not as promised."""


Work = TypeVar("Work")
Result = TypeVar("Result", bound=Verdict)

#: Plays one piece of work after another on one site; a new site gets a new player.
Player = Callable[[Work], Result]


@dataclass
class Labs(Generic[Work, Result]):
    """The labs ``name1``, ``name2``, … and what is played on them.

    ``keep`` is where the logs of failures go. ``encrypted`` labs have certificates.
    """

    name: str
    count: int
    player: Callable[[FaultSite], Player[Work, Result]]
    keep: Path | None = None
    encrypted: bool = False

    def play(self, works: Iterable[Work]) -> Iterator[tuple[Work, Result]]:
        """Yield each piece of work with its outcome, in the order in which they are done.

        If a lab cannot be started, raise its error.
        """
        self._waiting: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Work, Result] | BaseException | None] = (
            queue.SimpleQueue()
        )
        self._stopping = threading.Event()
        for work in works:
            self._waiting.put(work)
        threads = [
            threading.Thread(target=self._serve, args=(number,))
            for number in range(1, self.count + 1)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._gathered(len(threads))
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def _gathered(self, serving: int) -> Iterator[tuple[Work, Result]]:
        while serving:
            done = self._done.get()
            if isinstance(done, BaseException):
                raise done
            if done is None:
                serving -= 1
            else:
                yield done

    def _serve(self, number: int) -> None:
        lab = Lab(f"{self.name}{number}")
        try:
            self._play_on(lab)
        except BaseException as error:  # noqa: BLE001  (raised again by the thread that waits)
            self._done.put(error)
        finally:
            lab.down()
            self._done.put(None)

    def _play_on(self, lab: Lab) -> None:
        player: Player[Work, Result] | None = None
        while not self._stopping.is_set():
            try:
                work = self._waiting.get_nowait()
            except queue.Empty:
                return
            player = player or self.player(_started(lab, encrypted=self.encrypted))
            result = player(work)
            self._done.put((work, result))
            if result.wrong:
                self._keep(lab, work)
                player = None

    def _keep(self, lab: Lab, work: Work) -> None:
        """Keep the hosts' logs and journals, and CRIU's logs since the last boot."""
        if self.keep is None:
            return
        for name in HOSTS:
            host, place = lab.host(name), self.keep / str(work).replace("/", "-") / name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copytree(host.disk / "var/log/sojourn", place / "log", dirs_exist_ok=True)
            shutil.copytree(host.plan.state_disk(name), place / "state", dirs_exist_ok=True)
            if host.is_up:
                listing = "tail -n 60 /run/sojourn/*/work/*; ps -eo pid,stat,args; findmnt -t tmpfs"
                (place / "run.txt").write_text(host.run(["sh", "-c", listing], check=False).stdout)


def _started(lab: Lab, *, encrypted: bool) -> FaultSite:
    for _ in range(STARTS - 1):
        try:
            return FaultSite.fresh(lab, encrypted=encrypted)
        except (LabFailed, SojournError):
            continue
    return FaultSite.fresh(lab, encrypted=encrypted)
