"""Every message is signed with the cluster's key, and refused when it is unsigned or wrong.

A worker is root, and whoever can write to Redis could otherwise tell it what to do. The signature is an HMAC-SHA256
over all headers and the body as it travels, so neither can be changed or combined with another's. A replayed
message is harmless: each step looks into the journal first.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request
from kombu.serialization import dumps

HEADER = "sojourn-signature"


def sign(key: str, headers: dict[str, Any], body: bytes) -> str:
    """Return the signature of one message."""
    signed = {name: value for name, value in headers.items() if name != HEADER}
    text = json.dumps(signed, sort_keys=True, default=str).encode()
    return hmac.new(key.encode(), text + b"\0" + body, hashlib.sha256).hexdigest()


def signer(key: str) -> Any:  # noqa: ANN401  (a receiver of Celery's signal)
    """Return a receiver for ``before_task_publish`` that signs each message on its way out."""

    def add_signature(body: Any = None, headers: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ANN401
        if headers is not None:
            _, _, payload = dumps(body, serializer="json")
            headers[HEADER] = sign(key, headers, _bytes(payload))

    return add_signature


class SignedRequest(Request):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """A delivery whose signature was checked before anything of it was believed."""

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        app = kwargs["app"]
        expected = sign(app.conf.sojourn_key, message.headers, _bytes(message.body))
        if not hmac.compare_digest(str(message.headers.get(HEADER, "")), expected):
            raise InvalidTaskError(
                f"Refused an unsigned or wrongly signed message for {message.headers.get('task')!r}."
            )
        super().__init__(message, *args, **kwargs)


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)
