"""Fuzzed messages, commands and records: refused or read, never an error of another kind.

Bounded by the number of examples. What a run finds is kept in ``tests/hostile/seeds`` and tried
first by the next one.
"""

from __future__ import annotations

import base64
import copy
import json
import random
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from sojourn.cluster import account, counters, ledger, records
from sojourn.cluster.batches import Part, Record
from sojourn.cluster.registry import HostInfo, Pace, Window
from sojourn.log import JsonFormatter, TextFormatter
from sojourn.messaging.signing import HEADER, sign
from sojourn.model import Plan
from sojourn.text import cleaned, one_line, printable
from web.rows import row
from workflows import border

KEY = "a key for tests that is long enough"

#: How many inputs each test has made for it, and how many times a good message is damaged.
EXAMPLES, DAMAGED = 200, 10_000

SEEDS = Path(__file__).parent / "seeds"

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=DirectoryBasedExampleDatabase(SEEDS),
    suppress_health_check=list(HealthCheck),
)

#: Whatever JSON holds, and what Python writes beside.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**30, max_value=10**40)
    | st.floats()
    | st.text(st.characters(), max_size=20)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def _good_headers() -> dict[str, Any]:
    return {"task": "sojourn.examine", "id": "1", "retries": 0, "timelimit": [None, 30]}


BODY = b'[["{}"], {}, {}]'

GOOD: dict[str, Any] = {
    "body": base64.b64encode(BODY).decode(),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": _good_headers() | {HEADER: sign(KEY, _good_headers(), BODY)},
    "properties": {"delivery_tag": "1", "delivery_info": {}, "body_encoding": "base64"},
}

ASKED: dict[str, Any] = {
    "method": "ping",
    "arguments": {},
    "destination": ["main@alpha"],
    "ticket": "t",
    "reply_to": {"exchange": border.REPLIES, "routing_key": "somebody"},
}


def _passed(raw: bytes) -> dict[str, Any] | None:
    """Return what Kombu would be handed of a message, None if it is refused."""
    reasons: list[str] = []
    answer = border.Border(KEY, reasons.append).message((b"alpha", raw))
    assert (answer is None) == bool(reasons)
    assert set(reasons) <= set(border.REASONS)
    return json.loads(answer[1]) if answer else None


@fuzzed
@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    """They are no message."""
    assert _passed(raw) is None


def test_a_damaged_message() -> None:
    """With some of its bytes changed, left out or doubled it is refused, or is what was signed."""
    chance, whole = random.Random(16), json.dumps(GOOD).encode()
    for _ in range(DAMAGED):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(raw))
            raw[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        passed = _passed(bytes(raw))
        assert passed is None or passed["headers"] == GOOD["headers"]
        assert passed is None or passed["body"] == GOOD["body"]


@fuzzed
@given(st.sampled_from([*GOOD, *GOOD["headers"], *GOOD["properties"]]), JSON)
def test_a_changed_message(name: str, value: Any) -> None:
    """It is refused, or what is passed on is what was signed."""
    raw = copy.deepcopy(GOOD)
    place = next(part for part in (raw, raw["headers"], raw["properties"]) if name in part)
    place[name] = value
    passed = _passed(json.dumps(raw).encode())
    if passed is not None:
        assert passed["headers"] == GOOD["headers"]
        assert passed["body"] == GOOD["body"]
        assert passed["content-type"] == "application/json"
        assert isinstance(passed["properties"]["delivery_tag"], str)


@fuzzed
@given(st.sampled_from(list(ASKED)), JSON)
def test_a_changed_command(name: str, value: Any) -> None:
    """It is refused, or one that only reads, without arguments."""
    body = base64.b64encode(json.dumps(ASKED | {name: value}).encode()).decode()
    text = json.dumps({"body": body}).encode()
    answer = border.Border(KEY, lambda _: None).control([b"pmessage", b"p", b"c", text])
    if answer is not None:
        passed = json.loads(base64.b64decode(json.loads(answer[-1])["body"]))
        assert passed["method"] in border.READING
        assert "arguments" not in passed


@fuzzed
@given(st.one_of(st.binary(max_size=300), JSON.map(lambda value: json.dumps(value).encode())))
def test_anything_published(text: bytes) -> None:
    """It is no command."""
    assert border.Border(KEY, lambda _: None).control([b"pmessage", b"p", b"c", text]) is None


#: The fields of a migration as they are, each of which may be something else.
FIELDS: dict[str, Any] = {
    "plan": Plan(4242, "alpha", "beta").to_json(),
    "state": "running",
    "created": 1.7e9,
    "owner": "alpha",
    "progress": {"bytes": 1, "total": 2, "missing": 3},
    "part": {"batch": "x", "line": 1},
    "failure": {"code": "X", "message": "no"},
    "step:source:dump": {"name": "dump", "host": "alpha", "started": 1.0, "ended": 2.0},
    "result": {"state": "completed", "source": "alpha", "destination": "beta", "mode": "x"},
    "resolved": {"resolved": "destination"},
}


@fuzzed
@given(st.dictionaries(st.sampled_from([*FIELDS, "step:x", "y"]), JSON | st.just(0), max_size=4))
def test_a_changed_migration(changed: dict[str, Any]) -> None:
    """It is read or not; what is read is shown."""
    encoded = {name: json.dumps(value) for name, value in (FIELDS | changed).items()}
    found = account.read_account("01234567-0000-4000-8000-000000000000", encoded)
    if found:
        json.dumps([found.to_json(), row(found), found.where])


@fuzzed
@given(JSON | st.text(), st.text())
def test_any_record(value: Any, text: str) -> None:
    """A record of each kind is one or none, whatever stands there."""
    for kind in (HostInfo, Part, Record, Pace, Window, Plan):
        for encoded in (json.dumps(value), text):
            found = records.read(kind, encoded)
            assert found is None or isinstance(found, kind)
    counters.read({text: json.dumps(value), json.dumps(value): text})
    account.read_event({"migration": text, "kind": "step", "data": json.dumps(value)})


@fuzzed
@given(st.text(st.characters()), JSON)
def test_any_text(text: str, value: Any) -> None:
    """It is one line in a log, and encodes."""
    record = ledger.log.makeRecord("x", 20, __file__, 1, "%s", (text,), None)
    for formatter in (TextFormatter(), JsonFormatter()):
        shown = formatter.format(record)
        assert len(shown.splitlines()) == 1
        shown.encode()
    printable(text).encode()
    one_line(text).encode()
    cleaned(value)
