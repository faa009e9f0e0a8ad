"""Plan files: how they are read, and that every bad line is named."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sojourn.cluster import planfile
from sojourn.cluster.planfile import Line
from sojourn.cluster.selector import Selector
from sojourn.errors import UsageError

PLAN = """\
pid,command,user,source,destination,mode,priority,tcp_established,max_freeze_s,bandwidth_mbit
4242,,,alpha,beta,,,,,
,"python3 (a|b), c",ann,alpha,auto,stop-and-copy,-5,yes,2.5,100

 4243 , , , alpha , , , 7 , False , , ,
"""

LINES = [
    Line(2, Selector(pid=4242), "alpha", "beta"),
    Line(
        3,
        Selector(command="python3 (a|b), c", user="ann"),
        "alpha",
        None,
        -5,
        {
            "mode": "stop-and-copy",
            "tcp_established": True,
            "max_freeze_s": 2.5,
            "bandwidth_mbit": 100,
        },
    ),
    Line(5, Selector(pid=4243), "alpha", None, 7, {"tcp_established": False}),
]


def wrong(text: str, *, as_json: bool = False) -> list[str]:
    """Return the lines of the message with which a plan is refused."""
    with pytest.raises(UsageError) as caught:
        planfile.read(text, as_json=as_json)
    return caught.value.message.splitlines()


def test_csv() -> None:
    """Columns by name, in any order; empty cells and lines, and blanks in a cell, do not count."""
    assert planfile.read(PLAN, as_json=False) == LINES


@pytest.mark.parametrize("change", ["\r\n", "\ufeff"])
def test_csv_of_other_programs(change: str) -> None:
    """Spreadsheets end lines with CRLF, and begin with a byte order mark."""
    text = change + PLAN if change == "\ufeff" else PLAN.replace("\n", change)
    assert planfile.read(text, as_json=False) == LINES


def test_json() -> None:
    """A list of objects with the same names, numbered from 1; null is as good as absent."""
    data: list[dict[str, Any]] = [
        {
            "pid": 4242,
            "source": "alpha",
            "destination": "beta",
            "user": None,
            "mode": None,
            "priority": None,
        },
        {"all": True, "source": "beta", "priority": 3, "file_locks": True},
    ]
    assert planfile.read(json.dumps(data), as_json=True) == [
        Line(1, Selector(pid=4242), "alpha", "beta"),
        Line(2, Selector(all=True), "beta", None, 3, {"file_locks": True}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "is_json"),
    [
        ("plan.json", "pid", True),
        ("plan.csv", "[1]", False),
        ("-", " [{}]", True),
        ("plan", "{", True),
        ("plan", "pid,source", False),
        ("plan", "", False),
    ],
)
def test_which_of_the_two(name: str, text: str, *, is_json: bool) -> None:
    """By the name, or else by how it begins."""
    assert planfile.looks_like_json(name, text) is is_json


def test_every_bad_line_is_named() -> None:
    """All of them at once, in order, with everything that is wrong; the good ones do not start."""
    found = wrong("""\
