"""What people see: ``watch``, ``history`` and the tables, as real programs on a real terminal and in a pipe."""

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
from sojourn.ledger import Ledger
from sojourn.model import Failure, Plan, State, StepRecord
from sojourn.registry import Registry
from sojourn.run import CLEAN_ENVIRONMENT, run
from sojourn.store import Store
from tests.conftest import eventually
from tests.integration.conftest import PLAN, ROOT, Redis
from tests.integration.test_metrics import _result
from tests.integration.test_registry import ALPHA

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def ledger(redis: Redis) -> Ledger:
    """Give out an empty ledger."""
    store = Store(redis.url)
    store._redis.flushall()
    return Ledger(store, 3600)


@pytest.fixture
def environment(redis: Redis) -> dict[str, str]:
    """Give out what a program on an operator's machine has."""
    return CLEAN_ENVIRONMENT | {
        "SOJOURN_REDIS_URL": redis.url,
        "SOJOURN_CONFIG": "/nonexistent",
        "PYTHONPATH": ":".join([str(ROOT), *sys.path]),
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
    }


class Terminal:
    """A program on a terminal of its own, so wide; what it wrote, and how it ended."""

    def __init__(self, environment: dict[str, str], *words: str, columns: int = 120, **more: str) -> None:
        self.written = b""
        self.status = 0
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            size = struct.pack("HHHH", 24, columns, 0, 0)
            fcntl.ioctl(1, termios.TIOCSWINSZ, size)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a shell does, also where the tests run in the background
            os.execve(
                sys.executable,
                [sys.executable, "-m", "sojourn", *words],
                environment | {"TERM": "xterm-256color"} | more,
            )
        os.set_blocking(self.descriptor, False)

    def text(self) -> str:
        """Return all that was written so far."""
        with contextlib.suppress(OSError):  # EIO: the program has ended; EAGAIN: nothing new
            while found := os.read(self.descriptor, 65536):
                self.written += found
        return self.written.decode(errors="replace")

    def says(self, words: str) -> None:
        """Wait until it has written these words."""
        eventually(lambda: words in COLOUR.sub("", self.text()), within_s=15)

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
    for each in made:
        each.close()


@pytest.fixture
def in_pipe(environment: dict[str, str]) -> Iterator[Any]:
    """Start programs whose output is a pipe."""
    made: list[Popen[str]] = []

    def start(*words: str) -> Popen[str]:
        argv = [sys.executable, "-m", "sojourn", *words]
        made.append(Popen(argv, stdout=PIPE, stderr=PIPE, text=True, env=environment))
        return made[-1]

    yield start
    for each in made:
        each.kill()
        each.communicate()


def _begun(ledger: Ledger, pid: int = 4242) -> str:
    migration = str(uuid4())
    ledger.open(migration, Plan(pid, "alpha", "beta"))
    ledger.tell_state(migration, State.RUNNING)
    now = time.time()
    ledger.tell_step(migration, "source", StepRecord("examine", "alpha", now, now + 0.02, "a [red] program"))
    return migration


def _arrived(ledger: Ledger, migration: str) -> None:
    now = time.time()
    ledger.tell_step(migration, "destination", StepRecord("restore", "beta", now, now + 0.4, "it runs on beta"))
    ledger.close(migration, _result(id=migration, pid=4242))


def _lines(program: Popen[str], count: int) -> list[str]:
    assert program.stdout
    return [program.stdout.readline().rstrip("\n") for _ in range(count)]


def test_watch_in_a_pipe(ledger: Ledger, in_pipe: Any) -> None:
    """What is open is told first, then one line for each event as it happens, also of one that begins later."""
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
    """Each event is an object on a line of its own, at once."""
    first = _begun(ledger)
    program = in_pipe("watch", "--json")
    (told,) = map(json.loads, _lines(program, 1))
    assert (told["migration"], told["kind"], told["state"], told["pid"]) == (first, "state", "running", 4242)
    second = _begun(ledger, 77)
    *states, step = map(json.loads, _lines(program, 3))
    assert [each["state"] for each in states] == ["queued", "running"]
    assert (step["migration"], step["kind"], step["name"], step["host"]) == (second, "step", "examine", "alpha")


def test_watch_one_to_its_end(ledger: Ledger, in_pipe: Any) -> None:
    """The exit code is that of its end; one that has ended already is told at once."""
    migration = _begun(ledger)
    program = in_pipe("watch", migration[:8])
    time.sleep(1.5)
    _begun(ledger, 77)
    failure = Failure("CRIU_FAILED", "It broke.", "", "dump", "alpha")
    ledger.tell_failure(migration, failure)
    ledger.close(migration, _result(State.ROLLED_BACK, id=migration, failure=None))
    assert program.wait(15) == 11
    out = program.stdout.read()
    assert f"{migration[:8]} pid 4242 from alpha to beta: rolled back" in out
    assert "pid 77" not in out
    again = in_pipe("watch", migration[:8], "--json")
    assert again.wait(15) == 11
    assert json.loads(again.stdout.read())["state"] == "rolled back"


def test_watch_one_that_is_in_doubt(ledger: Ledger, in_pipe: Any) -> None:
    """It goes on until the end is known, however often the doubt is told."""
    migration = _begun(ledger)
    ledger.tell_doubt(migration)
    program = in_pipe("watch", migration)
    time.sleep(1.5)
    ledger.tell_doubt(migration)
    time.sleep(0.5)
    assert program.poll() is None
    _arrived(ledger, migration)
    assert program.wait(15) == 0


def test_watch_of_nothing(ledger: Ledger, in_pipe: Any) -> None:
    """An id that nobody knows is usage."""
    assert in_pipe("watch", "ffffffff").wait(15) == 2


