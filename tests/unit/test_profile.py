"""Where a freeze went: traces of two hosts whose clocks differ become spans that add up."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from sojourn.cli import profile as drawn
from sojourn.criu import course
from sojourn.migration import profile, trace
from sojourn.migration.profile import COUNTED, Ending, Kind, Profile, Span
from sojourn.migration.trace import Trace
from sojourn.model import Plan, StepRecord
from tests.unit.test_course import DUMP, RESTORE

PLAN = Plan(4242, "alpha", "beta")

#: How far beta's clock is ahead, and when the freeze began, in seconds.
AHEAD, BEGAN = 5.0, 1000.0


def step(name: str, host: str, begin_ms: float, end_ms: float, **more: Any) -> StepRecord:
    """Return a step by its times from where the freeze began, by the clock of its host."""
    began = BEGAN + (AHEAD if host == "beta" else 0)
    return StepRecord(name, host, began + begin_ms / 1000, began + end_ms / 1000, "done", **more)


def at(ms: float, host: str = "alpha") -> float:
    """Return an instant by the clock of a host."""
    return BEGAN + (AHEAD if host == "beta" else 0) + ms / 1000


def logged(verb: str, text: str, opened: float) -> course.Course:
    """Return the course of a run whose log was opened then."""
    return replace(course.read(verb, text.splitlines()), opened=opened)


#: What alpha knows. The kernel noted the end of the log a little late, so that the log seems to
#: have been opened 3 ms before it was.
ALPHA = Trace(
    "alpha",
    (
        step("examine", "alpha", -400, -350),
        step("reserve", "alpha", -300, -290),
        step("dump", "alpha", -100, 80),
        step("copy_images", "alpha", 90, 100),
        step("retire", "alpha", 250, 260),
    ),
    {"freezing": at(-90), "frozen": at(70), "released": at(92)},
    {
        "freeze_started": at(0),
        "frozen_at": at(2),
        "dump_ended": at(62.0),
        "images_sent": at(98),
        "images_at": at(98, "beta"),
        "resumed_at": at(220, "beta"),
    },
    (logged("dump", DUMP, at(-4 - 3)),),
    {"dump": {"freezing_us": 2000, "frozen_us": 60_000, "pages_written": 16_384}},
)

BETA = Trace(
    "beta",
    (
        step("preflight", "beta", -340, -310),
        step("reserve", "beta", -300, -290),
        step("page_server", "beta", -280, -200),
        step("restore", "beta", 110, 240),
        step("release", "beta", 245, 250),
    ),
    {"restoring": at(150, "beta"), "accepted": at(230, "beta")},
    {"images_at": at(98, "beta"), "resumed_at": at(220, "beta")},
    (
        logged(
            "page-server",
            "(00.0) Reusing ps socket 4\n(00.1) Opening 57/1\n(00.15) Session over\n",
            at(-90, "beta"),
        ),
        logged("restore", RESTORE, at(155, "beta")),
    ),
    {"restore": {"forking_us": 3000, "restore_us": 55_000}},
)


def made(alpha: Trace = ALPHA, beta: Trace = BETA) -> Profile:
    """Return the profile of traces of a freeze."""
    found = profile.of(PLAN, {"alpha": alpha, "beta": beta})
    assert found is not None
    return found


def roots(found: Profile) -> list[tuple[str, str, float, float]]:
    """Return what lies in nothing else: host, name, begin and end."""
    return [
        (one.host, one.name, one.begin_ms, one.end_ms) for one in found.spans if one.parent is None
    ]


def span(found: Profile, name: str) -> Span:
    """Return the first span of a name."""
    return next(one for one in found.spans if one.name == name)


def text_of(found: Profile, width: int, *, colours: bool = False) -> str:
    """Return the drawing as a terminal of this width shows it."""
    system: Any = "standard" if colours else None
    console = Console(file=io.StringIO(), width=width, force_terminal=colours, color_system=system)
    console.print(drawn.Drawing(found))
    console.print(drawn.sums(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    return str(text)


def test_steps_and_what_lies_between_them() -> None:
    """All is by one clock, from the freeze's begin to its end, without a hole."""
    found = made()
    assert roots(found) == [
        ("alpha", "dump", 0, 80),
        ("alpha", "message for copy_images", 80, 90),
        ("alpha", "copy_images", 90, 100),
        ("beta", "message from alpha for restore", 100, 110),
        ("beta", "restore", 110, 220),
        ("beta", "page server: receive memory", 10, 60),
    ]
    assert (found.freeze_ms, found.ending, found.began) == (220, Ending.ARRIVED, BEGAN)


