"""The border between Redis and a lane: what is not a message of ours never reaches Kombu.

Kombu trusts its broker: whatever it cannot read raises in the lane's event loop, which ends the
lane, and with it the steps that it has begun. So a message is checked here as the bytes that Redis
returned. What is passed on is made anew: the headers and the body, which are signed, and properties
of our own in place of those that came, which nobody has signed.

Remote control has no signature, since Flower and ``celery inspect`` ask by it. Commands that only
read are passed on, without arguments; all others are refused.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import orjson

from sojourn.messaging import freshness, names
from sojourn.messaging.signing import is_signed
from sojourn.model import MIGRATION_ID, Json, Untyped

log = logging.getLogger("sojourn.border")

#: More than the plan of the largest batch. What is larger is not parsed.
LARGEST_BYTES = 16_000_000

#: More than any question of ``celery inspect``.
LARGEST_CONTROL_BYTES = 100_000

#: Why something is refused, as logs and metrics name it.
TOO_LARGE, MALFORMED, UNSIGNED, CONTROL = "too large", "malformed", "unsigned", "control"
MISDIRECTED, LATE = "misdirected", "late"
REASONS = (TOO_LARGE, MALFORMED, UNSIGNED, CONTROL, MISDIRECTED, LATE)

#: The commands of remote control that read, and so may be given by anybody who reaches Redis.
READING = frozenset(
    {
        *("ping", "active", "active_queues", "clock", "conf", "registered", "report"),
        *("reserved", "revoked", "scheduled", "stats"),
    }
)

#: What Flower asks every few seconds, and what is so already: it is dropped without a word.
NEEDLESS = "enable_events"

#: Where Celery's callers wait for an answer, and what identifies one of them.
REPLIES = "reply.celery.pidbox"
CALLER = re.compile(r"[A-Za-z0-9-]{1,64}")

#: How many refusals are logged in one go, and how many more in each second.
LOGGED_AT_ONCE, LOGGED_PER_S = 100, 1

#: How much of a text from outside a line of the log shows.
SHOWN = 80


#: What Redis answers to a BRPOP: the key of the queue and the message, None if there was none.
Answer = Sequence[bytes] | None


class Refused(Exception):
    """Something from Redis is no message of ours: the reason, one of ``REASONS``, and a sentence.

    It never leaves this module.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(reason, sentence)
        self.reason, self.sentence = reason, sentence


class Border:
    """Checks what one lane takes; ``count`` is called with the reason of each refusal."""

    def __init__(self, key: str, count: Callable[[str], None]) -> None:
        self._key, self._count = key, count
        self._logged = _Allowance(LOGGED_AT_ONCE, LOGGED_PER_S)
        self._replied = _Allowance(LOGGED_AT_ONCE, LOGGED_PER_S)

    def message(self, answer: Answer) -> Answer:
        """Return the answer to a BRPOP as Kombu may read it, None for what it must not read.

        None is what Redis answers where there is no message in time.
        """
        if answer is None:
            return None
        queue = answer[0].decode(errors="replace")
        try:
            return answer[0], rebuilt(self._key, queue, answer[1])
        except Refused as refusal:
            self._refuse(refusal, f"queue {queue!r}")
            return None

    def reply(self, answer: Answer) -> tuple[str, str] | None:
        """Return where the caller of a message that was refused looks for its result, and one.

        None unless it is a call without a signature: a program that has Celery and not Sojourn may
        have sent it, and would wait in vain. That it is answered decides nothing.
        """
        if answer is None or not self._replied.allows():
            return None
        with contextlib.suppress(Refused):
            headers = _parsed(answer[1], LARGEST_CONTROL_BYTES).get("headers")
            if isinstance(headers, dict) and headers.get("task") in names.CALLS:
                return _reply(headers.get("id"))
        return None

    def control(self, answer: Untyped) -> Untyped:
        """Return what was published on a channel as Kombu may read it, None for what it must not.

        What Redis itself reports, such as a subscription, passes.
        """
        if not isinstance(answer, list | tuple) or not answer[0].endswith(b"message"):
            return answer
        try:
            asked = question(answer[-1])
        except Refused as refusal:
            self._refuse(refusal, "remote control")
            return None
        return [*answer[:-1], asked] if asked else None

    def _refuse(self, refusal: Refused, where: str) -> None:
        self._count(refusal.reason)
        if self._logged.allows():
            more = f" ({left} more were not logged)" if (left := self._logged.take_left()) else ""
            log.error("%s It came by %s and was dropped.%s", refusal.sentence, where, more)


class _Allowance:
    """How many lines may still be logged: a flood must not fill a disk."""

    def __init__(self, at_once: int, per_s: float) -> None:
        self._at_once, self._per_s = at_once, per_s
        self._have, self._since, self._left = float(at_once), time.monotonic(), 0

    def allows(self) -> bool:
        """Whether one more may be logged; what may not is counted."""
        now = time.monotonic()
        earned = (now - self._since) * self._per_s
        self._have, self._since = min(self._at_once, self._have + earned), now
        if self._have < 1:
            self._left += 1
            return False
        self._have -= 1
        return True

    def take_left(self) -> int:
        """Return how many were not allowed since the last one that was."""
        left, self._left = self._left, 0
        return left


