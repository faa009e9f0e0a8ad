"""The only door to Redis.

Each operation is one command, one ``MULTI`` block or one script, so each is atomic, unless it says otherwise. All of
them raise StoreUnreachable, and only that, when Redis does not answer in time: nobody may wait long for Redis while
a tree is frozen, and no decision hangs on what Redis says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sojourn.errors import StoreUnreachable
from sojourn.settings import Settings

#: How long one command may take. Redis answers in well under a millisecond when it answers at all.
TIMEOUT_S = 2.0


class Store:
    """A connection to the cluster's Redis, made at the first command; ``tls`` are redis-py's options for it."""

    def __init__(self, url: str, tls: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._redis: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
            **(tls or {}),
        )
        self._scripts: dict[str, Any] = {}
        self._where = url.rsplit("@", 1)[-1].removeprefix("redis://").removeprefix("rediss://")

    @classmethod
    def of(cls, settings: Settings, timeout_s: float = TIMEOUT_S) -> Store:
        """Return a connection to the Redis of these settings, inside TLS if they say so."""
        return cls(settings.redis_url, settings.redis_tls, timeout_s)

    def put_fields(self, key: str, fields: Mapping[str, str], *, expire_s: int | None = None) -> None:
        """Set fields of a hash and, if asked, when the whole hash expires; one block."""
        with self._answering(), self._redis.pipeline() as block:
            block.hset(key, mapping=dict(fields))
            if expire_s is not None:
                block.expire(key, expire_s)
            block.execute()

    def write(self, commands: Iterable[Sequence[str | float]]) -> None:
        """Send commands that only write, in one round trip; a reader may see some of them before the others."""
        with self._answering(), self._redis.pipeline(transaction=False) as block:
            for command in commands:
                block.execute_command(*command)
            block.execute()

    def put_field_once(self, key: str, field: str, value: str) -> bool:
        """Set a field of a hash unless it is there; False if it was."""
        with self._answering():
            return bool(self._redis.hsetnx(key, field, value))

    def fields(self, key: str) -> dict[str, str]:
        """Return all fields of a hash; empty if there is none."""
        with self._answering():
            return dict(self._redis.hgetall(key))

    def fields_of(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return all fields of several hashes, in one round trip but not of one instant."""
        with self._answering(), self._redis.pipeline(transaction=False) as block:
            for key in keys:
                block.hgetall(key)
            return [dict(fields) for fields in block.execute()] if keys else []

    def size(self, key: str) -> int:
        """Return how many fields a hash has."""
        with self._answering():
            return int(self._redis.hlen(key))

    def field(self, key: str, field: str) -> str | None:
        """Return one field of a hash, None if it is not there."""
        with self._answering():
            value = self._redis.hget(key, field)
        return None if value is None else str(value)

    def field_of_each(self, keys: Sequence[str], field: str) -> list[str | None]:
        """Return one field of many hashes in one round trip, None where it is not there."""
        with self._answering(), self._redis.pipeline(transaction=False) as block:
            for key in keys:
                block.hget(key, field)
            return [None if value is None else str(value) for value in block.execute()]

    def put(self, key: str, value: str, *, expire_s: float) -> None:
        """Set a key that vanishes by itself."""
        with self._answering():
            self._redis.set(key, value, px=int(expire_s * 1000))

    def claim(self, key: str, expire_s: float) -> bool:
        """Set a key that vanishes by itself, unless it is there; False if it was."""
        with self._answering():
            return bool(self._redis.set(key, "", px=int(expire_s * 1000), nx=True))

    def values(self, keys: Sequence[str]) -> list[str | None]:
        """Return the values of keys, None for one that is not there; one instant for all of them."""
        with self._answering():
            return list(self._redis.mget(keys)) if keys else []

    def remove(self, key: str) -> None:
        """Delete a key; harmless if it is not there."""
        with self._answering():
            self._redis.delete(key)

    def add_to_set(self, key: str, member: str) -> None:
        """Put a member into a set."""
        with self._answering():
            self._redis.sadd(key, member)

    def remove_from_set(self, key: str, member: str) -> None:
        """Take a member out of a set; harmless if it is not there."""
        with self._answering():
            self._redis.srem(key, member)

    def members(self, key: str) -> set[str]:
        """Return all members of a set."""
        with self._answering():
            return set(self._redis.smembers(key))

    def rank(self, key: str, member: str, score: float) -> None:
        """Put a member into a sorted set, unless it is there."""
        with self._answering():
            self._redis.zadd(key, {member: score}, nx=True)

    def highest(self, key: str, count: int) -> list[str]:
        """Return the members of a sorted set with the highest scores, highest first."""
        with self._answering():
            return list(self._redis.zrevrange(key, 0, count - 1))

    def ranked_from(self, key: str, score: float) -> list[str]:
        """Return the members of a sorted set with at least this score, lowest first."""
        with self._answering():
            return list(self._redis.zrangebyscore(key, score, "+inf"))

    def forget_below(self, key: str, score: float) -> None:
        """Drop the members of a sorted set whose score is lower."""
        with self._answering():
            self._redis.zremrangebyscore(key, "-inf", f"({score}")

    def append(self, stream: str, fields: Mapping[str, str], *, keep: int) -> None:
        """Append an entry to a stream that keeps about the last ``keep`` ones."""
        with self._answering():
            self._redis.xadd(stream, dict(fields), maxlen=keep, approximate=True)

    def last_id(self, stream: str) -> str:
        """Return the id of the stream's last entry, ``0-0`` if it has none."""
        with self._answering():
            last = self._redis.xrevrange(stream, count=1)
        return str(last[0][0]) if last else "0-0"

    def read(self, stream: str, after: str, *, wait_s: float) -> list[tuple[str, dict[str, str]]]:
        """Return the entries behind ``after``, waiting for the first for at most ``wait_s`` (under the time-out)."""
        with self._answering():
            answer = self._redis.xread({stream: after}, count=1000, block=max(1, int(wait_s * 1000)))
        # Redis 7 answers with a list of pairs; the client's RESP3 answers with a mapping.
        streams = answer.items() if isinstance(answer, dict) else answer or []
        return [(name, dict(fields)) for _, entries in streams for name, fields in _flat(entries)]

    def script(self, source: str, arguments: Sequence[str | int | float] = ()) -> Any:  # noqa: ANN401  (as it answers)
        """Run a Lua script as one atomic operation and return its answer; Redis keeps the source after the first time.

        When the connection breaks, the script is sent once more, although it may have run: write it so that this is
        harmless. Its keys are named in the source, which one Redis allows and a cluster of Redis would not.
        """
        with self._answering():
            if source not in self._scripts:
                self._scripts[source] = self._redis.register_script(source)
            return self._scripts[source](args=arguments)

    def ping(self) -> None:
        """Raise StoreUnreachable if Redis does not answer."""
        with self._answering():
            self._redis.ping()

    def about(self) -> dict[str, Any]:
        """Return what Redis says of itself (INFO)."""
        with self._answering():
            return dict(self._redis.info())

    def time(self) -> float:
        """Return Redis's clock, in seconds since the epoch."""
        with self._answering():
            seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreUnreachable(
                f"Redis at {self._where} does not answer: {error}.",
                "Is it running, and are `redis_url` and its password right?",
            ) from None


def _flat(entries: Any) -> list[tuple[str, dict[str, str]]]:  # noqa: ANN401  (redis-py has no types here)
    """RESP3 nests the entries of a stream one list deeper."""
    return entries[0] if entries and isinstance(entries[0], list) else entries
