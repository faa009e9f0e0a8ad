"""An operator intervenes, on real hosts: abort in every phase, and resolve for dead hosts."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import workload
from lab.host import within
from lab.workload import Workload
from sojourn.model import State
from sojourn.system.run import run
from tests.lab.site import (
    MIGRATION_S,
    Ended,
    Site,
    fresh_lab,
    killed_at_write,
    left_behind,
    require_lab,
    runs_on,
)
from workflows.intervene import SILENCE_S

pytestmark = pytest.mark.lab

#: Stalled migrations are moved on soon, but only after the operator of a test has decided. A main
#: lane runs one step at a time.
SETTINGS = {
    "reconcile_s": 0.5,
    "stall_s": 4,
    "patience_s": 60,
    "announce_s": 0.5,
    "concurrency": 1,
    "freeze_slots": 2,
}

FAILPOINTS = "/var/lib/sojourn/failpoints"
JOURNAL = "/var/lib/sojourn/journal.db"


#: Kills the process that works on a migration, and with it the message that it had taken. Who holds
#: a lock is in /proc/locks (proc_locks(5)).
KILL_LOCK_HOLDER = """
inode=$(stat -c %i /run/sojourn/{id}/lock)
holder=$(grep FLOCK /proc/locks | grep ":$inode " | head -n 1)
kill -KILL $(echo "$holder" | sed 's/  */ /g' | cut -d ' ' -f 5)
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Site]:
    """Start a separate lab, whose reconcilers wait only seconds."""
    require_lab()
    with fresh_lab("intervene", settings=SETTINGS) as lab:
        yield Site(lab)


@pytest.fixture
def site(made: Site) -> Iterator[Site]:
    """Return the site, with its hosts up and their workers ready; remove what a test leaves."""
    for name in ("alpha", "beta"):
        host = made.host(name)
        assert within(20, partial(made.answers, host)), host.log("worker")
    yield made
    for name in ("alpha", "beta"):
        host = made.host(name)
        host.run(["sh", "-c", f"rm -rf {FAILPOINTS}; pkill -KILL -f '[/]shared/' || true"])


@dataclass
class Case:
    """One migration of a counter from alpha to beta, which can be stopped on its way."""

    site: Site
    counter: Workload
    id: str = ""
    aborted: list[Ended] = field(default_factory=list)

    def migrate(self) -> None:
        """Begin it."""
        arguments = (
            "migrate",
            str(self.counter.pid),
            "--from",
            "alpha",
            "--to",
            "beta",
            "--detach",
        )
        self.id = self.site.sojourn(*arguments).stdout.strip()
        assert self.id

    def migrate_until(self, where: str, instant: str) -> None:
        """Begin it and return when it pauses at the instant on that host."""
        host = self.site.lab.host(where)
        host.run(["sh", "-c", f"mkdir -p {FAILPOINTS}; touch {FAILPOINTS}/{instant}"])
        self.migrate()
        reached = ["test", "-e", f"{FAILPOINTS}/{instant}.reached"]
        # After a crash, slots of earlier migrations may be free only when their lease has expired.
        assert within(45, lambda: host.run(reached, check=False).returncode == 0), self.details()

    def go_on(self, where: str) -> None:
        """Let it continue on that host."""
        self.site.lab.host(where).run(["sh", "-c", f"rm -f {FAILPOINTS}/*"])

    def command(self, *arguments: str, answer: str | None = None) -> Ended:
        """Run a command that ends with ``--json``."""
        argv = [sys.executable, "-m", "sojourn", *arguments, "--json"]
        config = {"SOJOURN_CONFIG": str(self.site.lab.config)}
        done = run(argv, deadline_s=MIGRATION_S, check=False, env=config, stdin=answer)
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, json.loads(done.stdout.strip() or "{}"))

    def abort(self) -> Ended:
        """Abort it and return how that ended."""
        return self.command("abort", self.id)

    def abort_meanwhile(self) -> threading.Thread:
        """Abort it in a thread and return as soon as that waits."""
        thread = threading.Thread(target=lambda: self.aborted.append(self.abort()))
        thread.start()
        assert within(20, lambda: "interrupt" in self.steps()), self.details()
        return thread

    def resolve(self, *options: str) -> Ended:
        """Declare a host dead."""
        return self.command("resolve", self.id, *options, "--yes")

    def shown(self) -> dict[str, Any]:
        """Return what ``sojourn show`` reports of it."""
        return self.command("show", self.id).answer

    def details(self) -> str:
        """Return the report as text, which pytest shows whole."""
        return json.dumps(self.shown(), indent=1)

    def steps(self) -> list[str]:
        """Return the names of its steps so far."""
        return [step["name"] for step in self.shown()["steps"]]

    def doubt(self) -> dict[str, Any]:
        """Return what there is to know of it while it is in doubt."""
        found: dict[str, Any] = self.shown()["doubt"]
        return found

    def hints(self) -> list[list[str]]:
        """Return the commands that it names as ways out, as words behind ``sojourn``."""
        acts = [way["do"] for way in self.doubt()["you_may"]]
        commands = [command for act in acts for command in re.findall(r"`sojourn (.*?)`", act)]
        return [command.split() for command in commands]

    def follow(self, hint: list[str]) -> Ended:
        """Run the command of a way out, and confirm it where it asks."""
        return self.command(*hint, answer="y\n")

    def becomes(self, state: str) -> None:
        """Wait for a state."""
        assert within(25, lambda: self.shown()["state"] == state), self.details()

    def phase(self, name: str) -> str:
        """Return its phase in a host's journal."""
        query = f"SELECT phase FROM migration WHERE id = '{self.id}'"
        rows = f"sqlite3.connect('{JOURNAL}').execute(\"{query}\")"
        script = f"import sqlite3; [print(row[0]) for row in {rows}]"
        return self.site.lab.host(name).run(["python3", "-c", script]).stdout.strip()

    def rests(self, alpha: str, beta: str) -> None:
        """Wait until both journals have these phases and nothing is left on either host."""
        hosts = [self.site.lab.host(name) for name in ("alpha", "beta")]
        assert within(25, lambda: (self.phase("alpha"), self.phase("beta")) == (alpha, beta)), (
            self.details()
        )
        assert within(15, lambda: not any(left_behind(host) for host in hosts)), [
            left_behind(host) for host in hosts
        ]

    def runs_once(self, owner: str) -> None:
        """Check that the process beats on that host only, and that there never were two copies."""
        other = {"alpha": "beta", "beta": "alpha"}[owner]
        assert self.counter.wait_for_beats(40).host == owner
        assert not self.site.lab.host(other).is_up or not runs_on(
            self.site.lab.host(other), self.counter
        )
        assert self.counter.status().details["damaged_slices"] == 0
        self.never_ran_twice()

    def never_ran_twice(self) -> None:
        """Check that one copy has done all the beats."""
        beats = [number for number, _ in self.counter.witnessed()]
        assert beats == sorted(set(beats))