def test_criu_and_what_is_ours() -> None:
    """A step divides by facts and phases, CRIU's runs by their logs; the answers in it are ours."""
    found = made()
    inside = [one for one in found.spans if one.parent == span(found, "dump").number]
    assert [(one.name, one.kind, one.begin_ms, one.end_ms) for one in inside] == [
        ("criu dump", Kind.CRIU, 0, 62),
        ("check the tree, mend its calls", Kind.SOJOURN, 62, 70),
        ("compare, flush and pack files", Kind.SOJOURN, 70, 80),
    ]
    # The log is placed by the line with which the freeze began, not by the time of its file.
    assert (span(found, "send memory").begin_ms, span(found, "send memory").end_ms) == (
        8,
        48,
    )
    commit = span(found, "the commit")
    assert (commit.host, commit.kind, commit.begin_ms, commit.end_ms) == (
        "beta",
        Kind.SOJOURN,
        186,
        211,
    )


def test_the_sums_add_up() -> None:
    """Each instant counts once, for the innermost span: all of them are the freeze."""
    found = made()
    script = 25 + 1
    assert found.sums_ms == {
        Kind.CRIU: 62 + 70 - script,
        Kind.SOJOURN: 18 + 10 + 40 + script,
        Kind.WAITING: 20,
        Kind.UNKNOWN: 0,
    }
    assert sum(found.sums_ms.values()) == pytest.approx(found.freeze_ms)


def test_spans_lie_in_their_parents_and_in_the_freeze() -> None:
    """Whatever a log says."""
    forged = logged("dump", DUMP.replace("00.05", "77.05"), at(-4))
    for found in (made(), made(replace(ALPHA, courses=(forged,)))):
        for one in found.spans:
            assert 0 <= one.begin_ms < one.end_ms <= found.freeze_ms
            if one.parent is not None:
                around = found.spans[one.parent]
                assert around.number < one.number
                assert around.begin_ms <= one.begin_ms < one.end_ms <= around.end_ms
        assert sum(found.sums_ms.values()) == pytest.approx(found.freeze_ms)


@pytest.mark.parametrize("ahead", [-3600.0, -0.02, 0.0, 7.5])
def test_clocks_may_differ(ahead: float) -> None:
    """The difference is found, and its bounds; spans do not depend on it."""
    clocks = made(beta=_by_another_clock(BETA, ahead), alpha=_with_its_facts(ALPHA, ahead)).clocks
    assert clocks.ahead_s == pytest.approx(AHEAD + ahead)
    assert clocks.at_least_s == pytest.approx(AHEAD + ahead)
    assert clocks.at_most_s == pytest.approx(AHEAD + ahead + 0.01)  # the message took 10 ms
    found = made(beta=_by_another_clock(BETA, ahead), alpha=_with_its_facts(ALPHA, ahead))
    assert roots(found) == roots(made())


def test_clocks_by_the_order_alone() -> None:
    """With scp(1) nothing measures them: they agree unless that would turn the order around."""
    without = {name: found for name, found in ALPHA.facts.items() if name != "images_at"}
    beta = replace(BETA, facts={"resumed_at": at(220, "beta")})
    clocks = profile.clocks_of(replace(ALPHA, facts=without), beta)
    # page_server ended 100 ms before dump began, restore 10 ms before retire; restore began 10 ms
    # after copy_images had ended.
    assert clocks.at_least_s == pytest.approx(AHEAD - 0.010)
    assert clocks.at_most_s == pytest.approx(AHEAD + 0.010)
    assert clocks.ahead_s == pytest.approx(AHEAD - 0.010)


def _by_another_clock(one: Trace, ahead: float) -> Trace:
    moved = profile._moved(one, -ahead)
    return replace(moved, facts={name: when + ahead for name, when in one.facts.items()})


def _with_its_facts(alpha: Trace, ahead: float) -> Trace:
    theirs = {name: alpha.facts[name] + ahead for name in profile.TAKEN_THERE}
    return replace(alpha, facts=alpha.facts | theirs)


