"""Messages that workers write by orjson: what Kombu would read and write, and nothing else."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest
from celery import chain, group, signature
from kombu.utils import json as kombu

from sojourn.model import Untyped
from workflows.serialization import decode, encode

BODIES = [
    [["{}"], {}, {"chain": None, "errbacks": [{"immutable": True, "args": ["ü"]}]}],
    (("a tuple",), {"float": 1.5}, {"none": None}),
    # What orjson refuses: a file's name that is not UTF-8, and a number of more than 64 bits.
    [["name\udcff"], {}, {}],
    [[2**70], {}, {}],
]


@pytest.mark.parametrize("body", BODIES)
def test_bodies(body: Untyped) -> None:
    """Kombu and orjson read the same from what either has written."""
    meant = json.loads(json.dumps(body))
    for text in (encode(body), kombu.dumps(body)):
        assert kombu.loads(text) == meant
    assert decode(encode(body)) == meant


def test_a_canvas() -> None:
    """Signatures are written as their fields, also those of a group that came from a generator."""
    canvas = chain(signature("a"), group(signature(name) for name in "bc"), signature("d"))
    written = decode(encode(canvas))
    assert [link["task"] for link in written["kwargs"]["tasks"][1]["kwargs"]["header"]] == [
        "b",
        "c",
    ]
    assert written == kombu.loads(kombu.dumps(canvas))


def test_kombus_own_types() -> None:
    """What Kombu has marked as of a type that JSON does not have is read as Kombu reads it."""
    known = [uuid.uuid4(), datetime.now(UTC), b"bytes"]
    assert decode(kombu.dumps(known)) == known
    assert decode(encode(known[1:])) == known[1:]


@pytest.mark.parametrize("text", [b"[1", b"", b'"\xff"', b"[NaN"])
def test_malformed(text: bytes) -> None:
    """A malformed text is refused as Kombu refuses it."""
    with pytest.raises(ValueError):  # noqa: PT011  (its subclasses)
        decode(text)
