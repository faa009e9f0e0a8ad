"""``watch``, ``history`` and the tables, as real programs on a real terminal and in a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from subprocess import PIPE, Popen
from typing import Any
from uuid import uuid4

import pytest

from sojourn.cli.history import percentile, summed
from sojourn.cluster.ledger import Ledger
from sojourn.cluster.registry import Registry
from sojourn.cluster.store import Store
from sojourn.model import Failure, Plan, State, StepRecord
from sojourn.system.run import CLEAN_ENVIRONMENT, run
from tests.conftest import eventually
from tests.integration.conftest import PLAN, ROOT, Redis
from tests.integration.test_metrics import _result
from tests.integration.test_registry import ALPHA

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def ledger(redis: Redis) -> Ledger:
    """Return an empty ledger."""
    store = Store(redis.url)
    store._redis.flushall()
    return Ledger(store, 3600)


@pytest.fixture
def environment(redis: Redis) -> dict[str, str]:
    """Return the environment of a program on an operator's machine."""
    return CLEAN_ENVIRONMENT | {
        "SOJOURN_REDIS_URL": redis.url,
        "SOJOURN_CONFIG": "/dev/null",
        "PYTHONPATH": ":".join([str(ROOT), *sys.path]),
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
    }


class Terminal:
    """A program on a terminal of its own: its output, and how it ended."""

    def __init__(
        self, environment: dict[str, str], *words: str, columns: int = 120, **more: str
    ) -> None:
        self.written = b""
        self.status = 0
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            size = struct.pack("HHHH", 24, columns, 0, 0)
            fcntl.ioctl(1, termios.TIOCSWINSZ, size)
            # As a shell does: where the tests run in the background, SIGINT is ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(
                sys.executable,
                [sys.executable, "-m", "sojourn", *words],
                environment | {"TERM": "xterm-256color"} | more,
            )
        os.set_blocking(self.descriptor, False)

    def text(self) -> str:
        """Return all output so far."""
        with contextlib.suppress(OSError):  # EIO: the program has ended; EAGAIN: nothing new
            while found := os.read(self.descriptor, 65536):
                self.written += found
        return self.written.decode(errors="replace")

    def shows(self, fragment: str) -> None:
        """Wait until its output has this fragment."""
        eventually(lambda: fragment in COLOUR.sub("", self.text()), within_s=15)

    def interrupt(self) -> None:
        """Type Ctrl-C."""
        os.write(self.descriptor, b"\x03")

    def ended(self) -> int:
        """Return its exit code, when it has ended."""
        eventually(self._is_over, within_s=15)
        return os.waitstatus_to_exitcode(self.status)

    def _is_over(self) -> bool:
        self.text()
        ended, self.status = os.waitpid(self.pid, os.WNOHANG)
        return bool(ended)

    def close(self) -> None:
        """End it, if it has not ended."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.descriptor)


@pytest.fixture
def on_terminal(environment: dict[str, str]) -> Iterator[Any]:
    """Start programs on terminals."""
    made: list[Terminal] = []

    def start(*words: str, **more: Any) -> Terminal:
        made.append(Terminal(environment, *words, **more))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()


@pytest.fixture
def in_pipe(environment: dict[str, str]) -> Iterator[Any]:
    """Start programs whose output is a pipe."""
    made: list[Popen[str]] = []

    def start(*words: str) -> Popen[str]:
        argv = [sys.executable, "-m", "sojourn", *words]
        made.append(Popen(argv, stdout=PIPE, stderr=PIPE, text=True, env=environment))
        return made[-1]

    yield start
    for program in made:
        program.kill()
        program.communicate()


def _begun(ledger: Ledger, pid: int = 4242) -> str:
    migration = str(uuid4())
    ledger.open(migration, Plan(pid, "alpha", "beta"))
    ledger.record_state(migration, State.RUNNING)
    now = time.time()
    ledger.record_step(
        migration, "source", StepRecord("examine", "alpha", now, now + 0.02, "a [red] program")
    )
    return migration


def _arrived(ledger: Ledger, migration: str) -> None:
    now = time.time()
    ledger.record_step(
        migration, "destination", StepRecord("restore", "beta", now, now + 0.4, "it runs on beta")
    )
    ledger.close(migration, _result(id=migration, pid=4242))


def _lines(program: Popen[str], count: int) -> list[str]:
    assert program.stdout
    return [program.stdout.readline().rstrip("\n") for _ in range(count)]


def test_watch_in_a_pipe(ledger: Ledger, in_pipe: Any) -> None:
    """Open migrations first, then one line per event as it happens, also of later migrations."""
    first = _begun(ledger)
    program = in_pipe("watch")
    assert _lines(program, 1) == [f"{first[:8]} pid 4242 from alpha to beta: running"]
    second = _begun(ledger, 77)
    _arrived(ledger, first)
    assert _lines(program, 5) == [
        f"{second[:8]} pid 77 from alpha to beta: queued",
        f"{second[:8]} pid 77 from alpha to beta: running",
        f"{second[:8]} alpha: examine (20 ms): a [red] program",
        f"{first[:8]} beta: restore (400 ms): it runs on beta",
        f"{first[:8]} pid 4242 from alpha to beta: completed",
    ]


def test_watch_as_json(ledger: Ledger, in_pipe: Any) -> None:
    """Every event is an object on a line of its own, at once."""
    first = _begun(ledger)
    program = in_pipe("watch", "--json")
    (event,) = map(json.loads, _lines(program, 1))
    assert (event["migration"], event["kind"], event["state"], event["pid"]) == (
        first,
        "state",
        "running",
        4242,
    )
    second = _begun(ledger, 77)
    *states, step = map(json.loads, _lines(program, 3))
    assert [state["state"] for state in states] == ["queued", "running"]
    assert (step["migration"], step["kind"], step["name"], step["host"]) == (
        second,
        "step",
        "examine",
        "alpha",
    )


def test_watch_one_to_its_end(ledger: Ledger, in_pipe: Any) -> None:
    """The exit code is that of its end; one that has ended already is shown at once."""
    migration = _begun(ledger)
    program = in_pipe("watch", migration[:8])
    time.sleep(1.5)
    _begun(ledger, 77)
    failure = Failure("CRIU_FAILED", "It broke.", "", "dump", "alpha")
    ledger.record_failure(migration, failure)
    ledger.close(migration, _result(State.ROLLED_BACK, id=migration, failure=None))
    assert program.wait(15) == 11
    out = program.stdout.read()
    assert f"{migration[:8]} pid 4242 from alpha to beta: rolled back" in out
    assert "pid 77" not in out
    again = in_pipe("watch", migration[:8], "--json")
    assert again.wait(15) == 11
    assert json.loads(again.stdout.read())["state"] == "rolled back"


def test_watch_one_that_is_in_doubt(ledger: Ledger, in_pipe: Any) -> None:
    """It goes on until the end is known, however often the doubt is reported."""
    migration = _begun(ledger)
    ledger.record_doubt(migration)
    program = in_pipe("watch", migration)
    lines = iter(program.stdout.readline, "")
    assert any("beta has been silent since " in line for line in lines)
    assert any("You may: Bring alpha and beta back" in line for line in lines)
    ledger.record_doubt(migration)
    assert any("from alpha to beta: in doubt" in line for line in lines)
    assert program.poll() is None
    _arrived(ledger, migration)
    assert program.wait(15) == 0
    assert "silent since" not in program.stdout.read(), "the same help is not repeated"


def test_a_doubt_is_shown_with_what_a_person_may_do(
    ledger: Ledger, environment: dict[str, str], on_terminal: Any
) -> None:
    """``show`` and ``watch`` have the help, the table of all a line of it, JSON the same."""
    migration = _begun(ledger)
    ledger.record_doubt(migration)
    one, board = on_terminal("watch", migration), on_terminal("watch")
    one.shows("By itself: Nothing until both hosts are back")
    board.shows(f"What you may do: sojourn show {migration[:8]}")
    argv = [sys.executable, "-m", "sojourn", "show", migration]
    shown = run(argv, deadline_s=30, env=environment).stdout
    doubt = json.loads(run([*argv, "--json"], deadline_s=30, env=environment).stdout)["doubt"]
    assert doubt["silent"] == "beta"
    for text in (doubt["by_itself"], *doubt["you_may"][0].values(), doubt["how_to"]):
        assert text in shown


@pytest.fixture
def windowed(ledger: Ledger) -> str:
    """Return a migration that is in the window of post-copy."""
    migration = str(uuid4())
    ledger.open(migration, Plan(4242, "alpha", "beta", "post-copy"))
    ledger.record_state(migration, State.RUNNING)
    now = time.time()
    restored = StepRecord("restore", "beta", now, now + 0.4, "it runs on beta")
    ledger.record_step(migration, "destination", restored)
    ledger.record_progress(migration, bytes=5, total=10, missing=312_000_000, faults=0)
    return migration


def test_show_and_watch_in_the_window(
    windowed: str, ledger: Ledger, environment: dict[str, str], on_terminal: Any
) -> None:
    """They show how much is to come, and that both hosts are needed until then."""
    argv = [sys.executable, "-m", "sojourn", "show", windowed]
    shown = run(argv, deadline_s=30, env=environment).stdout
    both = "It runs on beta; 312.0 MB still to come from alpha, so both hosts are needed."
    assert both in shown
    as_json = json.loads(run([*argv, "--json"], deadline_s=30, env=environment).stdout)
    assert as_json["progress"]["missing"] == 312_000_000
    one, board = on_terminal("watch", windowed), on_terminal("watch")
    one.shows(both)
    board.shows("312.0 MB to come")
    board.shows(both)
    now = time.time()
    settled = StepRecord("settle", "beta", now, now + 0.4, "all memory is in place")
    ledger.record_step(windowed, "destination", settled)
    _arrived(ledger, windowed)
    assert one.ended() == 0


def test_watch_of_nothing(ledger: Ledger, in_pipe: Any) -> None:
    """An unknown id is a usage error."""
    assert in_pipe("watch", "ffffffff").wait(15) == 2


@pytest.mark.parametrize("words", [["watch"], ["watch", "--json"]])
def test_a_pipe_that_is_closed(ledger: Ledger, in_pipe: Any, words: list[str]) -> None:
    """Whoever has seen enough gets no error."""
    migration = _begun(ledger)
    program = in_pipe(*words)
    time.sleep(1.5)
    ledger.record_state(migration, State.RUNNING)
    _lines(program, 1)
    program.stdout.close()
    until = time.monotonic() + 15
    while program.poll() is None and time.monotonic() < until:
        ledger.record_state(migration, State.RUNNING)
        time.sleep(0.1)
    assert program.poll() is not None
    assert program.stderr.read() == ""


def test_ctrl_c_ends_the_display_only(ledger: Ledger, on_terminal: Any) -> None:
    """The migration goes on, and the command that comes back is shown."""
    migration = _begun(ledger)
    terminal = on_terminal("watch")
    terminal.shows("examine")
    terminal.interrupt()
    terminal.shows("Migrations go on. Come back with: sojourn watch")
    assert terminal.ended() == 130
    assert ledger.open_ones() == {migration: State.RUNNING}


def test_ctrl_c_while_one_is_watched(ledger: Ledger, on_terminal: Any) -> None:
    """The command that comes back names the migration."""
    migration = _begun(ledger)
    terminal = on_terminal("watch", migration[:8])
    terminal.shows("examine")
    terminal.interrupt()
    terminal.shows(f"Come back with: sojourn watch {migration[:8]}")
    assert terminal.ended() == 130


def test_the_table_is_live(ledger: Ledger, on_terminal: Any) -> None:
    """Migrations appear when they begin, and show it when they end."""
    first = _begun(ledger)
    terminal = on_terminal("watch")
    terminal.shows("1 under way, 0 waiting, 0 just ended")
    _begun(ledger, 77)
    terminal.shows("2 under way")
    _arrived(ledger, first)
    terminal.shows("1 under way, 0 waiting, 1 just ended")
    terminal.shows("completed")


def _history(ledger: Ledger) -> None:
    for number in range(1, 101):
        migration = str(uuid4())
        ledger.open(migration, PLAN)
        state = State.ROLLED_BACK if number % 10 == 0 else State.COMPLETED
        ledger.close(migration, _result(state, frozen_ms=float(number), downtime_ms=number + 0.5))


@pytest.mark.parametrize("words", [["watch"], ["list"], ["hosts"], ["history"], ["show"]])
def test_a_narrow_terminal(
    ledger: Ledger, redis: Redis, on_terminal: Any, words: list[str]
) -> None:
    """No line is longer than the terminal, and a migration in a list is still one line."""
    _history(ledger)
    migration = _begun(ledger)
    Registry(Store(redis.url)).announce(ALPHA, 100)
    terminal = on_terminal(*words, *([migration] if words == ["show"] else []), columns=60)
    expected = {
        "watch": migration[:8],
        "list": migration[:8],
        "hosts": "alpha",
        "history": "beta",
        "show": "examine",
    }
    terminal.shows(expected[words[0]])
    if words == ["watch"]:
        terminal.interrupt()
    terminal.ended()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.text())
    lines = re.split(r"[\r\n]+|\^C", text)
    assert max(map(len, lines)) <= 60
    (row, *_) = [line for line in lines if expected[words[0]] in line]
    whole = {
        "watch": "running",
        "list": "running",
        "hosts": " GB of ",
        "history": "99 ms",
        "show": "a [red] program",
    }
    assert whole[words[0]] in row
    assert "…" not in text


def test_all_columns_on_a_terminal(ledger: Ledger, on_terminal: Any) -> None:
    """``-o wide`` cuts nothing off, however narrow the terminal is; a row is one line."""
    migration = _begun(ledger)
    terminal = on_terminal("list", "-o", "wide", columns=60)
    terminal.shows(migration[:8])
    terminal.ended()
    title, row, *rest = COLOUR.sub("", terminal.text()).splitlines()
    assert (title.split()[0], title.split()[-1], rest) == ("id", "batch", [])
    assert row.split()[:5] == [migration[:8], "4242", "alpha", "beta", "running"]


@pytest.mark.parametrize("words", ["watch", "list", "hosts", "history"])
def test_no_color(ledger: Ledger, redis: Redis, on_terminal: Any, words: str) -> None:
    """With NO_COLOR there are no colours, on a terminal either; without it there are."""
    _history(ledger)
    _begun(ledger)
    Registry(Store(redis.url)).announce(ALPHA, 100)
    plain, coloured = on_terminal(words, NO_COLOR="1"), on_terminal(words)
    for terminal in (plain, coloured):
        terminal.shows("alpha")
        if words == "watch":
            terminal.interrupt()
        terminal.ended()
    colours = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|9[0-7]|38;[0-9;]+)m")
    assert colours.search(coloured.text())
    assert not colours.search(plain.text())


def test_history(ledger: Ledger, environment: dict[str, str]) -> None:
    """Per pair of hosts and mode: number, failures, and percentiles of those that arrived."""
    _history(ledger)
    doubt = str(uuid4())
    ledger.open(doubt, PLAN)
    ledger.close(doubt, _result(State.IN_DOUBT))
    argv = [sys.executable, "-m", "sojourn", "history"]
    (line,) = json.loads(run([*argv, "--json"], deadline_s=30, env=environment).stdout)
    assert (line["source"], line["destination"], line["mode"]) == ("alpha", "beta", "stop-and-copy")
    assert (line["count"], line["failures"], line["pages_bytes"]) == (100, 10, 100_000)
    assert line["frozen_ms"] == {"50": 49, "90": 89, "99": 99}
    assert line["downtime_ms"] == {"50": 49.5, "90": 89.5, "99": 99.5}
    text = run(argv, deadline_s=30, env={**environment, "COLUMNS": "120"}).stdout
    assert re.search(r"alpha\s+beta\s+stop-and-copy\s+90\s+10\s+49 ms\s+89 ms\s+99 ms", text)


@pytest.mark.parametrize(("since", "count"), [("1h", 0), ("3d", 1), ("1970-01-02", 1)])
def test_history_since(ledger: Ledger, environment: dict[str, str], since: str, count: int) -> None:
    """Only what was requested since then; a span of time, or a date."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    ledger.close(migration, _result())
    ledger._store._redis.zadd("sojourn:migrations", {migration: time.time() - 7200})
    argv = [sys.executable, "-m", "sojourn", "history", "--json", "--since", since]
    assert len(json.loads(run(argv, deadline_s=30, env=environment).stdout)) == count