def test_a_host_that_does_not_answer() -> None:
    """Of its steps the ledger has begin and end; how they divide is not known."""
    found = made(beta=trace.by_ledger("beta", BETA.steps))
    assert span(found, "restore").kind is Kind.UNKNOWN
    assert found.sums_ms[Kind.UNKNOWN] == 110
    assert sum(found.sums_ms.values()) == pytest.approx(found.freeze_ms)
    found = made(trace.by_ledger("alpha", ALPHA.steps), BETA)
    assert roots(found)[0] == ("alpha", "dump", 0, 180)


def test_the_ledger_alone() -> None:
    """Then the freeze is from the begin of the dump to the end of the restore, at most."""
    found = made(trace.by_ledger("alpha", ALPHA.steps), trace.by_ledger("beta", BETA.steps))
    assert found.ending is Ending.ARRIVED
    assert found.began == at(-100)
    assert roots(found)[0][1] == "dump"


def test_logs_that_are_gone() -> None:
    """The journals are still there: what was CRIU's is known, not what it did."""
    found = made(replace(ALPHA, courses=(), figures={}), replace(BETA, courses=(), figures={}))
    assert span(found, "criu dump").end_ms == 62
    assert (span(found, "criu restore").begin_ms, span(found, "criu restore").end_ms) == (150, 220)
    assert found.sums_ms[Kind.CRIU] == 62 + 70


def test_a_rollback() -> None:
    """The freeze ends where the original is woken; what there was is shown."""
    alpha = replace(
        ALPHA,
        steps=(*ALPHA.steps[:4], step("resume", "alpha", 300, 420)),
        phases=ALPHA.phases | {"resumed": at(310)},
        facts={**ALPHA.facts, "woken_at": at(318)},
    )
    del alpha.facts["resumed_at"]
    failed = RESTORE.split("(00.031000)")[0] + "(00.032) Restoring FAILED.\n"
    beta = replace(
        BETA,
        steps=(
            *BETA.steps[:3],
            step("restore", "beta", 110, 200, failed=True),
            step("refuse", "beta", 210, 240),
        ),
        facts={"images_at": at(98, "beta")},
        courses=(logged("restore", failed, at(155, "beta")),),
    )
    found = made(alpha, beta)
    assert (found.freeze_ms, found.ending) == (318, Ending.WOKEN)
    assert [name for _, name, _, _ in roots(found)] == [
        "dump",
        "message for copy_images",
        "copy_images",
        "message from alpha for restore",
        "restore",
        "message for refuse",
        "refuse",
        "message from beta for resume",
        "resume",
    ]
    assert span(found, "criu restore").end_ms == 187
    assert span(found, "wake the tree").begin_ms == 310
    assert sum(found.sums_ms.values()) == pytest.approx(318)


def test_a_dump_that_failed() -> None:
    """CRIU itself has let the tree run on: its log shows from when to when it stood."""
    alpha = Trace(
        "alpha",
        (step("dump", "alpha", -100, 80, failed=True), step("resume", "alpha", 100, 120)),
        {"freezing": at(-90), "resumed": at(105)},
        {"woken_at": at(106)},
        (logged("dump", DUMP.replace("into 3", "into 1"), at(-4)),),
    )
    found = made(alpha, Trace("beta", (step("page_server", "beta", -280, -200),)))
    assert (found.freeze_ms, found.ending) == (60, Ending.LET_GO)
    assert [name for _, name, _, _ in roots(found)] == ["dump"]
    assert found.sums_ms[Kind.CRIU] == 60


def test_a_log_without_a_line_that_is_known() -> None:
    """Another version of CRIU may log other things: its work is one piece then."""
    empty = (logged("dump", "(00.1) new\n", at(0)), logged("restore", "(00.1) new\n", at(0)))
    found = made(replace(ALPHA, courses=empty[:1]), replace(BETA, courses=empty[1:]))
    assert found.sums_ms[Kind.CRIU] == 62 + 70


def test_a_worker_that_died() -> None:
    """Its step has no end: up to the next one there it is not known what was done."""
    killed = replace(BETA.steps[3], ended=None)
    beta = replace(
        BETA,
        steps=(*BETA.steps[:3], killed, step("decide", "beta", 200, 230)),
        courses=(),
        phases={"restoring": at(205, "beta")},
    )
    found = made(beta=beta)
    assert roots(found)[4:6] == [("beta", "restore", 110, 200), ("beta", "decide", 200, 220)]
    assert found.sums_ms[Kind.UNKNOWN] == 90
    assert span(found, "criu restore").begin_ms == 205


