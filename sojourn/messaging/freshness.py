"""Each message is for one queue, for a limited time, and is begun once.

A signature shows that a message was ours, and not that it is still meant: whoever reads Redis can
keep one and put it back, or put it into another host's queue. So a message names its queue and
until when it is good, under its signature, and a host remembers which ones it has begun until they
are no good any more. That is kept in files beside the journal, since Redis is not trusted: one
empty file for each message, in a directory for each hour.

Messages of a host's own queue may wait for a host that is down, for a day. Those of the shared
queue, which any worker takes, are good for an hour, since each host remembers only its own; what
they begin is recognised by the hosts that it is about, by the ids that follow from theirs.

Whatever is refused here has no effect but a line of the log and a count.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from pathlib import Path

from sojourn.model import Json

QUEUE, UNTIL = "sojourn-queue", "sojourn-until"

#: For how long a message is good, in a host's own queue and in the shared one, in seconds. Clocks
#: of two hosts may differ, by far less.
GOOD_FOR_S, SHARED_GOOD_FOR_S = 86_400, 3600

#: How much time the messages of one directory cover, in seconds.
HOUR_S = 3600


def stamp(headers: Json, queue: str, *, shared: bool) -> None:
    """Write into a message's headers where it goes and how long it is good; they are signed then.

    What an earlier message has left there is replaced: Celery hands headers on.
    """
    headers[QUEUE] = queue
    headers[UNTIL] = time.time() + (SHARED_GOOD_FOR_S if shared else GOOD_FOR_S)


def is_for(headers: Json, queue: str) -> bool:
    """Whether a message is for the queue that it was taken from."""
    return bool(headers.get(QUEUE) == queue)


def is_late(headers: Json) -> bool:
    """Whether a message is no good any more."""
    until = headers.get(UNTIL)
    return not isinstance(until, int | float) or until < time.time()


class Taken:
    """Which messages a host has begun, in files of a directory; any process may ask."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def is_first(self, message: str, until: float) -> bool:
        """Note that a message is begun; False if it was before. Raises OSError."""
        hour = self._directory / str(int(until // HOUR_S))
        # An id may be any text, since programs choose the ids of their tasks.
        name = hashlib.sha256(message.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            return _made(hour / name)
        except FileNotFoundError:
            hour.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _made(hour / name)

    def forget_late_ones(self) -> None:
        """Remove what is no good any more and would be refused for that."""
        for hour in self._directory.glob("*"):
            with contextlib.suppress(ValueError):
                if (int(hour.name) + 1) * HOUR_S < time.time():
                    shutil.rmtree(hour, ignore_errors=True)


def _made(file: Path) -> bool:
    try:
        file.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return False
    return True