@pytest.fixture
def case(site: Site) -> Case:
    """Return a counter that runs on alpha."""
    counter = workload.start(site.host("alpha"), "counter", mb=16)
    counter.wait_for_beats()
    return Case(site, counter)


def assert_aborted(case: Case, ended: Ended) -> None:
    """Check that an abort has left the process on alpha, and reports that."""
    assert (ended.code, ended.answer.get("state"), ended.answer.get("owner")) == (
        0,
        "aborted",
        "alpha",
    ), ended.answer
    assert "Aborted by " in ended.answer["failure"]["message"]
    case.rests("resumed", "refused")
    case.runs_once("alpha")
    assert case.shown()["state"] == "aborted"


def test_abort_while_its_message_is_queued(site: Site, case: Case) -> None:
    """The destination is busy: the source ends it at once, and late messages start nothing."""
    other = Case(site, workload.start(site.host("alpha"), "counter", mb=8))
    other.migrate_until("beta", "preflight.begin")
    case.migrate()
    ended = case.abort()
    assert_aborted(case, ended)
    other.go_on("beta")
    other.becomes("completed")
    assert_aborted(case, ended)
    assert "dump" not in case.steps()


def test_abort_while_it_waits_for_a_slot(site: Site, case: Case) -> None:
    """All slots for frozen trees are taken: the later retry finds that it was aborted."""
    held = (
        "[db.execute('INSERT INTO held VALUES (?, ?, ?, ?)', (i, 'source', 'slot', 'freeze')) "
        "for i in 'ab']"
    )
    script = "import sqlite3; db = sqlite3.connect('%s', isolation_level=None); %s"
    site.lab.host("alpha").run(["python3", "-c", script % (JOURNAL, held)])
    case.migrate()
    assert within(20, lambda: "reserve" in case.steps())
    ended = case.abort()
    site.lab.host("alpha").run(
        ["python3", "-c", script % (JOURNAL, "db.execute('DELETE FROM held WHERE id < ?', 'c')")]
    )
    assert_aborted(case, ended)
    assert within(20, lambda: _retried(case)), case.details()
    assert_aborted(case, ended)


def _retried(case: Case) -> bool:
    """Whether the late message of ``reserve`` has come and was refused."""
    return any(
        step["name"] == "reserve" and step["host"] == "alpha" and step["failed"]
        for step in case.shown()["steps"]
    )