@pytest.mark.parametrize("words", [["watch"], ["watch", "--json"]])
def test_a_pipe_that_is_closed(ledger: Ledger, in_pipe: Any, words: list[str]) -> None:
    """Whoever has seen enough gets no complaint."""
    migration = _begun(ledger)
    program = in_pipe(*words)
    time.sleep(1.5)
    ledger.tell_state(migration, State.RUNNING)
    _lines(program, 1)
    program.stdout.close()
    until = time.monotonic() + 15
    while program.poll() is None and time.monotonic() < until:
        ledger.tell_state(migration, State.RUNNING)
        time.sleep(0.1)
    assert program.poll() is not None
    assert program.stderr.read() == ""


def test_ctrl_c_ends_the_display_only(ledger: Ledger, on_terminal: Any) -> None:
    """The migration goes on, and how to come back is said."""
    migration = _begun(ledger)
    terminal = on_terminal("watch")
    terminal.says("examine")
    terminal.interrupt()
    terminal.says("Migrations go on. Come back with: sojourn watch")
    assert terminal.ended() == 130
    assert ledger.open_ones() == {migration: State.RUNNING}


def test_ctrl_c_while_one_is_watched(ledger: Ledger, on_terminal: Any) -> None:
    """The command that comes back names the migration."""
    migration = _begun(ledger)
    terminal = on_terminal("watch", migration[:8])
    terminal.says("examine")
    terminal.interrupt()
    terminal.says(f"Come back with: sojourn watch {migration[:8]}")
    assert terminal.ended() == 130


def test_the_table_is_live(ledger: Ledger, on_terminal: Any) -> None:
    """What begins appears, what ends says so."""
    first = _begun(ledger)
    terminal = on_terminal("watch")
    terminal.says("1 under way, 0 waiting, 0 just ended")
    _begun(ledger, 77)
    terminal.says("2 under way")
    _arrived(ledger, first)
    terminal.says("1 under way, 0 waiting, 1 just ended")
    terminal.says("completed")


def _history(ledger: Ledger) -> None:
    for number in range(1, 101):
        migration = str(uuid4())
        ledger.open(migration, PLAN)
        state = State.ROLLED_BACK if number % 10 == 0 else State.COMPLETED
        ledger.close(migration, _result(state, frozen_ms=float(number), downtime_ms=number + 0.5))


@pytest.mark.parametrize("words", [["watch"], ["list"], ["hosts"], ["history"], ["show"]])
def test_a_narrow_terminal(ledger: Ledger, redis: Redis, on_terminal: Any, words: list[str]) -> None:
    """No line is longer than the terminal, and each migration is still one line where it is one of many."""
    _history(ledger)
    migration = _begun(ledger)
    Registry(Store(redis.url)).announce(ALPHA, 100)
    terminal = on_terminal(*words, *([migration] if words == ["show"] else []), columns=60)
    expected = {"watch": migration[:8], "list": migration[:8], "hosts": "alpha", "history": "beta", "show": "examine"}
    terminal.says(expected[words[0]])
    if words == ["watch"]:
        terminal.interrupt()
    terminal.ended()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.text())
    lines = re.split(r"[\r\n]+|\^C", text)
    assert max(map(len, lines)) <= 60
    (row, *_) = [line for line in lines if expected[words[0]] in line]
    whole = {"watch": "running", "list": "running", "hosts": " MB of ", "history": "99 ms", "show": "a [red] program"}
    assert whole[words[0]] in row
    assert "…" not in text


@pytest.mark.parametrize("words", ["watch", "list", "hosts", "history"])
def test_no_color(ledger: Ledger, redis: Redis, on_terminal: Any, words: str) -> None:
    """With NO_COLOR nothing is coloured, on a terminal too; without it something is."""
    _history(ledger)
    _begun(ledger)
    Registry(Store(redis.url)).announce(ALPHA, 100)
    plain, coloured = on_terminal(words, NO_COLOR="1"), on_terminal(words)
    for terminal in (plain, coloured):
        terminal.says("alpha")
        if words == "watch":
            terminal.interrupt()
        terminal.ended()
    hues = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|9[0-7]|38;[0-9;]+)m")
    assert hues.search(coloured.text())
    assert not hues.search(plain.text())


def test_history(ledger: Ledger, environment: dict[str, str]) -> None:
    """Per pair of hosts and mode: how many, how many failed, and percentiles of those that arrived."""
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
    """Only what was asked for since then; a span of time, or a date."""
    migration = str(uuid4())
    ledger.open(migration, PLAN)
    ledger.close(migration, _result())
    ledger._store._redis.zadd("sojourn:migrations", {migration: time.time() - 7200})
    argv = [sys.executable, "-m", "sojourn", "history", "--json", "--since", since]
    assert len(json.loads(run(argv, deadline_s=30, env=environment).stdout)) == count


def test_history_since_nonsense(environment: dict[str, str]) -> None:
    """What is no time is usage."""
    argv = [sys.executable, "-m", "sojourn", "history", "--since", "yore"]
    done = run(argv, deadline_s=30, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'yore' is no time.")


def test_percentiles() -> None:
    """Nearest rank: always a value that was measured."""
    assert [percentile([3, 1, 2], percent) for percent in (1, 50, 90, 99)] == [1, 2, 3, 3]
    assert percentile([7], 50) == 7


def test_a_summary_of_nothing() -> None:
    """Where nothing arrived there are no percentiles."""
    (line,) = summed([_result(State.REFUSED, frozen_ms=None, downtime_ms=None, pages_bytes=None, images_bytes=None)])
    assert (line.count, line.failures, line.frozen_ms, line.downtime_ms) == (1, 1, {}, {})
