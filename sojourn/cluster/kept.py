"""A client of Redis with a connection that it keeps.

A client of redis-py takes a connection from a pool for each command, and asks the socket each time
whether it is still good: that costs as much as the command. Here each thread of each process keeps
one, and asks only if it has not been used for an instant: Redis may have been started again since.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import redis

from sojourn.model import Untyped

#: For how long a connection counts as good after it was used, in seconds: Redis does not start
#: faster.
GOOD_FOR_S = 0.01

#: By what Redis refuses a command: it is full, read-only or loading, or a key is of another type.
REFUSALS = (redis.ResponseError,)

#: How long to wait after a refusal, in seconds, before the command is tried again.
AGAIN_S = 1.0


class Kept:
    """The clients that threads keep, made of one that takes its connections from a pool."""

    def __init__(self, pooled: Untyped) -> None:
        self._pooled = pooled
        self._own = threading.local()

    def client(self) -> Untyped:
        """Return the client of this thread; the first call connects it."""
        now = time.monotonic()
        # A connection must not cross a fork: parent and child would read each other's answers.
        if getattr(self._own, "process", None) != os.getpid():
            self._own.client, self._own.process = self._pooled.client(), os.getpid()
        elif now > self._own.used + GOOD_FOR_S and _has_ended(self._own.client.connection):
            self.disconnect()
        self._own.used = now
        return self._own.client

    def disconnect(self) -> None:
        """Close this thread's connection, since an answer to an earlier command may be under way.

        The next command opens it again.
        """
        if client := getattr(self._own, "client", None):
            client.connection.disconnect()


def pausing(parse: Callable[..., Untyped]) -> Callable[..., Untyped]:
    """Return a reader of answers that waits for ``AGAIN_S`` before it raises a refusal."""

    def parsed(*args: Untyped, **options: Untyped) -> Untyped:
        try:
            return parse(*args, **options)
        except REFUSALS:
            time.sleep(AGAIN_S)
            raise

    return parsed


def _has_ended(connection: Untyped) -> bool:
    """Return whether Redis has closed a connection, or something is in it that nobody asked for."""
    try:
        return bool(connection.can_read())
    except (redis.ConnectionError, OSError):
        return True