def test_in_doubt() -> None:
    """Its end is not known: shown is what has been so far."""
    facts = {name: when for name, when in ALPHA.facts.items() if name != "resumed_at"}
    found = made(replace(ALPHA, steps=ALPHA.steps[:4], facts=facts), Trace("beta", ()))
    assert (found.ending, found.freeze_ms) == (Ending.UNKNOWN, 100)
    assert "the freeze ends" not in text_of(found, 120)


@pytest.mark.parametrize(
    "alpha",
    [
        Trace("alpha", ()),
        Trace("alpha", ALPHA.steps[:2], {"open": at(-400)}, {}, ()),
        Trace("alpha", (step("dump", "alpha", 0, 9, failed=True),), {"open": at(-400)}),
    ],
    ids=["nothing", "refused", "before CRIU"],
)
def test_what_was_not_frozen(alpha: Trace) -> None:
    """There is no profile of it."""
    beta = Trace("beta", BETA.steps[:1])
    found = profile.of(PLAN, {"alpha": alpha, "beta": beta})
    assert found is None or found.ending is Ending.UNKNOWN


def test_a_trace_crosses_the_broker() -> None:
    """What a host sends as JSON is read as what it was."""
    for one in (ALPHA, BETA):
        assert Trace.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize("width", [20, 60, 80, 120, 200])
def test_the_drawing_fits(width: int) -> None:
    """It is as wide as the terminal at most, with bars where there is room for them."""
    text = text_of(made(), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert ("█" in text.split("the freeze ends")[0]) == (width >= 80)
    assert "\x1b" not in text


def test_the_drawing() -> None:
    """Begin and end are marked; kinds differ without colours; the shown sums add up."""
    text = text_of(made(), 140)
    lines = text.splitlines()
    assert "220 ms" in lines[0]
    assert "the freeze begins" in lines[1]
    assert all(mark in text for mark in "█▓░─")
    sums = [float(line.split(" ms")[0].split()[-1]) for line in lines if " %" in line]
    assert round(sum(sums), 1) == 220.0
    assert "the freeze" in text
    starts = [line.index("█") for line in lines if "criu dump" in line or "criu restore" in line]
    assert starts == sorted(starts)
    assert "\x1b[31m" in text_of(made(), 140, colours=True)


def test_a_freeze_of_no_length_can_be_drawn() -> None:
    """Such as one whose end is not known."""
    found = replace(made(), spans=(), freeze_ms=0.0)
    assert "the freeze begins" in text_of(found, 80)


def test_shown_sums_add_up_however_they_are_rounded() -> None:
    """Each is right to a tenth of a millisecond, and so is their total."""
    found = replace(made(), sums_ms=dict(zip(COUNTED, (0.05, 0.05, 0.05, 0.05), strict=True)))
    assert sum(drawn._rounded(found.sums_ms).values()) == pytest.approx(0.2)


def test_names_are_printed_without_control_characters() -> None:
    """Nothing that stands in a trace moves the cursor of a terminal, nor is it markup."""
    found = made()
    spans = (replace(found.spans[0], name="a\x1b[2Jb [red]c"), *found.spans[1:])
    text = text_of(replace(found, spans=spans), 140)
    assert "\x1b" not in text
    assert "b [red]c" in text


def test_of_many_processes_the_longest_are_shown() -> None:
    """And one line for all others."""
    lines = ["(00.004) Detected cgroup V2 freezer"]
    for number in range(30):
        lines += [
            f"(00.{10 + number}) Dumping task (pid: {5000 + number} comm: x)",
            f"(00.{10 + number}) Collecting mappings (pid: {5000 + number})",
        ]
    lines.append("(00.60) Writing stats")
    many = replace(course.read("dump", lines), opened=at(-4))
    long = {"dump_ended": at(650), "freeze_started": at(0)}
    alpha = Trace("alpha", (step("dump", "alpha", -100, 700),), {}, long, (many,))
    text = text_of(made(alpha, Trace("beta", ())), 140)
    assert "26 more processes" in text
    assert "process 5029" in text
    assert text.count("mappings and descriptors") == drawn.PROCESSES_SHOWN


def test_roots_follow_each_other() -> None:
    """What is counted has no hole and, by one host's clock, no overlap."""
    counted = [one for one in made().spans if one.parent is None and one.kind is not Kind.BESIDE]
    assert all(a.end_ms == b.begin_ms for a, b in pairwise(counted))
