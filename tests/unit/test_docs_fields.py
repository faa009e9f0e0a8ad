"""Fields that programs read, of results, events and log lines, are documented; so are tasks."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import pytest

from sojourn.cli.history import Line
from sojourn.cli.profile import to_json
from sojourn.cluster.account import Account, Event, NoticeRecord
from sojourn.cluster.audit import Entry
from sojourn.cluster.batches import BatchState, Record
from sojourn.cluster.doubt import Contact, Doubt
from sojourn.cluster.registry import HostInfo
from sojourn.log import CONTEXT, JsonFormatter
from sojourn.migration.profile import Clocks, Ending, Kind, Profile, Span
from sojourn.migration.result import result_of
from sojourn.model import Failure, Plan, State, StepRecord
from sojourn.preflight.estimate import Estimate
from sojourn.preflight.finding import Finding
from sojourn.settings import Settings
from sojourn.state.message import Message
from workflows.app import create_app

DOCS = Path(__file__).parents[2] / "docs"
MESSAGE = Message("0123456789ab", Plan(4242, "alpha", "beta"))
ACCOUNT = Account(MESSAGE.id, MESSAGE.plan, State.REFUSED, 0.0, "alpha", ())
DOUBT = Doubt(MESSAGE.id, MESSAGE.plan, 0.0).describe(
    dict.fromkeys(("alpha", "beta"), Contact(answers=True))
)


def section(page: str, heading: str) -> str:
    """Return the text below a second-level heading of a page."""
    return (DOCS / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def named(text: str) -> set[str]:
    """Return what is in backquotes."""
    return set(re.findall(r"`([^`\n]+)`", text))


def names(kind: type) -> set[str]:
    """Return the fields of a dataclass."""
    return {field.name for field in fields(kind)}


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        (
            "A finished migration",
            {*result_of(MESSAGE, None), *State, *names(NoticeRecord), "doubt"},
        ),
        ("A doubt", {*DOUBT, *DOUBT["you_may"][0]}),
        ("A step", names(StepRecord)),
        ("A failure", names(Failure)),
        (
            "A profile",
            {*to_json(ACCOUNT, None, []), *names(Profile), *names(Clocks), *names(Span)}
            | {*Kind, *Ending},
        ),
        ("A check", {"migratable", "findings", "estimate", *names(Finding), *names(Estimate)}),
        (
            "An event",
            {*(names(Event) - {"id", "data"}), *names(Failure), *names(StepRecord), *names(Line)},
        ),
        ("A batch", {*Record("", "plan", {}, "", 0, BatchState.RUNNING).to_json({}), *BatchState}),
        ("Other commands", {*names(HostInfo), *names(Entry), "time"}),
    ],
)
def test_every_field_of_json_is_documented(heading: str, expected: Collection[str]) -> None:
    """reference/json.md names every field and state under its heading."""
    assert {str(name) for name in expected} - named(section("reference/json.md", heading)) == set()


def test_every_key_of_a_log_line_is_documented() -> None:
    """The table has the keys of a log line, and no others."""
    record = logging.LogRecord("sojourn", logging.INFO, "", 0, "a sentence", None, None)
    keys = {*json.loads(JsonFormatter().format(record)), *CONTEXT, "traceback"}
    rows = re.findall(r"^\| (`.*?) \|", section("monitoring.md", "Logs"), re.MULTILINE)
    assert {name for row in rows for name in named(row)} == keys


def test_every_task_is_documented_and_no_other() -> None:
    """Tasks are in the table of queues, steps in architecture.md; tasks of tests do not count."""
    app = create_app(Settings.model_validate({"key": "a key for tests that is long enough"}))
    app.loader.import_default_modules()
    tasks = {
        name
        for name in app.tasks
        if name.startswith("sojourn.") and not name.startswith("sojourn.test_")
    }
    listed = {
        name
        for name in named(section("reference/keys-and-files.md", "Queues"))
        if name.startswith("sojourn.")
    }
    steps = {f"sojourn.{name}" for name in named((DOCS / "architecture.md").read_text())}
    assert listed - tasks == set()
    assert tasks - listed - steps == set()
