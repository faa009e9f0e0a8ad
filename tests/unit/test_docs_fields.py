"""Fields that programs read are documented: of results, steps, failures, hosts, events, log lines; and tasks."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import pytest

from sojourn.batch import BatchState, Record
from sojourn.cli.history import Line
from sojourn.ledger import Event
from sojourn.log import CONTEXT, JsonFormatter
from sojourn.model import Failure, Message, Plan, State, StepRecord
from sojourn.preflight.estimate import Estimate
from sojourn.preflight.finding import Finding
from sojourn.registry import HostInfo
from sojourn.settings import Settings
from workflows.app import create_app
from workflows.conclude import result_of

DOCS = Path(__file__).parents[2] / "docs"
MESSAGE = Message("0123456789ab", Plan(4242, "alpha", "beta"))


def section(page: str, heading: str) -> str:
    """Return the text below a second-level heading of a page."""
    return (DOCS / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def named(text: str) -> set[str]:
    """Return what stands in backquotes."""
    return set(re.findall(r"`([^`\n]+)`", text))


def names(kind: type) -> set[str]:
    """Return the fields of a dataclass."""
    return {each.name for each in fields(kind)}


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("A finished migration", {*result_of(MESSAGE, None), *State}),
        ("A step", names(StepRecord)),
        ("A failure", names(Failure)),
        ("A check", {"migratable", "findings", "estimate", *names(Finding), *names(Estimate)}),
        ("An event", {*(names(Event) - {"id", "data"}), *names(Failure), *names(StepRecord), *names(Line)}),
        ("A batch", {*Record("", "plan", {}, "", 0, BatchState.RUNNING).to_json({}), *BatchState}),
        ("Other commands", names(HostInfo)),
    ],
)
def test_every_field_of_json_is_documented(heading: str, expected: Collection[str]) -> None:
    """Whoever reads it with a program looks here."""
    assert {str(name) for name in expected} - named(section("reference/json.md", heading)) == set()


def test_every_key_of_a_log_line_is_documented() -> None:
    """And none that no line has."""
    record = logging.LogRecord("sojourn", logging.INFO, "", 0, "a sentence", None, None)
    told = {*json.loads(JsonFormatter().format(record)), *CONTEXT, "traceback"}
    rows = re.findall(r"^\| (`.*?) \|", section("monitoring.md", "Logs"), re.MULTILINE)
    assert {name for row in rows for name in named(row)} == told


def test_every_task_is_documented_and_no_other() -> None:
    """By its name in the table of queues; a step by its own among those of a migration. Tests have more."""
    app = create_app(Settings.model_validate({"key": "a key for tests that is long enough"}))
    app.loader.import_default_modules()
    tasks = {name for name in app.tasks if name.startswith("sojourn.") and not name.startswith("sojourn.test_")}
    listed = {name for name in named(section("reference/keys-and-files.md", "Queues")) if name.startswith("sojourn.")}
    steps = {f"sojourn.{name}" for name in named((DOCS / "architecture.md").read_text())}
    assert listed - tasks == set()
    assert tasks - listed - steps == set()
