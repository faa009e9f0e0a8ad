"""Kombu's transport over Redis, whose channels keep a connection and check what they take.

Kombu makes a client for each message, which costs more than the message's own command, and takes a
connection from its pool, which asks the socket each time whether it is still good
(``sojourn.cluster.kept``). And it believes whatever Redis holds, where a lane's border
(``workflows.border``) does not. Only workers use this one: Flower knows brokers by their transport.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

from kombu.transport import TRANSPORT_ALIASES, redis

from sojourn.cluster.kept import AGAIN_S, REFUSALS, Kept, pausing
from sojourn.model import Untyped
from workflows.border import Answer, Border

#: The name of this transport for Kombu, and in logs.
NAME = "sojourn+redis"

#: How many messages in a row may be refused before the lane's loop looks after everything else.
REFUSED_AT_ONCE = 500


#: For how long the answer to a call that was refused is kept, in seconds.
REPLY_KEPT_S = 3600


class Channel(redis.Channel):  # type: ignore[misc, unused-ignore]  # Kombu has no types
    """A channel that keeps its client for as long as its pool of connections.

    What it takes is checked by ``border``, if this process has one.
    """

    border: ClassVar[Border | None] = None

    _heard = float("-inf")
    _kept: tuple[Untyped, Kept] | None = None

    @cached_property
    def client(self) -> Untyped:
        """The client that takes messages from queues, after the border has checked them."""
        client = super().client
        if self.border:
            client.parse_response = pausing(client.parse_response)
            client.set_response_callback("BRPOP", self._first_admitted)
        return client

    @cached_property
    def subclient(self) -> Untyped:
        """The connection for remote control, after the border has checked what comes by it."""
        listener = super().subclient
        if self.border:
            listener.parse_response = _checked(listener.parse_response, self.border)
        return listener

    @property
    def silent_s(self) -> float:
        """For how long Redis has not answered whether a queue holds anything."""
        return time.monotonic() - self._heard

    def _first_admitted(self, answer: Answer) -> Answer:
        """Return the answer to a BRPOP, or the next in the queue that the border passes.

        To ask by BRPOP again would cost a turn of the lane's loop for each that was refused.
        """
        assert self.border
        self._heard = time.monotonic()
        admitted = self.border.message(answer)
        with self.conn_or_acquire() as client:
            for _ in range(REFUSED_AT_ONCE):
                if admitted or not answer:
                    break
                self._reply(client, answer)
                queue, raw = answer[0], client.rpop(answer[0])
                answer = None if raw is None else (queue, raw)
                admitted = self.border.message(answer)
        return admitted

    def _reply(self, client: Untyped, refused: Answer) -> None:
        """Answer a call that was refused, unless its result is there already."""
        assert self.border
        if reply := self.border.reply(refused):
            key, text = reply
            client.set(key, text, ex=REPLY_KEPT_S, nx=True)
            client.publish(key, text)

    @contextlib.contextmanager
    def conn_or_acquire(self, client: Untyped = None) -> Iterator[Untyped]:
        """Yield ``client``, or the one that is kept."""
        if client:
            yield client
            return
        kept = self._kept_of(self.pool)
        try:
            yield kept.client()
        except REFUSALS:
            time.sleep(AGAIN_S)
            raise
        except BaseException:
            # An answer may be on its way that is not for the next command.
            kept.disconnect()
            raise

    def _kept_of(self, pool: Untyped) -> Kept:
        if self._kept is None or self._kept[0] is not pool:
            self._kept = pool, Kept(self.Client(connection_pool=pool))
        return self._kept[1]


def _checked(parse: Untyped, border: Border) -> Untyped:
    def checked(*args: Untyped, **options: Untyped) -> Untyped:
        return border.control(parse(*args, **options))

    return checked


class Transport(redis.Transport):  # type: ignore[misc, unused-ignore]  # Kombu has no types
    """Redis as Kombu knows it, with such channels."""

    Channel = Channel


def keep_connections(app: Untyped) -> None:
    """Let this process, and what it forks, send and receive messages by this transport."""
    TRANSPORT_ALIASES[NAME] = f"{__name__}:Transport"
    app.conf.update(broker_transport=NAME)


def check_by(border: Border) -> None:
    """Let this process take only the messages that this border passes."""
    Channel.border = border
