"""The only door to Redis.

Each operation is one command, one ``MULTI`` block or one script, so each is atomic unless its
docstring denies that. All of them raise StoreUnreachable, and only that, if Redis does not answer
in time: nobody may wait long for Redis while a tree is frozen, and no decision depends on what
Redis answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sojourn.cluster.kept import Kept
from sojourn.errors import StoreUnreachable
from sojourn.model import Untyped
from sojourn.security.seal import Seal
from sojourn.settings import Settings

#: How long one command may take. Redis answers in well under a millisecond when it answers at all.
TIMEOUT_S = 2.0

#: The seal of whoever has no key, such as a program that only looks.
NO_KEY = Seal("", "nobody")

#: How many entries of a hash or a set one command reads, where there may be more than ours.
SCANNED = 1000


class Store:
    """A connection to the cluster's Redis, made at the first command.

    Each thread keeps one of its own. ``tls`` holds redis-py's options for TLS. ``seal`` is that of
    the records which are kept here and acted upon (``sojourn.cluster.sealed``).
    """

    def __init__(
        self,
        url: str,
        tls: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
        seal: Seal = NO_KEY,
    ) -> None:
        self.seal = seal
        self._pooled: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            # Somebody may have written bytes that are no UTF-8; to read the others must not fail.
            encoding_errors="replace",
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # A connection that Redis has closed meanwhile is found at the next command.
            retry=Retry(NoBackoff(), 1),
            **(tls or {}),
        )
        self._kept = Kept(self._pooled)
        self._scripts: dict[str, Any] = {}
        # For messages: the address without the password, which stands before the last ``@``.
        self._where = url.rsplit("@", 1)[-1].removeprefix("redis://").removeprefix("rediss://")

    @classmethod
    def of(cls, settings: Settings, timeout_s: float = TIMEOUT_S) -> Store:
        """Return a connection to the Redis of these settings, inside TLS if they have it."""
        return cls(settings.redis_url, settings.redis_tls, timeout_s, seal_of(settings))

    def put_fields(
        self, key: str, fields: Mapping[str, str], *, expire_s: int | None = None
    ) -> None:
        """Set fields of a hash and, with ``expire_s``, when the whole hash expires."""
        with self._answering(), self._redis.pipeline() as block:
            block.hset(key, mapping=dict(fields))
            if expire_s is not None:
                block.expire(key, expire_s)
            block.execute()

    def write(self, commands: Iterable[Sequence[str | float]]) -> None:
        """Send commands that only write, in one round trip; a reader may see some before others."""
        # Without MULTI: these are copies for people, or writes that are safe to repeat. Each step
        # writes twice, and a pipeline would cost three times as much as its connection by itself.
        written = list(commands)
        with self._answering():
            connection = self._redis.connection
            connection.retry.call_with_retry(
                lambda: _round_trip(connection, written), lambda _: connection.disconnect()
            )

    def put_field_once(self, key: str, field: str, value: str) -> bool:
        """Set a field of a hash unless it exists; False if it did."""
        with self._answering():
            return bool(self._redis.hsetnx(key, field, value))

    def fields(self, key: str) -> dict[str, str]:
        """Return all fields of a hash; empty if there is none."""
        return dict(self._read({}, "hgetall", key))

    def some_fields(self, key: str, most: int) -> dict[str, str]:
        """Return fields of a hash, all if it has at most so many. They are not of one instant."""
        found: dict[str, str] = {}
        cursor = -1
        while cursor and len(found) < most:
            cursor, more = self._read((0, {}), "hscan", key, max(0, cursor), None, SCANNED)
            found |= more
        return dict(islice(found.items(), most))

    def fields_of(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Return all fields of several hashes, read in one round trip but not at one instant."""
        with self._answering(), self._redis.pipeline(transaction=False) as block:
            for key in keys:
                block.hgetall(key)
            return [dict(fields) for fields in _answers(block, {})] if keys else []

    def size(self, key: str) -> int:
        """Return how many fields a hash has."""
        return int(self._read(0, "hlen", key))

    def field(self, key: str, field: str) -> str | None:
        """Return one field of a hash, None if it does not exist."""
        value = self._read(None, "hget", key, field)
        return None if value is None else str(value)

    def field_of_each(self, keys: Sequence[str], field: str) -> list[str | None]:
        """Return one field of many hashes, None where it does not exist.

        They are read in one round trip, but not at one instant.
        """
        with self._answering(), self._redis.pipeline(transaction=False) as block:
            for key in keys:
                block.hget(key, field)
            return [None if value is None else str(value) for value in _answers(block, None)]

    def put(self, key: str, value: str, *, expire_s: float) -> None:
        """Set a key that expires."""
        with self._answering():
            self._redis.set(key, value, px=int(expire_s * 1000))

    def claim(self, key: str, expire_s: float) -> bool:
        """Set a key that expires unless it exists; False if it did."""
        with self._answering():
            return bool(self._redis.set(key, "", px=int(expire_s * 1000), nx=True))

    def values(self, keys: Sequence[str]) -> list[str | None]:
        """Return the values of keys at one instant, None for one that does not exist."""
        with self._answering():
            return list(self._redis.mget(keys)) if keys else []

    def add_to_set(self, key: str, member: str) -> None:
        """Add a member to a set; safe to repeat."""
        with self._answering():
            self._redis.sadd(key, member)

    def remove_from_set(self, key: str, member: str) -> None:
        """Remove a member from a set; safe to repeat."""
        with self._answering():
            self._redis.srem(key, member)

    def members(self, key: str) -> set[str]:
        """Return all members of a set."""
        return set(self._read((), "smembers", key))

    def some_members(self, key: str, most: int) -> set[str]:
        """Return members of a set, all if it has at most so many. They are not of one instant."""
        found: set[str] = set()
        cursor = -1
        while cursor and len(found) < most:
            cursor, more = self._read((0, ()), "sscan", key, max(0, cursor), None, SCANNED)
            found.update(more)
        return set(islice(found, most))

    def is_member(self, key: str, member: str) -> bool:
        """Whether a set has a member."""
        return bool(self._read(False, "sismember", key, member))

    def holds_hash(self, key: str) -> bool:
        """Whether a key holds a hash; False if it does not exist, or holds something else."""
        with self._answering():
            return bool(self._redis.type(key) == "hash")

    def delete(self, key: str) -> None:
        """Delete a key, whatever it holds; safe to repeat."""
        with self._answering():
            self._redis.delete(key)

    def rank(self, key: str, member: str, score: float) -> None:
        """Add a member to a sorted set; one that is there keeps its score."""
        with self._answering():
            self._redis.zadd(key, {member: score}, nx=True)

    def unrank(self, key: str, member: str) -> None:
        """Remove a member from a sorted set; safe to repeat."""
        with self._answering():
            self._redis.zrem(key, member)

    def highest(self, key: str, count: int, skip: int = 0) -> list[str]:
        """Return members of a sorted set, the highest scores first, after so many others."""
        return list(self._read([], "zrevrange", key, skip, skip + count - 1))

    def lowest(self, key: str, count: int) -> list[str]:
        """Return the members of a sorted set with the lowest scores, lowest first."""
        return list(self._read([], "zrange", key, 0, count - 1))

    def ranked_from(self, key: str, score: float) -> list[str]:
        """Return the members of a sorted set with at least this score, lowest first."""
        return list(self._read([], "zrangebyscore", key, score, "+inf"))

    def last_id(self, stream: str) -> str:
        """Return the id of the stream's last entry, ``0-0`` if it has none."""
        with self._answering():
            last = self._redis.xrevrange(stream, count=1)
        return str(last[0][0]) if last else "0-0"

    def newest(self, stream: str, count: int) -> list[dict[str, str]]:
        """Return the last entries of a stream, newest first."""
        return [dict(fields) for _, fields in self._read([], "xrevrange", stream, "+", "-", count)]

    def read(self, stream: str, after: str, *, wait_s: float) -> list[tuple[str, dict[str, str]]]:
        """Return the entries behind ``after``; wait at most ``wait_s`` for the first one.

        ``wait_s`` must be less than the connection's time-out.
        """
        with self._answering():
            answer = self._redis.xread(
                {stream: after}, count=1000, block=max(1, int(wait_s * 1000))
            )
        # By RESP2 the answer is a list of pairs, by RESP3 a mapping.
        streams = answer.items() if isinstance(answer, dict) else answer or []
        return [(name, dict(fields)) for _, entries in streams for name, fields in _flat(entries)]

    def script(self, source: str, arguments: Sequence[str | int | float] = ()) -> Untyped:
        """Run a Lua script as one atomic operation and return its answer.

        If the connection breaks, the script is sent once more although it may have run: it must be
        safe to repeat. Redis keeps the source after the first time, so only its hash is sent.
        """
        with self._answering():
            if source not in self._scripts:
                self._scripts[source] = self._pooled.register_script(source)
            return self._scripts[source](args=arguments, client=self._redis)

    def ping(self) -> None:
        """Raise StoreUnreachable if Redis does not answer."""
        with self._answering():
            self._redis.ping()

    def about(self) -> dict[str, Any]:
        """Return what Redis reports about itself (INFO)."""
        with self._answering():
            return dict(self._redis.info())

    def time(self) -> float:
        """Return Redis's clock, in seconds since the epoch."""
        with self._answering():
            seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def _read(self, nothing: Untyped, command: str, *arguments: Untyped) -> Untyped:
        """Return the answer to a command that reads, ``nothing`` where a key is of another type.

        Such a key is none of ours, as if ours did not exist.
        """
        with self._answering():
            try:
                return getattr(self._redis, command)(*arguments)
            except redis.ResponseError as error:
                return _nothing_for(error, nothing)

    @property
    def _redis(self) -> Untyped:
        """The client of this thread, with the connection that it keeps."""
        return self._kept.client()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreUnreachable(
                f"Redis at {self._where} does not answer: {error}.",
                "Is it running, and are `redis_url` and its password right?",
            ) from None
        except BaseException:
            # An alarm came in the middle: the next command must not get this one's answer.
            self._kept.disconnect()
            raise


