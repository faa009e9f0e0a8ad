"""Notices of ends: what is owed, how it is signed and delivered, and when it is given up."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from sojourn.doctor import place
from sojourn.doctor.finding import Level
from sojourn.errors import UsageError
from sojourn.migration.result import result_of
from sojourn.model import Plan, State
from sojourn.notices.delivery import NotDelivered, Sender
from sojourn.notices.notice import ENDED, IN_DOUBT, Notice, notice_of
from sojourn.notices.outbox import GIVEN_UP_S, LONGEST_S, Outbox, Outcome, Owed
from sojourn.notices.target import Target, secret_of, targets, unsafe
from sojourn.settings import Settings, load
from sojourn.state.message import Message
from tests.receiver import Receiver, receiving

SECRET = "whsec_T3BlblNlc2FtZVRoYXROb2JvZHlFbHNlS25vd3MhISE="
MESSAGE = Message("0123456789ab", Plan(4242, "alpha", "beta"))
PAGE = Path(__file__).parents[2] / "docs/how-to/after-the-end.md"


def notice(state: State = State.COMPLETED, migration: str = MESSAGE.id) -> Notice:
    """Return the notice of an end."""
    result = result_of(MESSAGE, None) | {"id": migration, "state": state}
    return notice_of(result, "alpha", 1_767_225_600.25, batch=None)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Give out a receiver of notices."""
    with receiving() as made:
        yield made


@pytest.fixture
def sender() -> Sender:
    """Give out a sender that waits ten seconds."""
    return Sender(secret_of(SECRET), 10)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    """Give out an empty outbox, whose directory is not there yet."""
    return Outbox(tmp_path / "state" / "notices.db")