def test_abort_before_the_freeze(case: Case) -> None:
    """The source decides alone: the answer comes while the destination still pauses in its step."""
    case.migrate_until("beta", "reserve.end")
    ended = case.abort()
    assert case.phase("beta") == "reserved"
    case.go_on("beta")
    assert_aborted(case, ended)


def test_abort_while_memory_is_transferred(site: Site) -> None:
    """A dump whose other end is stopped is ended, and the process runs on."""
    case = Case(site, workload.start(site.host("alpha"), "counter", mb=384))
    case.migrate()
    beta = site.lab.host("beta")
    stop = ["sh", "-c", "pkill -STOP -f '[c]riu page-server'"]
    assert within(20, lambda: beta.run(stop, check=False).returncode == 0)
    assert case.phase("alpha") == "freezing"
    assert_aborted(case, case.abort())


def test_abort_of_a_frozen_tree(site: Site, case: Case) -> None:
    """The source decides alone, as soon as the step that is at work is dead."""
    case.migrate_until("alpha", "copy_images.begin")
    waiting = case.abort_meanwhile()
    site.lab.host("alpha").run(["sh", "-c", KILL_LOCK_HOLDER.format(id=case.id)])
    case.go_on("alpha")
    waiting.join()
    assert_aborted(case, case.aborted[0])


def test_abort_of_a_released_tree(site: Site, case: Case) -> None:
    """The destination's verdict decides: it lacks an image, so it refuses; the original runs on."""
    case.migrate_until("beta", "restore.begin")
    assert case.phase("alpha") == "released"
    site.lab.host("beta").run(["rm", f"/run/sojourn/{case.id}/images/inventory.img"])
    waiting = case.abort_meanwhile()
    case.go_on("beta")
    waiting.join()
    assert_aborted(case, case.aborted[0])


@pytest.mark.parametrize("instant", ["accepted.before", "accepted.after", "restore.end"])
def test_abort_that_comes_too_late(case: Case, instant: str) -> None:
    """A restore under way decides: the process runs on the destination, as the answer reports."""
    case.migrate_until("beta", instant)
    waiting = case.abort_meanwhile()
    case.go_on("beta")
    waiting.join()
    (ended,) = case.aborted
    assert (ended.code, ended.answer.get("state"), ended.answer.get("owner")) == (
        1,
        "completed",
        "beta",
    ), ended.answer
    assert ended.answer["failure"]["message"].endswith("It was too late.")
    case.rests("retired", "restored")
    case.runs_once("beta")


def test_abort_when_the_destination_has_died(site: Site, case: Case) -> None:
    """As long as the images have not left, the source does not wait for it."""
    case.migrate_until("beta", "reserve.end")
    site.lab.crash("beta")
    ended = case.abort()
    assert (ended.code, ended.answer.get("state"), ended.answer.get("owner")) == (
        0,
        "aborted",
        "alpha",
    ), ended.answer
    case.runs_once("alpha")
    site.host("beta")
    case.rests("resumed", "refused")


def test_the_destination_is_dead(site: Site, case: Case) -> None:
    """In doubt until the operator resolves it, by force since it has answered a moment ago.

    That must be confirmed. When it is back it refuses.
    """
    case.migrate_until("alpha", "copy_images.end")
    site.lab.crash("beta")
    case.go_on("alpha")
    aborted = case.abort()
    assert (aborted.code, aborted.answer.get("state"), aborted.answer.get("owner")) == (
        12,
        "in doubt",
        None,
    ), aborted.answer
    assert case.command("resolve", case.id, "--destination-is-dead", answer="n\n").code == 130
    assert (case.phase("alpha"), case.shown()["resolved"]) == ("released", None)
    ended = case.resolve("--destination-is-dead")
    assert ended.code == 2
    assert "beta dead, but that host answered" in ended.answer["error"]["message"]
    assert case.phase("alpha") == "released"
    doubt, (_, _, decide) = case.doubt(), case.hints()
    assert (doubt["silent"], decide[-1]) == ("beta", "--destination-is-dead")
    assert "add `--force`" in doubt["you_may"][2]["risk"]
    silent_since = datetime.fromisoformat(doubt["since"]).timestamp()
    ended = case.follow([*decide, "--force"])
    assert (ended.code, ended.answer["owner"]) == (0, "alpha"), ended.answer
    assert ended.answer["doubt"] is None
    freeze = case.shown()["freeze"]
    # The freeze contains the doubt: from before beta fell silent until the operator's word. A host
    # is heard of for the last time some moments before its crash.
    assert freeze["began"] < silent_since + 5
    assert silent_since + SILENCE_S < freeze["ended"] < time.time()
    case.runs_once("alpha")
    site.host("beta")
    case.rests("resumed", "refused")
    case.runs_once("alpha")
    assert re.search(
        r"@.* declared beta, the destination, dead for good at ",
        site.sojourn("show", case.id).stdout,
    )
    trail = [entry for entry in case.command("audit").answer if entry["subject"] == case.id]
    assert {(entry["action"], entry["outcome"]) for entry in trail} == {
        ("resolve", "refused"),
        *((action, "accepted") for action in ("migrate", "abort", "resolve")),
    }
    decided = {entry["host"] for entry in trail if entry["action"] == "resolve"}
    assert decided == {"alpha", "beta"}, "each host keeps what it was asked"


