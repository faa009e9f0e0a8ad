"""Output for people, while a migration runs and afterwards: really drawn, with odd steps too."""

from __future__ import annotations

import io
import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sojourn import decision, units
from sojourn.cli import live, output, overview, timeline, watch
from sojourn.cluster import freeze
from sojourn.cluster.account import Account, Event
from sojourn.cluster.batches import BatchState, Part, Record
from sojourn.cluster.countdown import Left
from sojourn.cluster.freeze import Freeze
from sojourn.errors import UsageError
from sojourn.model import Plan, Role, State, StepRecord

ID = "0123abcd"
STEPS = [
    StepRecord("preflight", "alpha", 100.0, 100.2, "sleep [1]: 1 process"),
    StepRecord("dump", "alpha", 100.2, 100.7, "5 MB"),
    StepRecord("restore", "beta", 100.7, 100.9, "no room [/red] at all", failed=True),
    StepRecord("release", "beta", 100.9),
]


def _drawn(renderable: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    return str(text)


def test_timeline() -> None:
    """A step is a line with host, time and outcome; text that looks like markup stays as it is."""
    text = _drawn(timeline.Timeline(STEPS))
    assert [line.split()[0] for line in text.splitlines()] == [
        "step",
        "preflight",
        "dump",
        "restore",
        "release",
    ]
    assert "sleep [1]" in text
    assert "no room [/red] at all" in text
    assert "500 ms" in text


def test_the_bars_share_one_scale() -> None:
    """Bars show when a step began and how long it took, on one scale for all."""
    bars = [
        line.split("alpha")[-1].split("beta")[-1]
        for line in _drawn(timeline.Timeline(STEPS)).splitlines()[1:]
    ]
    starts = [bar.index("█") for bar in bars]
    assert starts == sorted(starts)
    assert bars[1].count("█") > bars[0].count("█")


DOUBT = [
    StepRecord("examine", "alpha", 0.0, 10.0),
    StepRecord("dump", "alpha", 10.0, 20.0),
    StepRecord("copy_images", "alpha", 20.0, 30.0),
    StepRecord("decide", "beta", 200.0, 210.0),
    StepRecord("resume", "alpha", 210.0, 240.0),
]


def _in_doubt(**more: Any) -> Account:
    return Account(ID, Plan(5, "alpha", "beta"), State.IN_DOUBT, 0.0, None, tuple(DOUBT), **more)


def test_the_freeze_is_shaded_across_all_steps() -> None:
    """From the freeze to its real end by the journals, however long nobody did anything."""
    result = {"freeze": {"began": 12.0, "ended": 220.0}, "downtime_ms": None}
    ended = replace(_in_doubt(result=result), state=State.ROLLED_BACK, owner="alpha")
    reds = [
        segment.text
        for segment in Console(width=120).render(timeline.draw(ended))
        if segment.style and segment.style.color and segment.style.color.name == "red"
    ]
    assert len("".join(reds)) == 21 * len(DOUBT)
    assert _drawn(timeline.draw(ended)).splitlines()[1].count("░") == 21


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        (_in_doubt(), Freeze(10.0, 300.0)),
        (
            replace(_in_doubt(), steps=tuple(DOUBT[:1])),
            None,
        ),
        (
            replace(
                _in_doubt(), state=State.LOST, result={"freeze": {"began": 11.0, "ended": None}}
            ),
            Freeze(11.0, 240.0),
        ),
        (
            replace(
                _in_doubt(result={"freeze": {"began": 11.0, "ended": 31.0}, "downtime_ms": 2e4}),
                state=State.COMPLETED,
                owner="beta",
            ),
            Freeze(11.0, 31.0, known=True),
        ),
    ],
    ids=["in doubt", "before its dump", "lost", "it had arrived before the doubt"],
)
def test_from_when_to_when_it_was_frozen(account: Account, expected: Freeze | None) -> None:
    """A doubt lasts until now; the journals' word comes before that of the steps."""
    assert freeze.of(account, 300.0) == expected


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [StepRecord("preflight", "alpha", 5.0)],
        [StepRecord("preflight", "alpha", 5.0, 5.0)],
        [StepRecord("dump", "alpha", 100.0, 99.0), StepRecord("restore", "beta", 50.0, 300.0)],
    ],
    ids=["none", "one that runs", "no time at all", "clocks that disagree"],
)
@pytest.mark.parametrize("width", [20, 200])
def test_timelines_that_are_odd(steps: list[StepRecord], width: int) -> None:
    """Neither odd times of two clocks nor a narrow terminal make the picture fail."""
    assert "step" in _drawn(timeline.Timeline(steps), width) or width == 20


