"""Fuzzed files and connections: refused by one sentence, or read; nothing else comes of it."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.cluster import age, planfile
from sojourn.errors import ChannelFailed, SojournError, UsageError
from sojourn.model import Plan
from sojourn.settings import load
from sojourn.state.message import Message
from sojourn.transfer import channel
from sojourn.transfer.greeting import LAYOUT, Greeting
from sojourn.transfer.page_protocol import HEAD, Question
from tests.hostile.test_fuzz import DAMAGED, JSON, fuzzed
from tests.integration.conftest import Redis
from tests.integration.door import Flower

SECRET = channel.secret_for("a key for tests that is long enough", "0123")

PLAN = Plan(4242, "alpha", "beta").to_json()

#: What stops a parser that was made for small and shallow texts.
HARD = (
    *("[" * 100_000, '{"a":' * 100_000, "9" * 10_000),
    *('"\\ud800"', "\0", "NaN", "1e999", "\ufeff[]"),
)

#: A good file of each kind.
CSV = "pid,source,destination,mode\n4242,alpha,beta,post-copy\n"
TOML = 'host = "alpha"\nstate_dir = "/nowhere"\nstall_s = 15\nlazy_restore = "before-commit"\n'


def damaged(whole: bytes, seed: int, count: int = DAMAGED // 10) -> Iterator[bytes]:
    """Yield copies with some bytes changed, left out or doubled."""
    chance = random.Random(seed)
    for _ in range(count):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(raw) + 1)
            raw[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        yield bytes(raw)


def read_or_refused(read: Callable[[], object]) -> bool:
    """Whether something is read; else it is refused by an error of ours, with a sentence."""
    try:
        read()
    except SojournError as error:
        refusal = error
    else:
        return True
    assert 0 < len(refusal.message) < 20_000
    return False


def received(raw: bytes) -> dict[str, int] | None:
    """Return the manifest of what a source sends, None if it is refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryDirectory() as place:
        threading.Thread(target=_send, args=(theirs, raw), daemon=True).start()
        manifest = None
        with contextlib.suppress(ChannelFailed):
            manifest = channel.receive_files(ours, Path(place) / "images", 5)
        assert [each.name for each in Path(place).iterdir()] in ([], ["images"])
        return manifest


def _send(peer: socket.socket, raw: bytes) -> None:
    with contextlib.suppress(OSError):  # it hung up in the middle
        peer.sendall(raw)
        peer.shutdown(socket.SHUT_WR)


def sent(manifest: bytes) -> bytes:
    """Return a manifest as it is sent."""
    return struct.pack("!I", len(manifest)) + manifest


def test_a_damaged_manifest() -> None:
    """Whatever it names, nothing is written beside the directory of the images."""
    for raw in damaged(sent(json.dumps({"core-1.img": 0, "pagemap-1.img": 0}).encode()), 1):
        received(raw)


@fuzzed
@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(["../x", "/x"]), JSON) | JSON)
def test_any_manifest(manifest: Any) -> None:
    """What is no name of a file with its size is refused."""
    received(sent(json.dumps(manifest).encode()))


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_hard_texts(text: str, tmp_path: Path) -> None:
    """They are refused at each border, and none of them by an error of the parser."""
    assert received(sent(text.encode(errors="surrogatepass"))) is None
    assert not read_or_refused(lambda: planfile.read(text, as_json=True))
    assert not read_or_refused(lambda: planfile.read(text, as_json=False))
    assert not read_or_refused(lambda: Message.from_text(text))
    (tmp_path / age.FILE).write_text(text)
    assert age.kept(tmp_path) is None


def test_a_damaged_greeting() -> None:
    """Only the whole one opens a connection."""
    good = Greeting.new("pages").to_bytes(SECRET)
    assert Greeting.parse(good, SECRET)
    for raw in damaged(good, 2):
        padded = raw[: LAYOUT.size].ljust(LAYOUT.size, b"\0")
        assert Greeting.parse(padded, SECRET) is None or padded == good


@fuzzed
@given(st.binary(min_size=HEAD.size, max_size=HEAD.size))
def test_any_question(raw: bytes) -> None:
    """It is refused, or asks for whole pages, not too many."""
    with contextlib.suppress(ChannelFailed):
        question = Question.parse(raw)
        assert 0 < question.length <= 2**20
        assert question.to_bytes() == raw


@fuzzed
@given(st.dictionaries(st.sampled_from([*PLAN, "x"]), JSON, max_size=4))
def test_a_changed_plan(changed: dict[str, Any]) -> None:
    """It is refused, or is a plan that can be written again."""
    with contextlib.suppress(UsageError):
        assert Plan.from_json(Plan.from_json(PLAN | changed).to_json())


def test_damaged_plan_files() -> None:
    """CSV and JSON: what is left is read, or every bad line is named."""
    for whole, as_json in ((CSV, False), (json.dumps([PLAN]), True)):
        for raw in damaged(whole.encode(), 3):
            text = raw.decode(errors="replace")
            read_or_refused(partial(planfile.read, text, as_json=as_json))


@fuzzed
@given(st.lists(st.dictionaries(st.sampled_from([*PLAN, "all", "command", "x"]), JSON), max_size=3))
def test_any_plan_file(lines: list[Any]) -> None:
    """The same, whatever the lines hold."""
    read_or_refused(lambda: planfile.from_json(lines))


def test_damaged_messages() -> None:
    """The text of a message that a step is handed is checked too, though it came signed."""
    whole = Message("01234567-0000-4000-8000-000000000000", Plan(4242, "alpha", "beta")).to_text()
    for raw in damaged(whole.encode(), 5):
        read_or_refused(partial(Message.from_text, raw.decode(errors="replace")))


def test_damaged_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence names what is wrong, and the file."""
    file = tmp_path / "sojourn.toml"
    monkeypatch.setenv("SOJOURN_CONFIG", str(file))
    try:
        for raw in damaged(TOML.encode(), 6, 300):
            file.write_bytes(raw)
            load.cache_clear()
            read_or_refused(load)
    finally:
        load.cache_clear()


def test_flower_answers_whatever_is_asked(redis: Redis, tmp_path: Path) -> None:
    """Paths, fields and headers that nobody of ours sends: never an error of its own."""
    flower, chance = Flower(redis, tmp_path), random.Random(7)
    try:
        flower.start()
        (migration,) = flower.fill(1)
        paths = [f"/migrations/{migration}", "/migrations", "/migrations/check", "/metrics"]
        codes = {_asked(flower, chance.choice(paths), chance) for _ in range(400)}
        assert max(codes) < 500, codes
        assert flower.door.ask("/migrations").code == 200
    finally:
        flower.stop()


def _asked(flower: Flower, path: str, chance: random.Random) -> int:
    """Ask for a path that is damaged, with fields that are; return the answer's code."""
    (odd,) = damaged(path.encode(), chance.randrange(2**32), 1)
    quoted = "/" + urllib.parse.quote_from_bytes(odd[1:])
    fields = {"pid": chance.choice(["", "1", "x" * 999]), "a\0b": "\u202e"}
    posted = chance.choice([None, fields])
    token = flower.door.token() if chance.random() < 0.1 else {}
    return flower.door.ask(f"{quoted}?sort={quoted}", posted, headers=token).code