def test_a_destination_that_was_not_dead(site: Site, case: Case) -> None:
    """It was cut off with all images, and must ignore the message to restore when it is back."""
    case.migrate_until("alpha", "copy_images.end")
    site.lab.cut("beta")
    case.go_on("alpha")
    assert within(
        20, lambda: case.site.sojourn("hosts", "--json").stdout.count('"beta": null') == 1
    )
    assert case.resolve("--destination-is-dead", "--force").code == 0
    site.lab.heal("beta")
    case.rests("resumed", "refused")
    case.runs_once("alpha")
    assert case.shown()["owner"] == "alpha"


def test_the_hosts_are_brought_back(site: Site, case: Case) -> None:
    """Whichever is silent is named; an abort is safe; back again, they end it by themselves."""
    case.migrate_until("alpha", "copy_images.end")
    site.lab.cut("beta")
    case.go_on("alpha")
    case.becomes("in doubt")
    assert (case.doubt()["silent"], case.hints()[1][0]) == ("beta", "abort")
    assert case.follow(case.hints()[1]).code == 12
    site.lab.cut("alpha")
    assert within(20, lambda: "Bring alpha and beta back" in case.details()), case.details()
    site.lab.heal("beta")
    assert within(20, lambda: case.doubt()["silent"] == "alpha"), case.details()
    watch, decide = case.hints()
    assert decide[-1] == "--source-is-dead"
    site.lab.heal("alpha")
    # What was sent to beta before the abort comes first: then it takes the process, all of which it
    # has. Either way the end is known, and the watch with it.
    code = site.sojourn(*watch).returncode
    state = next(state for state in State if state.exit_code == code)
    assert state is State.ABORTED or state.arrived, case.details()
    arrived = state.arrived
    case.rests(*(("retired", "restored") if arrived else ("resumed", "refused")))
    case.runs_once("beta" if arrived else "alpha")


def test_a_destination_that_cannot_decide(site: Site, case: Case) -> None:
    """CRIU died while it let the tree run: resolved, the original runs, and stays the owner."""
    case.migrate_until("beta", "accepted.after")
    beta = site.lab.host("beta")
    beta.run(["pkill", "-KILL", "-x", "criu"])
    log = f"/run/sojourn/{case.id}/work/restore.log"
    beta.run(["sh", "-c", f"echo 'x was trapped' >> {log}"])
    case.go_on("beta")
    case.becomes("in doubt")
    assert case.phase("beta") == "accepted"
    assert case.resolve("--destination-is-dead").code == 2
    assert within(20, lambda: case.doubt()["silent"] is None), case.details()
    there, _ = case.hints()
    assert case.follow(there).code == 0
    case.rests("resumed", "refused")
    case.runs_once("alpha")
    assert case.shown()["owner"] == "alpha"


@pytest.mark.parametrize(("written", "owner"), [(1, "alpha"), (2, "beta")])
def test_criu_dies_before_it_logs(site: Site, case: Case, written: int, owner: str) -> None:
    """The log is the same in both cases: a tree that never ran is killed, one that runs is kept."""
    case.migrate_until("beta", "accepted.after")
    criu = site.lab.host("beta").run(["pgrep", "--oldest", "-x", "criu"]).stdout.strip()
    with killed_at_write(site.lab.host("beta"), int(criu), written):
        case.go_on("beta")
    log = site.lab.host("beta").run(["cat", f"/run/sojourn/{case.id}/work/restore.log"]).stdout
    assert " was trapped" not in log
    case.rests(*(("resumed", "refused") if owner == "alpha" else ("retired", "restored")))
    case.runs_once(owner)