def program(directory: Path, text: str) -> Path:
    """Return an executable of root's, a script of the shell."""
    file = directory / "after-migration"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def is_from_sojourn(*arguments: Any) -> bool:
    """Check a notice by the code of the page."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return bool(names["is_from_sojourn"](*arguments))


def test_a_notice_names_one_end_of_one_migration() -> None:
    """Its id is the same whenever and wherever it is made, and another one for another end."""
    one = notice()
    again = notice_of(result_of(MESSAGE, None) | {"state": "completed"}, "beta", 0.0)
    assert one.id == again.id
    assert len({one.id, notice(State.LOST).id, notice(migration="ba9876543210").id}) == 3
    assert (one.type, notice(State.IN_DOUBT).type) == (ENDED, IN_DOUBT)
    body = json.loads(one.body)
    assert (body["id"], body["host"]) == (one.id, "alpha")
    assert body["timestamp"] == "2026-01-01T00:00:00.250+00:00"
    assert (body["data"]["id"], body["data"]["state"]) == (MESSAGE.id, "completed")


def test_a_receiver_can_tell_who_called(receiver: Receiver, sender: Sender) -> None:
    """By the code of the page: what is changed, old or signed by somebody else is refused."""
    sent = notice()
    assert sender.deliver(sent, Target(receiver.url)) == (
        f"http://127.0.0.1:{receiver.url.split(':')[2].split('/')[0]} answered 204"
    )
    (head,), (body,) = receiver.heads, receiver.bodies
    assert body.decode() == sent.body
    assert head["webhook-id"] == sent.id
    assert head["content-type"] == "application/json"
    assert is_from_sojourn(SECRET, head, body)
    assert not is_from_sojourn(SECRET, head, body.replace(b"completed", b"rolled back"))
    assert not is_from_sojourn(SECRET, head | {"webhook-id": "another"}, body)
    assert not is_from_sojourn(SECRET, head | {"webhook-timestamp": "1767225600"}, body)
    assert not is_from_sojourn("c29tZSBvdGhlciBzZWNyZXQgb2Ygc29tZWJvZHk=", head, body)


@pytest.mark.parametrize(("status", "for_good"), [(302, False), (410, True), (500, False)])
def test_an_answer_that_is_no_success(
    receiver: Receiver, sender: Sender, status: int, for_good: bool
) -> None:
    """Nobody follows it elsewhere; only one that wants no more of it is not asked again."""
    receiver.status = status
    with pytest.raises(NotDelivered, match=f"answered {status}") as caught:
        sender.deliver(notice(), Target(receiver.url))
    assert caught.value.for_good is for_good
    assert len(receiver.bodies) == 1


def test_a_receiver_that_does_not_answer(receiver: Receiver) -> None:
    """The time-out ends it."""
    receiver.sleeps.clear()
    with pytest.raises(NotDelivered, match="timed out"):
        Sender(secret_of(SECRET), 0.2).deliver(notice(), Target(receiver.url))


def test_a_receiver_that_is_not_there(sender: Sender) -> None:
    """Nor does what is no web server harm the sender."""
    with pytest.raises(NotDelivered, match=r"^http://127\.0\.0\.1:1: .*refused"):
        sender.deliver(notice(), Target("http://127.0.0.1:1/with/a/secret"))


def test_an_executable(tmp_path: Path, sender: Sender) -> None:
    """It gets the notice on its standard input, and what it is about in its environment."""
    out, sent = tmp_path / "out", notice()
    variables = '"$NOTICE_ID $NOTICE_TYPE $MIGRATION_ID $MIGRATION_STATE"'
    file = program(tmp_path, f"cat > {out}\necho {variables} >> {out}\nenv >> {out}")
    assert sender.deliver(sent, Target(str(file))) == "it ended with exit code 0"
    text = out.read_text()
    expected = f"{sent.id} migration.ended {MESSAGE.id} completed\n"
    assert text.startswith(sent.body + expected)
    # Processes with this variable are ended with their migration.
    assert "SOJOURN_" not in text


@pytest.mark.parametrize(
    ("script", "why"),
    [("echo no ticket >&2; exit 3", "exit code 3: no ticket"), ("sleep 60", "still running")],
)
def test_an_executable_that_fails(tmp_path: Path, script: str, why: str) -> None:
    """By its exit code, or by its time."""
    target = Target(str(program(tmp_path, script)))
    with pytest.raises(NotDelivered, match=why):
        Sender(b"", 0.5).deliver(notice(), target)


def test_an_executable_that_others_can_change(tmp_path: Path, sender: Sender) -> None:
    """It is not run, nor called fit, whether it is the file or a directory above that is open."""
    file, ran = program(tmp_path, f"touch {tmp_path / 'ran'}"), tmp_path / "ran"
    link = tmp_path / "link"
    link.symlink_to(file)
    settings = Settings(on_end=f"{file} {link}")
    assert [found.level for found in place.on_end(settings)] == [Level.OK, Level.OK]
    for opened, mode in ((file, 0o775), (tmp_path, 0o777)):
        before = opened.stat().st_mode
        opened.chmod(mode)
        assert "can write" in unsafe(file)
        assert [found.level for found in place.on_end(settings)] == [Level.FAILURE] * 2
        with pytest.raises(NotDelivered, match="was not run"):
            sender.deliver(notice(), Target(str(link)))
        opened.chmod(before)
    os.chown(file, 65534, 65534)
    assert "belongs to user 65534" in unsafe(file)
    assert not ran.exists()
    file.unlink()
    (finding, _) = place.on_end(settings)
    assert (finding.level, "No such file" in finding.sentence) == (Level.FAILURE, True)


def test_what_the_doctor_finds_of_web_addresses() -> None:
    """One that is called in the clear is a warning, unless that stays on this machine."""
    urls = "https://a.example/x http://a.example http://127.0.0.1:8000"
    found = list(place.on_end(Settings(on_end=urls, on_end_secret=SecretStr(SECRET))))
    assert [finding.level for finding in found] == [Level.OK, Level.WARNING, Level.OK]
    assert [finding.level for finding in place.on_end(Settings())] == [Level.OK]


@pytest.mark.parametrize(
    "where",
    [
        *("after-migration", "./after", "ftp://a.example/", "https://", "https://a.example:99999"),
        *("https://user:password@a.example/", "https://a.example/\N{COMBINING ACUTE ACCENT}"),
        *("file:///etc/passwd", "https://[::1", "-x"),
    ],
)
def test_what_cannot_be_called(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is wrong is refused with a sentence."""
    monkeypatch.setenv("SOJOURN_ON_END", where)
    monkeypatch.setenv("SOJOURN_ON_END_SECRET", SECRET)
    load.cache_clear()
    with pytest.raises(UsageError, match="'on_end' is invalid"):
        load()
    load.cache_clear()


