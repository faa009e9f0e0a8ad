"""Flower's pages without a browser: summaries of tasks, timelines, rows, and addresses."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sojourn.cluster.account import Account, Event
from sojourn.model import Failure, Plan, State, StepRecord
from sojourn.state.message import Message
from sojourn.system.run import Completed, run

pytest.importorskip("flower")

from web import guide, pages, readable, templates, timeline
from web.app import is_loopback
from web.rows import LOOKS, Crossing, look, row
from workflows.canvas import linked
from workflows.pipelines import ABORT

PLAN = Plan(4242, "alpha", "beta")
ID = "bc14c1d9-4380-43c8-b5dc-15f44498902a"
MESSAGE = (
    f"({{'id': '{ID}', 'plan': {{'pid': 4242, 'source': 'alpha', 'destination': 'beta', "
    "'mode': 'stop-and-copy'}, "
    "'facts': {'needs': 'c$}41OON9=4E`$vpBr1', 'pages_bytes': 74441263, 'verdict': 'restored', "
    "'dump_command': 'criu x'}},)"
)


def account(
    *steps: StepRecord, state: State = State.RUNNING, owner: str | None = "alpha", **more: Any
) -> Account:
    """Return a migration with these steps."""
    return Account(ID, PLAN, state, 1000.0, owner, steps, **more)


def step(
    name: str, host: str, begin: float, end: float | None, *, failed: bool = False
) -> StepRecord:
    """Return a step between two instants in seconds."""
    return StepRecord(name, host, 1000 + begin, None if end is None else 1000 + end, "done", failed)


ARRIVED = account(
    step("examine", "alpha", 0, 1),
    step("dump", "alpha", 2, 6),
    step("restore", "beta", 7, 9),
    step("retire", "alpha", 9, 10),
    state=State.COMPLETED,
    owner="beta",
    result={"downtime_ms": 4000.0},
)


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        (
            MESSAGE,
            f"pid 4242 from alpha to beta; migration {ID}; pages_bytes 74441263; verdict restored",
        ),
        (f"([{{'id': '{ID}', 'plan': {{...}}, 'facts': {{...}}}}],)", f"migration {ID}"),
        (
            f"{{'id': '{ID}', 'state': 'rolled back', 'owner': 'alpha', 'x': 1}}",
            f"migration {ID}; rolled back, owner alpha",
        ),
        (
            "{'host': 'alpha', 'trees': [{'pid': 1, 'command': 'mysql -psecret'}]}",
            "processes or logs of a host",
        ),
        ("[{'pid': 7, 'command': 'mysql -psecret'}]", "processes or logs of a host"),
        ("('alpha',)", "('alpha',)"),
        ("<function f at 0x7f00beef>", "<function f>"),
        ("x" * 1000, "x" * 300 + "…"),
    ],
    ids=str,
)
def test_arguments_and_results_are_summarised(text: str, summary: str) -> None:
    """Ours become a sentence; others are cut, and have no memory addresses."""
    assert readable.summary(text) == summary


@pytest.mark.parametrize(
    "text",
    [
        "redis://:hunter2@192.0.2.1:6379/0",
        "redis://ann:hunter2@192.0.2.1:6379/0",
        "{'key': 'hunter2'}",
        "{'sojourn_key': 'hunter2', 'a': 1}",
        "password=hunter2",
        "API_TOKEN: hunter2",
    ],
)
def test_no_text_holds_a_key_or_a_password(text: str) -> None:
    """Tracebacks and arguments of other tasks may hold some."""
    assert "hunter2" not in readable.summary(text)
    assert "hunter2" not in readable.event({"type": "task-failed", "traceback": text})["traceback"]


def test_an_event_keeps_other_fields() -> None:
    """Only its texts are changed."""
    fields = {"type": "task-received", "uuid": "1", "args": MESSAGE, "retries": 0, "result": None}
    assert readable.event(fields) == fields | {"args": readable.summary(MESSAGE)}


def test_the_tasks_that_a_worker_lists_are_summarised_too() -> None:
    """Lists hold the arguments themselves, and scheduled tasks are wrapped."""
    listed = {"args": [{"id": ID, "plan": {}, "facts": {}}], "kwargs": {}, "name": "sojourn.dump"}
    assert readable.tasks([listed])[0]["args"] == f"migration {ID}"
    assert (
        readable.tasks([{"eta": "x", "request": listed}])[0]["request"]["args"] == f"migration {ID}"
    )


def test_a_step_names_its_migration() -> None:
    """Flower finds a migration's tasks by this text, and shows it unchanged."""
    canvas = linked(ABORT, Message(ID, PLAN))
    texts = {step.options["argsrepr"] for step in canvas.tasks[:-1]}
    assert texts == {f"pid 4242 from alpha to beta; migration {ID}"}
    assert {readable.summary(text) for text in texts} == texts