def test_a_destination_that_crashed_as_it_took_the_process(site: Site, case: Case) -> None:
    """It may have run there for a moment, so an operator must resolve it: the original runs.

    Also where the operator takes what runs on beta for the process, since nothing does.
    """
    case.migrate_until("beta", "restored.before")
    site.lab.crash("beta")
    site.host("beta")
    case.becomes("in doubt")
    assert (case.phase("alpha"), case.phase("beta")) == ("released", "accepted")
    assert not runs_on(site.lab.host("alpha"), case.counter)
    assert within(20, lambda: case.doubt()["silent"] is None), case.details()
    _, accept = case.hints()
    assert accept[-2:] == ["--source-is-dead", "--force"]
    # Nothing runs on beta: lost, as far as beta knows, until alpha finds its original.
    assert case.follow(accept).answer["state"] in {State.LOST, State.ROLLED_BACK}
    case.rests("resumed", "refused")
    assert case.counter.wait_for_beats(20).host == "alpha"
    assert case.shown()["owner"] == "alpha"


def test_a_source_that_never_comes_back(site: Site, case: Case) -> None:
    """The destination has all images, restores and reports; the source retires when it is back."""
    case.migrate_until("alpha", "copy_images.end")
    site.lab.crash("alpha")
    case.becomes("completed, clean-up pending")
    assert case.shown()["owner"] == "beta"
    case.runs_once("beta")
    site.host("alpha")
    case.rests("retired", "restored")
    case.becomes("completed")
    case.runs_once("beta")


def test_a_source_that_was_not_dead(site: Site, case: Case) -> None:
    """It was cut off with its frozen original, and retires that when it is back."""
    case.migrate_until("alpha", "copy_images.end")
    site.lab.cut("alpha")
    case.go_on("alpha")
    ended = case.resolve("--source-is-dead", "--force")
    assert (ended.code, ended.answer.get("state"), ended.answer.get("owner")) == (
        0,
        "completed",
        "beta",
    ), ended.answer
    case.runs_once("beta")
    site.lab.heal("alpha")
    case.rests("retired", "restored")
    case.runs_once("beta")


def test_the_source_is_dead_with_the_process(site: Site, case: Case) -> None:
    """The images had not left: the process is lost with its host, also when that is back."""
    case.migrate_until("alpha", "released.after")
    site.lab.crash("alpha")
    assert case.abort().code == 12
    _, decide = case.hints()
    ended = case.follow(decide)
    assert (ended.code, ended.answer.get("state"), ended.answer.get("owner")) == (
        13,
        "lost",
        None,
    ), ended.answer
    site.host("alpha")
    case.rests("resumed", "refused")
    assert case.shown()["state"] == "lost"
    case.never_ran_twice()


def test_the_destination_dies_with_the_process(site: Site, case: Case) -> None:
    """It had arrived before the source knew: that is reported, and the original stays retired.

    The freeze ended when it arrived, and not when the source learned of that.
    """
    case.migrate_until("beta", "restored.after")
    arrived = time.time()
    site.lab.crash("beta")
    site.host("beta")
    case.rests("retired", "restored")
    case.becomes("lost")
    freeze = case.shown()["freeze"]
    assert arrived - 20 < freeze["began"] < freeze["ended"] < arrived
    assert "had arrived on beta and ended there" in case.shown()["failure"]["message"]
    assert not runs_on(site.lab.host("alpha"), case.counter)
    case.never_ran_twice()


def test_what_is_left_of_a_tree(site: Site) -> None:
    """Its root was killed while it was frozen: the children run on, and the timeline reports it."""
    alpha = site.host("alpha")
    tree = workload.start(alpha, "tree", with_="pipes")
    children = alpha.run(["pgrep", "-P", str(tree.pid)]).stdout.split()
    case = Case(site, tree)
    case.migrate_until("alpha", "copy_images.begin")
    alpha.run(["kill", "-KILL", str(tree.pid)])
    waiting = case.abort_meanwhile()
    alpha.run(["sh", "-c", KILL_LOCK_HOLDER.format(id=case.id)])
    case.go_on("alpha")
    waiting.join()
    assert "what is left of its tree runs on" in json.dumps(case.shown()["steps"])
    states = alpha.run(["ps", "-o", "stat=", "-p", ",".join(children)], check=False).stdout.split()
    assert not [state for state in states if state.startswith("T")]


def test_bad_arguments(site: Site, case: Case) -> None:
    """One host must be named, and the migration must not have ended."""
    case.migrate()
    case.becomes("completed")
    assert case.command("resolve", case.id, "--yes").code == 2
    assert case.command("resolve", case.id, "--source-is-dead", "--yes").code == 2
    ended = case.abort()
    assert (ended.code, "runs on beta" in ended.answer["error"]["message"]) == (2, True)
    assert Path(site.lab.config).exists()
