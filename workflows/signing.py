"""Every message is signed with the cluster's key, and refused if its signature is missing or wrong.

A worker is root, and whoever can write to Redis could otherwise command it. The signature is an
HMAC-SHA256 over all headers and the body as they travel, so neither can be changed or combined with
those of another message. It covers for which queue a message is, and until when
(``workflows.freshness``).
"""

from __future__ import annotations

import hmac
import json
from typing import Any

from celery import current_app
from celery.exceptions import InvalidTaskError
from celery.worker.request import Request
from kombu.serialization import dumps

from sojourn.model import Untyped
from workflows import freshness

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


def signer(key: str) -> Untyped:
    """Return a receiver for ``before_task_publish`` that signs each message before it is sent."""

    def add_signature(
        body: Untyped = None,
        headers: dict[str, Any] | None = None,
        routing_key: str = "",
        **_: Untyped,
    ) -> None:
        if headers is not None:
            # A queue's name is its routing key too.
            shared = routing_key == current_app.conf.task_default_queue
            freshness.stamp(headers, routing_key, shared=shared)
            # Kombu serializes the body only after this signal, with the same function.
            _, _, payload = dumps(body, serializer=current_app.conf.task_serializer)
            headers[HEADER] = sign(key, headers, _bytes(payload))

    return add_signature


class SignedRequest(Request):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """A delivery whose signature is checked before anything else of it is read."""

    def __init__(self, message: Untyped, *args: Untyped, **kwargs: Untyped) -> None:
        key = kwargs["app"].conf.sojourn_key
        if not is_signed(key, message.headers, _bytes(message.body)):
            # Celery logs this error, drops the message, and goes on.
            task = message.headers.get("task")
            raise InvalidTaskError(f"Refused an unsigned or wrongly signed message for {task!r}.")
        super().__init__(message, *args, **kwargs)


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)