def test_the_picture_shades_the_downtime_and_marks_the_commit_at_its_end() -> None:
    """The restore ended after nine of ten seconds; the process had not run for four."""
    picture = timeline.draw(ARRIVED, now=2000.0)
    assert picture is not None
    assert picture.commit == 90.0
    assert picture.freeze == timeline.Shade(50.0, 40.0, "frozen, downtime 4000 ms", known=True)
    assert [lane.host for lane in picture.lanes] == ["alpha", "beta"]
    kinds = {bar.name: bar.kind for lane in picture.lanes for bar in lane.bars}
    assert kinds == {"examine": "run", "dump": "frozen", "restore": "frozen", "retire": "run"}


DOUBTED = (
    step("dump", "alpha", 10, 12),
    step("copy_images", "alpha", 12, 13),
    step("decide", "alpha", 80, 90),
    step("retire", "alpha", 90, 110),
)


def test_the_freeze_of_one_that_was_in_doubt_is_where_it_was() -> None:
    """The destination had let the process run long before the source heard of it."""
    result = {"downtime_ms": 4000.0, "freeze": {"began": 1011.0, "ended": 1015.0}}
    arrived = account(*DOUBTED, state=State.COMPLETED, owner="beta", result=result)
    picture = timeline.draw(arrived, now=2000.0)
    assert picture is not None
    assert picture.freeze == timeline.Shade(1.0, 4.0, "frozen, downtime 4000 ms", known=True)
    assert picture.commit == 5.0


def test_a_doubt_is_shaded_until_now() -> None:
    """No step is under way, and the process does not run; neither does the clock stand still."""
    picture = timeline.draw(account(*DOUBTED[:2], state=State.IN_DOUBT, owner=None), now=1060.0)
    assert picture is not None
    assert picture.freeze == timeline.Shade(0.0, 100.0, "frozen for 50.00 s so far", known=False)
    assert picture.ticks[-1] == (100.0, "50.00 s")


def test_a_rollback_is_shaded_until_the_resume_and_has_no_commit() -> None:
    """The freeze was not measured, so its length is an upper bound."""
    steps = [
        step("dump", "alpha", 0, 2, failed=True),
        step("refuse", "beta", 3, 4),
        step("resume", "alpha", 5, 8),
    ]
    picture = timeline.draw(account(*steps, state=State.ROLLED_BACK), now=2000.0)
    assert picture is not None
    assert picture.commit is None
    assert picture.freeze == timeline.Shade(0.0, 100.0, "frozen for at most 8000 ms", known=False)
    assert picture.lanes[0].bars[0].kind == "failed"


def test_a_step_under_way_reaches_to_now() -> None:
    """Before it has ended its length is unknown."""
    picture = timeline.draw(
        account(step("examine", "alpha", 0, 1), step("reserve", "alpha", 1, None)), now=1004.0
    )
    assert picture is not None
    bar = picture.lanes[0].bars[1]
    assert (bar.x, bar.width, bar.kind, bar.took) == (25.0, 75.0, "open", "…")