def seal_of(settings: Settings) -> Seal:
    """Return the seal of a host with these settings."""
    return Seal(settings.key.get_secret_value(), settings.host)


def _nothing_for(error: redis.ResponseError, nothing: Untyped) -> Untyped:
    """Return ``nothing`` if a key was of another type than the command expects, else raise."""
    if not str(error).startswith("WRONGTYPE"):
        raise error
    return nothing


def _answers(block: Untyped, nothing: Untyped) -> list[Untyped]:
    """Run a pipeline of reads; return ``nothing`` in the place of each key of another type."""
    return [
        _nothing_for(answer, nothing) if isinstance(answer, redis.ResponseError) else answer
        for answer in block.execute(raise_on_error=False)
    ]


def _round_trip(connection: Untyped, commands: Sequence[Sequence[str | float]]) -> None:
    connection.send_packed_command(connection.pack_commands(commands))
    try:
        for _ in commands:
            connection.read_response()
    except redis.ResponseError:
        # Otherwise the answers behind this one would be taken for those of the next commands.
        connection.disconnect()
        raise


def _flat(entries: Untyped) -> list[tuple[str, dict[str, str]]]:
    """RESP3 nests the entries of a stream one list deeper."""
    return entries[0] if entries and isinstance(entries[0], list) else entries
