"""What people see while a migration runs and afterwards: drawn for real, whatever the steps look like."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from sojourn.cli import live, output, timeline
from sojourn.errors import UsageError
from sojourn.ledger import Event
from sojourn.model import State, StepRecord

ID = "0123abcd"
STEPS = [
    StepRecord("preflight", "alpha", 100.0, 100.2, "sleep [1]: 1 processes"),
    StepRecord("dump", "alpha", 100.2, 100.7, "5 MB"),
    StepRecord("restore", "beta", 100.7, 100.9, "no room [/red] at all", failed=True),
    StepRecord("release", "beta", 100.9),
]


def _drawn(what: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(what)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    return str(text)


def test_timeline() -> None:
    """Each step is a line with host, time and outcome; what looks like markup is printed as it is."""
    text = _drawn(timeline.draw(STEPS))
    assert [line.split()[0] for line in text.splitlines()] == ["step", "preflight", "dump", "restore", "release"]
    assert "sleep [1]" in text
    assert "no room [/red] at all" in text
    assert "500 ms" in text


def test_the_bars_share_one_scale() -> None:
    """Bars begin where the step began and are as long as it took, on one scale for all."""
    bars = [line.split("alpha")[-1].split("beta")[-1] for line in _drawn(timeline.draw(STEPS)).splitlines()[1:]]
    starts = [bar.index("█") for bar in bars]
    assert starts == sorted(starts)
    assert bars[1].count("█") > bars[0].count("█")


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
    """Nothing that two hosts' clocks can say makes the picture fail, nor does a narrow terminal."""
    assert "step" in _drawn(timeline.draw(steps), width) or width == 20


def _step(name: str, **more: Any) -> Event:
    data = {"name": name, "host": "alpha", "started": 5.0, "ended": None, "outcome": "", "failed": False, **more}
    return Event(ID, "step", {"role": "source", **data})


def test_the_live_display() -> None:
    """It takes every kind of event in whatever order, and can be drawn after each."""
    display = live.Display("pid 5 from alpha to beta")
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


def test_one_line_per_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe a step is one line when it ends, and none when it begins."""
    console = Console(file=io.StringIO(), width=40)
    monkeypatch.setattr(live, "console", console)
    live._print_line(_step("dump"))
    live._print_line(_step("dump", ended=6.0, outcome="a sentence that is longer than the terminal is wide"))
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "alpha: dump (1000 ms): a sentence that is longer than the terminal is wide\n"
    )


def test_a_failure_for_people_and_machines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """People get a sentence and a hint on stderr, machines one JSON object on stdout; markup is not believed."""
    monkeypatch.setattr(output, "complaints", Console(stderr=True, width=40))
    error = UsageError("No [bold]such[/bold] host.", "Look [here].")
    output.fail(error, as_json=False)
    assert capsys.readouterr().err == "error: No [bold]such[/bold] host.\nhint:  Look [here].\n"
    output.fail(error, as_json=True)
    assert capsys.readouterr().out == (
        '{"error": {"code": "USAGE", "message": "No [bold]such[/bold] host.", "hint": "Look [here]."}}\n'
    )


def test_sizes_and_times() -> None:
    """Numbers as people read them."""
    assert [output.megabytes(size) for size in (None, 0, 99_999, 1e5, 5e9)] == [
        *("-", "0 kB", "100 kB", "0.1 MB", "5000.0 MB"),
    ]
    assert [output.milliseconds(time) for time in (None, 0.4, 999.6, 9_999, 12_345)] == [
        *("-", "0 ms", "1000 ms", "9999 ms", "12.35 s"),
    ]