def test_every_bar_is_inside_the_picture() -> None:
    """However short a step is, and wherever it stands."""
    steps = [
        step("a", "alpha", 0, 0),
        step("b", "alpha", 0, 100),
        step("c", "beta", 100, 100),
        step("d", "beta", 50, 51),
    ]
    picture = timeline.draw(account(*steps), now=1100.0)
    assert picture is not None
    for lane in picture.lanes:
        for bar in lane.bars:
            assert bar.width > 0
            assert bar.x + bar.width <= 100
            assert lane.y <= bar.y < lane.y + lane.height


def test_there_is_no_picture_before_the_first_step() -> None:
    """The migration is queued."""
    assert timeline.draw(account(state=State.QUEUED), now=2000.0) is None


def test_progress_counts_steps_and_the_memory_that_has_crossed() -> None:
    """Half of the memory is half of the dump."""
    ended = [step(name, "alpha", 0, 1) for name in ("examine", "preflight", "page_server")]
    half = Crossing().after(Event(ID, "progress", {"bytes": 0, "total": 100}), 1.0)
    half = half.after(Event(ID, "progress", {"bytes": 50, "total": 100}), 2.0)
    shown = row(account(*ended, step("dump", "alpha", 1, None)), half)
    assert shown["percent"] == round(100 * 3.5 / 13)
    assert (half.rate, shown["rate"]) == (50.0, "50 B/s")
    assert shown["step"] == "dump on alpha"


def test_a_row_in_the_window() -> None:
    """It shows where the process runs and who is needed; what comes is counted anew."""
    dumped = Crossing().after(Event(ID, "progress", {"bytes": 90, "total": 100}), 1.0)
    progress = {"bytes": 40, "total": 100, "missing": 60, "faults": 3, "wait_longest_ms": 2.0}
    first = dumped.after(Event(ID, "progress", progress | {"bytes": 20}), 7.0)
    half = first.after(Event(ID, "progress", progress), 8.0)
    steps = [step("restore", "beta", 1, 2), step("settle", "beta", 2, None)]
    running = account(*steps, owner="beta", progress=progress)
    running = replace(running, plan=replace(PLAN, mode="post-copy"))
    shown = row(running, half)
    assert shown["owner"] == "beta"
    assert shown["window"] == (
        "It runs on beta; 60 B still to come from alpha, so both hosts are needed; it waited for 3 "
        "pages, 2 ms at most."
    )
    assert half.rate == 40.0
    facts = dict(pages.facts(running))
    assert (facts["Still to come"], facts["Pages waited for"], facts["Longest wait"]) == (
        *("60 B", "3", "2 ms"),
    )
    ended = replace(running, state=State.COMPLETED, progress=None, result=progress)
    assert row(ended)["window"] == ""
    assert dict(pages.facts(ended))["Longest wait"] == "2 ms"
    assert "Longest wait" not in dict(pages.facts(ARRIVED))


def test_a_row_of_an_ended_migration_has_no_progress() -> None:
    """One that arrived is complete; one that did not has a reason instead of a percentage."""
    assert row(ARRIVED)["percent"] == 100
    failure = Failure("X", "It was refused.")
    shown = row(account(state=State.REFUSED, failure=failure))
    assert (shown["percent"], shown["why"], shown["look"]) == (None, "It was refused.", "stayed")


def test_every_state_has_its_style() -> None:
    """The style sheet has a rule for the style of each state."""
    sheet = (Path(templates.OURS).parent / "static/migrations.css").read_text()
    for state in State:
        assert f".state-{look(state)}" in sheet
    assert set(LOOKS) <= set(State)


