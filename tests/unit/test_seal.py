"""Seals: what opens, what does not, and by how many MACs."""

from __future__ import annotations

import hmac
import json
import time
from dataclasses import replace

import pytest

from sojourn.security.seal import NotSealed, Seal

ALPHA, BETA = Seal("the key of the cluster", "alpha"), Seal("the key of the cluster", "beta")
PLAN = {"pid": 4242, "note": 'a "seal": "in" {it}, ünï 🦭'}


def test_what_was_sealed_opens() -> None:
    """Any host of the cluster reads it, and who sealed it when."""
    opened = BETA.open("entry", "m-1", ALPHA.close("entry", "m-1", PLAN), by="alpha", within_s=60)
    assert (opened.content, opened.by) == (PLAN, "alpha")
    assert abs(opened.at - time.time()) < 5


def test_it_is_json_still() -> None:
    """Whoever has no key reads the record as before, with one member more."""
    assert json.loads(ALPHA.close("entry", "m-1", PLAN)).items() >= PLAN.items()


SEALED = ALPHA.close("entry", "m-1", {"pid": 4242})
WRONG = {
    "no seal": '{"pid": 4242}',
    "nothing": "",
    "another text": SEALED.replace("4242", "1234"),
    "another host": SEALED.replace("alpha", "gamma"),
    "another time": SEALED.replace(SEALED.split()[4], "1.0"),
    "another version": SEALED.replace('"1 ', '"2 '),
    "cut off": SEALED[:-3],
    "something behind it": SEALED + "\n",
    "no ASCII": SEALED.replace("alpha", "ålpha"),
    "lone surrogates": SEALED.replace("pid", "\udc80"),
    "another key": Seal("another key", "alpha").close("entry", "m-1", {"pid": 4242}),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_what_is_refused(text: str) -> None:
    """Whatever of it is wrong, nothing else is raised."""
    with pytest.raises(NotSealed):
        BETA.open("entry", "m-1", text)


def test_another_purpose() -> None:
    """A seal is good for its kind, its subject, its host and its time only."""
    for kind, about, options in (
        ("part", "m-1", {}),
        ("entry", "m-2", {}),
        ("entry", "m-1", {"by": "beta"}),
        ("entry", "m-1", {"within_s": -1.0}),
    ):
        with pytest.raises(NotSealed):
            BETA.open(kind, about, SEALED, **options)


def test_a_host_cannot_seal_for_another() -> None:
    """The name in the seal is that of the key that made it."""
    claimed = BETA.close("entry", "m-1", {"pid": 4242}).replace(" beta ", " alpha ")
    with pytest.raises(NotSealed, match="wrong"):
        ALPHA.open("entry", "m-1", claimed)
    assert replace(BETA, host="alpha").close("entry", "m-1", {"pid": 4242}) != claimed


def test_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One MAC to seal and one to open: keys are derived once. `make seals` measures the time."""
    BETA.open("entry", "m-1", ALPHA.close("entry", "m-1", PLAN))
    made: list[bytes] = []
    digest = hmac.digest

    def counted(key: bytes, data: bytes, by: str) -> bytes:
        made.append(data)
        return digest(key, data, by)

    monkeypatch.setattr(hmac, "digest", counted)
    for _ in range(10):
        BETA.open("entry", "m-1", ALPHA.close("entry", "m-1", PLAN))
    assert len(made) == 20