@pytest.mark.parametrize("secret", ["", "short", "bm90IGxvbmcgZW5vdWdo", "no base64 at all" * 3])
def test_a_web_address_needs_a_secret(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 bytes at least; an executable needs none."""
    monkeypatch.setenv("SOJOURN_ON_END", "https://a.example/")
    monkeypatch.setenv("SOJOURN_ON_END_SECRET", secret)
    load.cache_clear()
    with pytest.raises(UsageError, match=r"'on_end_secret' is invalid.*openssl rand"):
        load()
    monkeypatch.setenv("SOJOURN_ON_END", "/bin/true")
    if not secret:
        assert load().end_targets == (Target("/bin/true"),)
    load.cache_clear()


def test_names_hide_the_path_of_an_address() -> None:
    """Some receivers have their secret there."""
    found = targets("https://a.example:8443/T0/B0?x=y /bin/true /bin/true")
    assert [target.name for target in found] == ["https://a.example:8443", "/bin/true"]


def test_the_same_end_is_owed_once(outbox: Outbox) -> None:
    """To each target, however often it is reported, and after it was delivered too."""
    one, other = Target("/bin/true"), Target("https://a.example/")
    outbox.owe(notice(), [one, other])
    outbox.owe(notice(), [one, other])
    assert outbox.waiting() == {one.where: 1, other.where: 1}
    owed = outbox.due(one)
    assert owed is not None
    assert (owed.notice, owed.target, owed.tries) == (notice(), one, 0)
    assert outbox.delivered(owed) is Outcome.DELIVERED
    outbox.owe(notice(), [one, other])
    assert outbox.due(one) is None
    assert outbox.waiting() == {one.where: 0, other.where: 1}
    assert outbox.counted() == {(one.where, "delivered"): 1}


def test_a_failure_is_repeated_later(outbox: Outbox) -> None:
    """It is not due meanwhile, and others are."""
    target = Target("/bin/true")
    outbox.owe(notice(), [target])
    outbox.owe(notice(State.LOST), [target])
    first = outbox.due(target)
    assert first is not None
    assert outbox.failed(first, for_good=False) is Outcome.FAILED
    second = outbox.due(target)
    assert second is not None
    assert second.notice != first.notice
    assert outbox.failed(second, for_good=True) is Outcome.GIVEN_UP
    assert outbox.due(target) is None
    assert outbox.waiting() == {target.where: 1}
    assert outbox.counted() == {(target.where, "failed"): 1, (target.where, "given up"): 1}


def test_how_long_it_is_tried() -> None:
    """After 5 s, then twice as long each time, up to 10 minutes, for a day."""
    owed, now, tries = Owed(notice(), Target("/bin/true"), 1000.0, 0), 1000.0, [1000.0]
    while following := owed.next_try(now):
        tries.append(following)
        owed, now = replace(owed, tries=owed.tries + 1), following
    waits = [after - before for before, after in itertools.pairwise(tries)]
    assert waits[:9] == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    assert max(waits) == LONGEST_S
    assert GIVEN_UP_S - LONGEST_S <= tries[-1] - 1000 < GIVEN_UP_S


def test_what_is_owed_to_somebody_whom_nobody_names_any_more(outbox: Outbox) -> None:
    """It is given up, and what is old and settled is forgotten."""
    one, other = Target("/bin/true"), Target("/bin/false")
    outbox.owe(notice(), [one, other])
    assert [owed.target for owed in outbox.abandon([one])] == [other]
    assert outbox.abandon([one]) == []
    assert outbox.waiting() == {one.where: 1, other.where: 0}
    outbox.forget_old_ones(0)
    assert outbox.waiting() == {one.where: 1, other.where: 0}


def test_what_is_old_is_forgotten_once_it_is_settled(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is owed stays, however old."""
    one, other = Target("/bin/true"), Target("/bin/false")
    long_ago = time.time() - 2 * GIVEN_UP_S
    monkeypatch.setattr("sojourn.notices.outbox.time.time", lambda: long_ago)
    outbox.owe(notice(), [one, other])
    owed = outbox.due(one)
    assert owed is not None
    outbox.delivered(owed)
    monkeypatch.undo()
    outbox.forget_old_ones(keep_s=1)
    assert outbox.waiting() == {other.where: 1}
    assert outbox.counted() == {(one.where, "delivered"): 1}
