"""A delivery to a worker, whose signature is checked before anything else of it is read."""

from __future__ import annotations

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request

from sojourn.messaging.signing import is_signed
from sojourn.model import Untyped


class SignedRequest(Request):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """A task of Celery's as a worker received it. Raises InvalidTaskError if it is not signed."""

    def __init__(self, message: Untyped, *args: Untyped, **kwargs: Untyped) -> None:
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
        if not is_signed(kwargs["app"].conf.sojourn_key, message.headers, body):
            # Celery logs this error, drops the message, and goes on.
            task = message.headers.get("task")
            raise InvalidTaskError(f"Refused an unsigned or wrongly signed message for {task!r}.")
        super().__init__(message, *args, **kwargs)