def _of(migration: str, step: str) -> Event:
    return replace(_step(step), migration=migration)


def _step(name: str, **more: Any) -> Event:
    data = {
        "name": name,
        "host": "alpha",
        "started": 5.0,
        "ended": None,
        "outcome": "",
        "failed": False,
        **more,
    }
    return Event(ID, "step", {"role": "source", **data})


def test_the_live_display() -> None:
    """It applies every kind of event in any order, and can be drawn after each."""
    display = live.Display(Plan(5, "alpha", "beta"))
    events = [
        _step("dump"),
        Event(ID, "progress", {"bytes": 5e6, "total": 0}),
        Event(ID, "progress", {"bytes": 9e6, "total": 8e6}),
        Event(ID, "failure", {"code": "X", "message": "no"}),
        _step("dump", ended=6.0, outcome="no room [/]", failed=True),
        Event(ID, "state", {"state": "rolled back"}),
        Event(ID, "something new", {}),
    ]
    for event in events:
        display.take(event)
        assert "pid 5 from alpha to beta" in _drawn(display)
    assert display.state is State.ROLLED_BACK
    text = _drawn(display)
    assert "no room [/]" in text
    assert "1000 ms" in text
    assert "8.0 MB of 8.0 MB" in text


POST_COPY = Plan(5, "alpha", "beta", "post-copy")
PROGRESS = Event(
    ID,
    "progress",
    {"bytes": 3e6, "total": 8e6, "missing": 5e6, "faults": 2, "wait_longest_ms": 4.2},
)
IN_THE_WINDOW = [
    _step("restore", host="beta", ended=6.0),
    _step("settle", host="beta", started=6.0),
    PROGRESS,
]
BOTH = (
    "It runs on beta; 5.0 MB still to come from alpha, so both hosts are needed; it waited for 2 "
    "pages, 4 ms at most."
)


def test_the_live_display_in_the_window() -> None:
    """It shows that both hosts are needed until the last page has come."""
    display = live.Display(POST_COPY)
    for event in IN_THE_WINDOW:
        display.take(event)
    assert BOTH in _drawn(display, 200)
    display.take(_step("settle", host="beta", started=6.0, ended=7.0))
    assert "both hosts" not in _drawn(display, 200)


def test_the_board_in_the_window() -> None:
    """The memory cell shows what is still to come, and a line below the table who is needed."""
    row = watch.Row(ID, POST_COPY, State.RUNNING, 5.0)
    row.take(Event(ID, "progress", {"bytes": 3e6, "total": 8e6}))
    assert (row.done, row.window) == ("3.0 MB of 8.0 MB", "")
    for event in IN_THE_WINDOW:
        row.take(event)
    assert (row.done, row.window) == ("5.0 MB to come", BOTH)
    row.take(Event(ID, "state", {"state": "completed"}))
    assert (row.done, row.window) == ("", "")


def test_a_line_of_a_batch_in_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rate is that of the step; what a dump has sent does not count in the next one."""
    instants = iter([10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(overview, "time", SimpleNamespace(monotonic=lambda: next(instants)))
    progress = overview.Progress()
    crossed = [Event(ID, "progress", {"bytes": sent, "total": 8e6}) for sent in (0, 8e6)]
    for event in (_step("dump"), *crossed):
        progress.take(event)
    assert (progress.doing, progress.rate) == ("dump", 8e6)
    progress.take(_step("settle", host="beta"))
    assert (progress.doing, progress.rate) == ("settle", 0)
    progress.take(PROGRESS)
    later = PROGRESS.data | {"bytes": 5e6, "missing": 3e6}
    progress.take(Event(ID, "progress", later))
    assert (progress.doing, progress.rate) == ("settle, 3.0 MB to come", 1e6)
    assert progress.left == Left(3.0)
    assert progress.part == 1.0, "the dump had sent all of it"


PARTS = {
    number: Part(number, Plan(pid, "alpha", to).to_json(), f"m{number}", bytes=10**9, command=name)
    for number, (pid, to, name) in enumerate(
        [(4242, "beta", "redis-server *:6379 [x]"), (4243, "gamma", "x" * 60), (77, "beta", "")], 1
    )
}


def _overview(clock: Iterator[float], monkeypatch: pytest.MonkeyPatch) -> overview.Overview:
    """Return a batch of which one line has begun, and nothing has ended."""
    monkeypatch.setattr(overview, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    made = overview.Overview(SimpleNamespace(), "a batch")  # type: ignore[arg-type]
    made.record = Record("a batch", "drain", {}, "me", 0.0, BatchState.RUNNING, len(PARTS))
    made.parts, made.line_of = PARTS, {part.migration: part.number for part in PARTS.values()}
    made.take(Event("m1", "state", {"state": "running"}))
    return made


def test_a_batch_names_its_processes_and_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line has command, PID and destination, the source where there is room."""
    made = _overview(itertools.count(10.0), monkeypatch)
    made.take(Event("m2", "state", {"state": "queued"}))
    wide, narrow = _drawn(made, 120), _drawn(made, 80)
    assert "redis-server *:6379 [x] (pid 4242)  alpha  beta" in wide
    assert "redis-server *:6379 [x] (pid 4242)  beta" in narrow
    assert "4243" not in wide, "it waits for its turn"
    ends = {number: {"pid": part.plan["pid"], **part.plan} for number, part in PARTS.items()}
    described = [
        overview.describe(number, {**end, "command": PARTS[number].command, "state": "completed"})
        for number, end in ends.items()
    ]
    assert [text.partition(" from ")[0] for text in described] == [
        "line 1: redis-server *:6379 [x] (pid 4242)",
        f"line 2: {'x' * 39}… (pid 4243)",
        "line 3: pid 77",
    ]