def test_history_since_nonsense(environment: dict[str, str]) -> None:
    """A malformed time is a usage error."""
    argv = [sys.executable, "-m", "sojourn", "history", "--since", "yore"]
    done = run(argv, deadline_s=30, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'yore' is not a time.")


def test_percentiles() -> None:
    """Nearest rank: always a value that was measured."""
    assert [percentile([3, 1, 2], percent) for percent in (1, 50, 90, 99)] == [1, 2, 3, 3]
    assert percentile([7], 50) == 7


def test_a_summary_of_nothing() -> None:
    """Where nothing arrived there are no percentiles."""
    (line,) = summed(
        [
            _result(
                State.REFUSED, frozen_ms=None, downtime_ms=None, pages_bytes=None, images_bytes=None
            )
        ]
    )
    assert (line.count, line.moved, line.frozen_ms, line.downtime_ms) == (1, 0, {}, {})


def test_what_has_not_failed() -> None:
    """A refusal and an abort are counted apart; a host that is silent is a failure."""
    ends = [State.COMPLETED, State.REFUSED, State.REFUSED, State.ABORTED, State.UNREACHABLE]
    (line,) = summed(_result(state, frozen_ms=None, downtime_ms=None) for state in ends)
    assert (line.count, line.moved, line.refused, line.aborted, line.failures) == (5, 1, 2, 1, 1)