def test_the_head_names_the_program() -> None:
    """Without the directories, with arguments and script; a name in brackets is no path."""
    shown = row(replace(ARRIVED, command="/usr/bin/python3 /srv/app.py --port 80"))
    assert shown["program"] == "python3 app.py --port 80"
    assert (shown["command"], shown["downtime"]) == (
        "/usr/bin/python3 /srv/app.py --port 80",
        "4000 ms",
    )
    for command, name in {
        "[sh/x]": "[sh/x]",
        "/usr/sbin/nginx -c /etc/nginx.conf": "nginx -c /etc/nginx.conf",
        "redis-server *:6379": "redis-server *:6379",
        "x" * 10_000: "x" * 80,
        "": "",
    }.items():
        assert row(replace(ARRIVED, command=command))["program"] == name


def test_no_page_of_the_documentation_is_outside_of_it() -> None:
    """Of what is there, HTML is shown as text, and links lead to other pages."""
    for path in ("../README.md", "how-to/../../pyproject.toml", "nowhere.md", ""):
        assert guide.page(path) is None
    text = guide.page("how-to/recover-from-in-doubt.md")
    assert text is not None
    assert '<a href="../protocol.md">' in text
    trouble = guide.page("troubleshooting.md")
    assert trouble is not None
    assert '<h2 id="a-migration-is-in-doubt">' in trouble


def test_flowers_navigation_gains_a_tab() -> None:
    """Its place is found in Flower's own template, which another version may write differently."""
    assert "reverse_url('migrations')" in templates.source("navbar.html")
    assert templates.source("workers.html") == (templates.FLOWERS / "workers.html").read_text()


def test_templates_escape_everything_but_what_the_server_has_rendered() -> None:
    """Raw are the live part, which an escaping template has rendered, and our own documentation."""
    raw = {
        path.name: re.findall(r"{% raw (.*?) %}", path.read_text())
        for path in templates.OURS.glob("*.html")
    }
    assert {name: found for name, found in raw.items() if found} == {
        "single.html": ["inner"],
        "guide.html": ["text"],
    }
    assert not [
        path.name for path in templates.OURS.glob("*.html") if "autoescape" in path.read_text()
    ]


def test_nothing_on_our_pages_comes_from_elsewhere() -> None:
    """No file of ours names another server, and no style or script is inside a page."""
    for path in [*templates.OURS.glob("*.html"), *(templates.OURS.parent / "static").iterdir()]:
        text = path.read_text()
        assert not re.search(r"(src|href|url|import|fetch)\W+(https?:)?//", text), path
        assert not re.search(
            r"\son[a-z]+=|\sstyle=|<script(?!( type=\"module\"| defer)? src=)", text
        ), path


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.0.2.1", False),
        ("", False),
    ],
)
def test_loopback_is_recognised(address: str, *, loopback: bool) -> None:
    """A name may mean any address, and no address means all of them."""
    assert is_loopback(address) is loopback


def flower(tmp_path: Path, **settings: str) -> Completed:
    """Run ``sojourn flower`` with settings with which it must not listen."""
    given = {"config": "/dev/null", "key": "k" * 32, "state_dir": str(tmp_path), **settings}
    env = {f"SOJOURN_{name.upper()}": value for name, value in given.items()}
    return run([sys.executable, "-m", "sojourn", "flower"], deadline_s=60, check=False, env=env)


def test_flower_is_not_open_to_everybody_without_a_login(tmp_path: Path) -> None:
    """One sentence, a hint, and exit status 2."""
    ended = flower(tmp_path, flower_address="192.0.2.1")
    assert ended.returncode == 2
    assert "open to everybody who can reach 192.0.2.1" in ended.stderr
    assert "flower_auth" in ended.stderr


@pytest.mark.parametrize("auth", ["secret", ":secret", "ann:"])
def test_a_password_needs_a_user_and_a_user_a_password(tmp_path: Path, auth: str) -> None:
    """A malformed setting is neither guessed at nor printed."""
    ended = flower(tmp_path, flower_auth=auth)
    assert ended.returncode == 2
    assert "user:password" in ended.stderr
    assert "secret" not in ended.stderr