pid,command,source,destination,priority,mode,shell_job
1,,alpha,beta,,,
7,,alpha,beta,,,
7,,alpha,gamma,,,
x,(,alpha,,,,
,,,,5,,
8,,alpha,alpha,2000,teleport,so
9,,alpha,beta,,,,x
7,,beta,alpha,,,
10,,Alpha,beta,high,,
,,alpha,beta,,,
""")
    assert found == [
        "8 lines of the plan are wrong; nothing was started.",
        "line 2: 1 is not a PID of a process: PIDs go from 2 to 4194304",
        "line 4: pid 7 on alpha is selected by line 3 too",
        "line 5: 'x' is not a PID of a process: PIDs go from 2 to 4194304",
        "line 6: No processes are selected; no source is named",
        (
            "line 7: A priority is a whole number from -1000 to 1000, not 2000; "
            "shell_job is true or false, not 'so'"
        ),
        "line 8: 8 cells for 7 columns",
        (
            "line 10: A priority is a whole number from -1000 to 1000, not 'high'; "
            "'Alpha' is not a name of a host (source): small letters, digits and hyphens"
        ),
        "line 11: No processes are selected",
    ]


BAD: list[tuple[object, str]] = [
    (7, "a migration is an object with options, not 7"),
    ({"pid": 7}, "no source is named"),
    (
        {"pid": 7, "source": "alpha", "destination": "alpha"},
        "Source and destination are the same host, alpha",
    ),
    ({"pid": 7, "source": "alpha", "destination": ["beta"]}, r"\['beta'\] is not a name of a host"),
    ({"pid": 7, "source": "alpha", "colour": 1, "size": 2}, "there is no option 'colour', 'size'"),
    ({"pid": "7", "source": "alpha"}, "'7' is not a PID"),
    ({"pid": 7, "all": True, "source": "alpha"}, "All processes, or only those by pid"),
    ({"pid": 7, "source": "alpha", "priority": 1.5}, "A priority is a whole number"),
    ({"pid": 7, "source": "alpha", "mode": "teleport"}, "There is no mode 'teleport'"),
    (
        {"pid": 7, "source": "alpha", "tcp_established": "yes"},
        "tcp_established is true or false, not 'yes'",
    ),
    ({"pid": 7, "source": "alpha", "max_freeze_s": 0}, "A freeze may last"),
    ({"pid": 7, "source": "alpha", "bandwidth_mbit": 1.5}, "A bandwidth is a whole number"),
    ({"pid": 7, "source": "some-host", "mode": "x"}, "There is no mode"),
]


@pytest.mark.parametrize(
    ("entry", "message"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_object(entry: object, message: str) -> None:
    """What comes from a caller is trusted no more than a file."""
    with pytest.raises(
        UsageError, match=rf"One line of the plan is wrong; nothing was started.\nline 2: {message}"
    ):
        planfile.from_json([{"pid": 5, "source": "alpha"}, entry])


@pytest.mark.parametrize(
    ("text", "as_json", "message"),
    [
        ("", False, "The first line must name the columns, source among them."),
        (
            "pid,destination\n7,beta\n",
            False,
            "The first line must name the columns, source among them.",
        ),
        ("pid,source,colour\n", False, "There is no column 'colour'."),
        ("pid,source,pid\n", False, "The column 'pid' occurs twice."),
        ("pid,source\n", False, "The plan holds no migration."),
        ('pid,source\n7,"alpha\n', False, "The plan is not CSV: line 2: unexpected end of data."),
        ("[]", True, "The plan holds no migration."),
        ("{}", True, "A plan is a list of migrations, one object each."),
        ("[{]", True, "The plan is not JSON: Expecting property name"),
    ],
)
def test_a_malformed_file(text: str, message: str, *, as_json: bool) -> None:
    """One sentence."""
    assert wrong(text, as_json=as_json)[0].startswith(message)


def test_a_plan_of_bad_lines_only() -> None:
    """If there are very many, the first hundred are named and the others counted."""
    found = wrong("pid,source\n" + "1,alpha\n" * 250)
    assert (found[0], len(found)) == ("250 lines of the plan are wrong; nothing was started.", 102)
    assert found[-1] == "and 150 more"


def test_the_same_process_from_another_host() -> None:
    """A PID means a process on one host only."""
    lines = planfile.read("pid,source\n7,alpha\n7,beta\n", as_json=False)
    assert [line.source for line in lines] == ["alpha", "beta"]


def test_processes_that_are_selected_twice() -> None:
    """A process that two lines select is an error, but not one that a line selects twice."""
    alpha, beta = (10, "alpha"), (10, "beta")
    selected = [(2, *alpha), (3, *beta), (4, *alpha), (2, *alpha), (5, *beta)]
    assert planfile.duplicates(selected) == [
        (4, "line 4: pid 10 on alpha is selected by line 2 too"),
        (5, "line 5: pid 10 on beta is selected by line 3 too"),
    ]


def test_the_plan_of_a_line() -> None:
    """A line and a process make a plan; options that the line lacks are left to the settings."""
    line = LINES[1]
    assert line.pid is None
    assert LINES[0].pid == 4242
    assert line.plan(77, "beta") == {
        "pid": 77,
        "source": "alpha",
        "destination": "beta",
        "mode": "stop-and-copy",
        "tcp_established": True,
        "max_freeze_s": 2.5,
        "bandwidth_mbit": 100,
    }
    assert "max_freeze_s" not in LINES[0].plan(4242, "beta")
    with pytest.raises(UsageError, match="the same host"):
        line.plan(77, "alpha")


@settings(max_examples=100)
@given(some.text(max_size=60), some.booleans())
def test_any_text_is_a_plan_or_a_usage_error(text: str, as_json: bool) -> None:
    """No text causes another error."""
    for body in (text, "pid,source,all,max_freeze_s\n" + text):
        with contextlib.suppress(UsageError):
            assert planfile.read(body, as_json=as_json)


THINGS = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=3),
    lambda inner: (
        some.lists(inner, max_size=2) | some.dictionaries(some.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=100)
@given(
    some.lists(THINGS | some.dictionaries(some.sampled_from(planfile.COLUMNS), THINGS), max_size=4)
)
def test_any_json_is_a_plan_or_a_usage_error(data: list[object]) -> None:
    """Whatever stands where a value is expected."""
    with contextlib.suppress(UsageError):
        assert len(planfile.from_json(data)) == len(data)


def test_lines_keep_their_numbers() -> None:
    """When a plan is checked again, on another host, errors name the lines of the file."""
    lines = planfile.read("pid,source\n\n7,alpha\n8,alpha\n", as_json=False)
    assert [line.number for line in lines] == [3, 4]
    assert planfile.from_json([line.to_json() for line in lines]) == lines


def test_what_a_line_skips() -> None:
    """It travels as JSON; anything else than a list of selectors is a bad line."""
    line = {"all": True, "source": "alpha", "skip": [{"unit": "nginx"}, {"pid": 7}]}
    (read_back,) = planfile.from_json([line])
    assert read_back.skip == (Selector(unit="nginx"), Selector(pid=7))
    (again,) = planfile.from_json([read_back.to_json()])
    assert again == read_back
    bad: list[Any] = ["nginx", ["nginx"], [{"colour": "red"}], [{}]]
    for wrong in bad:
        with pytest.raises(UsageError, match="line 1"):
            planfile.from_json([line | {"skip": wrong}])