def rebuilt(key: str, queue: str, raw: bytes) -> bytes:
    """Return a message with what is signed of it, for Kombu. Raises Refused."""
    message = _parsed(raw, LARGEST_BYTES)
    headers, body = message.get("headers"), message.get("body")
    if not isinstance(headers, dict) or not isinstance(body, str):
        raise Refused(MALFORMED, "Refused a message without headers or without a body.")
    if not _is_signed(key, headers, _decoded(body)):
        task = _shown(headers.get("task"))
        raise Refused(UNSIGNED, f"Refused an unsigned or wrongly signed message for {task}.")
    _check_fresh(headers, queue)
    return _packed(headers, body, queue)


def _reply(task_id: object) -> tuple[str, str] | None:
    """Return the key and the text of a result, as Celery keeps it, for a call of this id."""
    if not isinstance(task_id, str) or not MIGRATION_ID.fullmatch(task_id):
        return None
    sentence = "The call was refused: it is not signed with the cluster's key."
    hint = "Call it by `from sojourn import migrate`, with the cluster's settings."
    error = {"exc_type": "UsageError", "exc_message": [sentence, hint]}
    result: Json = {
        "status": "FAILURE",
        "result": {**error, "exc_module": "sojourn.errors"},
        "traceback": None,
        "children": [],
        "date_done": datetime.now(UTC).isoformat(),
        "task_id": task_id,
    }
    return f"celery-task-meta-{task_id}", orjson.dumps(result).decode()


def _check_fresh(headers: Json, queue: str) -> None:
    """Refuse a signed message that is not meant here, or not now. Raises Refused."""
    what = f"{_shown(headers.get('task'))} with the id {_shown(headers.get('id'))}"
    if not freshness.is_for(headers, queue):
        meant = _shown(headers.get(freshness.QUEUE))
        raise Refused(MISDIRECTED, f"Refused a message for {what}: it is for the queue {meant}.")
    if freshness.is_late(headers):
        raise Refused(LATE, f"Refused a message for {what}: it comes too late.")


def _is_signed(key: str, headers: Json, body: bytes) -> bool:
    try:
        return is_signed(key, headers, body)
    # What could just be read may be nested too deeply to be written.
    except RecursionError:
        return False


def _shown(name: object) -> str:
    """Return a name from outside for a sentence; anything else could be as large as it likes."""
    return repr(name[:SHOWN]) if isinstance(name, str) else f"a {type(name).__name__}"


def question(raw: Untyped) -> bytes | None:
    """Return a command of remote control that only reads, for Kombu; None for a needless one.

    Raises Refused.
    """
    if not isinstance(raw, bytes):
        raise Refused(MALFORMED, "Refused a command of remote control that is no text.")
    body = _parsed(raw, LARGEST_CONTROL_BYTES).get("body")
    if not isinstance(body, str):
        raise Refused(MALFORMED, "Refused a command of remote control without a body.")
    asked = _parsed(_decoded(body), LARGEST_CONTROL_BYTES)
    method = asked.get("method")
    if method == NEEDLESS:
        return None
    if not isinstance(method, str) or method not in READING:
        raise Refused(CONTROL, f"Refused the command {_shown(method)} of remote control.")
    text = orjson.dumps({"method": method, **_addresses(asked)})
    return _packed({}, base64.b64encode(text).decode(), "")


def _addresses(asked: Json) -> Json:
    """Return to whom a command is addressed, and who waits for the answer. Raises Refused."""
    to, reply, ticket = asked.get("destination"), asked.get("reply_to"), asked.get("ticket")
    if to is not None and not (isinstance(to, list) and all(isinstance(name, str) for name in to)):
        raise Refused(MALFORMED, "Refused a command of remote control to nobody.")
    if asked.get("pattern") or not isinstance(reply, dict) or reply.get("exchange") != REPLIES:
        raise Refused(MALFORMED, "Refused a command of remote control that nobody waits for.")
    caller = reply.get("routing_key")
    if not _names_a_caller(caller) or not _names_a_caller(ticket):
        raise Refused(MALFORMED, "Refused a command of remote control from nobody.")
    return {
        "destination": to,
        "reply_to": {"exchange": REPLIES, "routing_key": caller},
        "ticket": ticket,
    }


def _names_a_caller(name: object) -> bool:
    return isinstance(name, str) and CALLER.fullmatch(name) is not None


def _parsed(raw: bytes, largest: int) -> Json:
    if len(raw) > largest:
        raise Refused(TOO_LARGE, f"Refused a message of {len(raw)} bytes.")
    try:
        # Not by Python's own, to which deep nesting costs a millisecond.
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Refused(MALFORMED, "Refused a message that is no JSON.") from None
    if not isinstance(parsed, dict):
        raise Refused(MALFORMED, "Refused a message that is no mapping.")
    return parsed


def _decoded(body: str) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        raise Refused(MALFORMED, "Refused a message whose body is not in base64.") from None


def _packed(headers: Json, body: str, queue: str) -> bytes:
    """Return a message as Kombu writes it, with properties of our own."""
    properties = {
        "body_encoding": "base64",
        "delivery_tag": uuid.uuid4().hex,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "correlation_id": headers.get("id"),
    }
    return orjson.dumps(
        {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": headers,
            "properties": properties,
            "body": body,
        }
    )