def test_the_time_left_of_a_batch_is_of_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the first of three in one second: five more, though none has ended; then it falls."""
    clock = iter([0.0, 1.0, 1.0, 2.0])
    made = _overview(clock, monkeypatch)
    assert "left" not in made.head()
    made.take(_of("m1", "dump"))
    made.take(Event("m1", "progress", {"bytes": 5e8, "total": 1e9}))
    assert "; 5 s left" in made.head()
    made.take(Event("m1", "state", {"state": "queued"}))
    assert made.progress[1].part == 0
    assert "; 4 s left" in made.head()


def test_one_line_per_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe a step is one line when it ends, and none when it begins."""
    console = Console(file=io.StringIO(), width=40)
    monkeypatch.setattr(live, "console", console)
    live._print_line(_step("dump"))
    live._print_line(
        _step("dump", ended=6.0, outcome="a sentence that is longer than the terminal is wide")
    )
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "alpha: dump (1000 ms): a sentence that is longer than the terminal is wide\n"
    )


def test_a_failure_for_people_and_machines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence and a hint on stderr, or a JSON object on stdout; markup is not interpreted."""
    monkeypatch.setattr(output, "complaints", Console(stderr=True, width=40))
    error = UsageError("No [bold]such[/bold] host.", "Look [here].")
    output.fail(error, as_json=False)
    assert capsys.readouterr().err == "error: No [bold]such[/bold] host.\nhint:  Look [here].\n"
    output.fail(error, as_json=True)
    assert capsys.readouterr().out == (
        '{"error": {"code": "USAGE", "message": "No [bold]such[/bold] host.", '
        '"hint": "Look [here]."}}\n'
    )


def test_sizes_and_times() -> None:
    """Numbers as people read them."""
    assert [units.size(size) for size in (None, 0, 999, 99_999, 1e5, 5e9, 4e12)] == [
        *("-", "0 kB", "999 B", "100 kB", "0.1 MB", "5.0 GB", "4.0 TB"),
    ]
    assert [units.span(elapsed) for elapsed in (None, 0.4, 999.6, 9_999, 12_345, 7.2e6)] == [
        *("-", "0 ms", "1000 ms", "9999 ms", "12.35 s", "120 min"),
    ]
    assert [units.processes(number) for number in (0, 1, 2)] == [
        *("0 processes", "1 process", "2 processes"),
    ]
    assert [units.rate(bytes_per_s) for bytes_per_s in (None, 5e7)] == ["-", "50.0 MB/s"]
    assert [units.time_left(left_s) for left_s in (None, 119.4, 150)] == ["", "119 s", "2 min"]


def test_instants_name_their_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """For people in this machine's time zone, for programs in UTC."""
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    assert units.moment(0) == "1970-01-01 01:00:00 CET"
    assert units.when(0) == "1970-01-01 01:00 CET"
    assert re.fullmatch(r"\d\d:\d\d:\d\d CET", units.when(time.time()))
    assert units.timestamp(0) == "1970-01-01T00:00:00Z"
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("role", Role)
def test_a_decision_names_the_operator_and_the_host(role: Role) -> None:
    """One sentence for the command line and the pages; empty without a decision."""
    plan = Plan(5, "alpha", "beta")
    record = {"resolved": role, "resolved_by": "ann@hub", "resolved_at": 0.0}
    assert decision.sentence(record, plan) == (
        f"ann@hub declared {plan.host_of(role)}, the {role}, dead for good at {units.moment(0)}."
    )
    assert decision.sentence({}, plan) == ""
