"""Selectors: which trees of a host are selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sojourn.cluster.selector import NAMES, Process, Selector
from sojourn.errors import UsageError


@dataclass(frozen=True)
class Grown:
    """A tree of processes."""

    pid: int
    members: tuple[Process, ...]
    verdict: str = ""


def process(
    pid: int, command: str, user: str = "www", cgroup: str = "/system.slice/nginx.service"
) -> Process:
    """Return a process; www has the uid 33, and any other user 1000."""
    return Process(pid, command, 33 if user == "www" else 1000, user, cgroup)


NGINX = Grown(
    10,
    (
        process(10, "nginx: master", "root"),
        process(11, "nginx: worker"),
        process(12, "nginx: worker"),
    ),
)
JOB = Grown(20, (process(20, "python3 job.py", "ann", "/user.slice/user-1000.slice/run-7.scope"),))
LOST = Grown(30, (process(30, "nginx -t", "", "/"),), "is traced by process 31")
TREES = (NGINX, JOB, LOST)


@pytest.mark.parametrize(
    ("selector", "chosen", "refused"),
    [
        (Selector(pid=10), [10], []),
        (Selector(pid=12), [10], []),
        (Selector(pid=99), [], []),
        (Selector(command="worker"), [10], []),
        (Selector(command="nginx"), [10], [30]),
        (Selector(command=r"^python3? .*\.py$"), [20], []),
        (Selector(user="ann"), [20], []),
        (Selector(user="1000"), [10, 20], [30]),
        (Selector(user="33"), [10], []),
        (Selector(cgroup="/system.slice"), [10], []),
        (Selector(cgroup="/system.slice/nginx.service/"), [10], []),
        (Selector(cgroup="/system.slice/nginx"), [], []),
        (Selector(cgroup="/"), [10, 20], [30]),
        (Selector(unit="nginx"), [10], []),
        (Selector(unit="nginx.service"), [10], []),
        (Selector(unit="run-7.scope"), [20], []),
        (Selector(unit="run-7"), [], []),
        (Selector(unit="user.slice"), [20], []),
        (Selector(command="nginx", user="www"), [10], []),
        (Selector(command="master", user="www"), [], []),
        (Selector(all=True), [10, 20], []),
    ],
    ids=lambda value: value.describe() if isinstance(value, Selector) else "",
)
def test_what_is_selected(selector: Selector, chosen: list[int], refused: list[int]) -> None:
    """A match inside a tree selects its root, once; all conditions must hold for one process."""
    picked = selector.pick(TREES)
    assert [tree.pid for tree in picked.chosen] == chosen
    assert [tree.pid for tree in picked.refused] == refused


def test_a_tree_that_is_named_twice() -> None:
    """A tree that is read twice is selected once."""
    assert Selector(all=True).pick([NGINX, JOB, Grown(NGINX.pid, NGINX.members)]).chosen == (
        NGINX,
        JOB,
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "No processes are selected"),
        ({"all": False}, "No processes are selected"),
        ({"all": True, "user": "ann"}, "All processes, or only those by user"),
        ({"all": "yes"}, "all is true or false, not 'yes'"),
        ({"command": "("}, "'\\(' is not a regular expression: missing \\)"),
        ({"command": "a{99999999999}"}, "is not a regular expression"),
        ({"command": "(" * 5000 + ")" * 5000}, "is not a regular expression"),
        ({"command": ""}, "command is a text, not ''"),
        ({"user": 33}, "user is a text, not 33"),
        ({"unit": None, "cgroup": "system.slice"}, "A cgroup is a path that begins with /"),
        ({"pid": "7"}, "'7' is not a PID"),
        ({"pid": True}, "True is not a PID"),
        ({"pid": 1}, "1 is not a PID"),
        ({"pid": 0}, "0 is not a PID"),
        ({"colour": "blue"}, "cannot be selected by 'colour'"),
    ],
)
def test_malformed_selectors(data: dict[str, Any], message: str) -> None:
    """The error is one sentence."""
    with pytest.raises(UsageError, match=message):
        Selector.from_json(data)


def test_by_what_processes_are_selected() -> None:
    """The names are those of the fields; conditions that are absent are left out."""
    assert NAMES == ("pid", "command", "user", "cgroup", "unit", "all")
    assert Selector(user="ann", command="x").to_json() == {"command": "x", "user": "ann"}
    assert Selector(user="ann", command="x").describe() == "command x and user ann"
    assert Selector(all=True).to_json() == {"all": True}
    assert Selector(all=True).describe() == "all processes"


SELECTORS = some.one_of(
    some.just(Selector(all=True)),
    some.builds(Selector, pid=some.integers(2, 40)),
    some.builds(
        Selector,
        user=some.sampled_from(["www", "ann", "33", "root"]),
        command=some.sampled_from("abn"),
    ),
    some.builds(Selector, cgroup=some.sampled_from(["/", "/a", "/a/b", "/ab"])),
)
PROCESSES = some.builds(
    process,
    some.integers(2, 40),
    some.text("abn", max_size=4),
    some.sampled_from(["www", "ann", ""]),
    some.sampled_from(["/", "/a", "/a/b", "/ab", "/ab/a"]),
)
FORESTS = some.lists(
    some.builds(
        lambda members, verdict: Grown(members[0].pid, tuple(members), verdict),
        some.lists(PROCESSES, min_size=1, max_size=4),
        some.sampled_from(["", "", "no"]),
    ),
    max_size=6,
    unique_by=lambda tree: tree.pid,
)


@settings(max_examples=60)
@given(SELECTORS, FORESTS)
def test_each_tree_with_a_match_once_and_no_other(selector: Selector, trees: list[Grown]) -> None:
    """The trees with a match are picked whole and in order, also after a round trip to JSON."""
    picked = Selector.from_json(selector.to_json()).pick(trees)
    selected = [tree for tree in trees if any(map(selector.matches, tree.members))]
    assert list(picked.chosen) == [tree for tree in selected if not tree.verdict]
    assert list(picked.refused) == [tree for tree in selected if tree.verdict and not selector.all]


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("4242", Selector(pid=4242)),
        ("pid=4242", Selector(pid=4242)),
        ("unit=nginx", Selector(unit="nginx")),
        ("command=a=b", Selector(command="a=b")),
    ],
)
def test_one_condition_as_people_write_it(text: str, selector: Selector) -> None:
    """A number is a PID; what stands behind the first sign of equality is the value."""
    assert Selector.parsed(text) == selector


@pytest.mark.parametrize("text", ["nginx", "colour=red", "pid=x", "unit=", "=", "all=true"])
def test_a_condition_that_is_none(text: str) -> None:
    """It is refused with what would be one."""
    with pytest.raises(UsageError):
        Selector.parsed(text)
