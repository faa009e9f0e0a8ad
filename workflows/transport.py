"""Kombu's way to Redis, with one client per channel: Kombu makes one anew for each message, each event and each answer.

Making one costs several times what sending a small message costs, and it holds nothing but its pool of connections.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis


class Channel(redis.Channel):  # type: ignore[misc, unused-ignore]  # Kombu has no types
    """A channel that keeps its client as long as its pool."""

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401  (Kombu's signature)
        if asynchronous:  # those are kept by Kombu
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call, unused-ignore]
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()  # type: ignore[no-untyped-call, unused-ignore]
        return self._kept


class Transport(redis.Transport):  # type: ignore[misc, unused-ignore]  # Kombu has no types
    """Redis as Kombu knows it, with such channels."""

    Channel = Channel


def install() -> None:
    """Let addresses of Redis mean this transport, from the next connection on."""
    TRANSPORT_ALIASES.update(redis=f"{__name__}:Transport", rediss=f"{__name__}:Transport")
