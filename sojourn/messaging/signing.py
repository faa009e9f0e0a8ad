"""Every message is signed with the cluster's key, and refused if its signature is missing or wrong.

A worker is root, and whoever can write to Redis could otherwise command it. The signature is an
HMAC-SHA256 over all headers and the body as they travel, so neither can be changed or combined with
those of another message. It covers for which queue a message is, and until when
(``sojourn.messaging.freshness``).
"""

from __future__ import annotations

import hmac
import json
from typing import Any

from kombu.serialization import dumps

from sojourn.messaging import freshness
from sojourn.model import Json, Untyped

HEADER = "sojourn-signature"


def sign(key: str, headers: dict[str, Any], body: bytes) -> str:
    """Return the signature of one message."""
    signed = {name: value for name, value in headers.items() if name != HEADER}
    # Sorted, since the order of headers may change on their way.
    text = json.dumps(signed, sort_keys=True, default=str).encode()
    # JSON contains no zero byte, so no other headers and body give the same text.
    return hmac.digest(key.encode(), text + b"\0" + body, "sha256").hex()


def is_signed(key: str, headers: dict[str, Any], body: bytes) -> bool:
    """Whether headers and body carry the signature of this key, whatever else they hold."""
    given = headers.get(HEADER)
    # ``compare_digest`` raises TypeError for texts that are not ASCII.
    if not isinstance(given, str) or not given.isascii():
        return False
    return hmac.compare_digest(given, sign(key, headers, body))


class Signing:
    """A producer of Kombu's, whose messages of tasks are signed when nothing is added any more.

    Whatever hears of a message before it is published, such as OpenTelemetry, may add headers.
    """

    def __init__(self, producer: Untyped, key: str, shared: str) -> None:
        self._producer, self._key, self._shared = producer, key, shared

    def __getattr__(self, name: str) -> Untyped:
        """Return what the producer itself has."""
        return getattr(self._producer, name)

    def publish(self, body: Untyped, *, headers: Json | None = None, **options: Untyped) -> Untyped:
        """Publish a message; that of a task is for its queue and a limited time, and signed."""
        # What else is sent by it, as an event, names no task.
        if headers and "task" in headers:
            queue = options.get("routing_key", "")  # a queue's name is its routing key too
            freshness.stamp(headers, queue, shared=queue == self._shared)
            # Kombu serializes the body only later, with the same function.
            _, _, payload = dumps(body, serializer=options.get("serializer"))
            headers[HEADER] = sign(self._key, headers, _bytes(payload))
        return self._producer.publish(body, headers=headers, **options)


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)
