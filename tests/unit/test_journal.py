"""The journal: the phases it permits, their order on the disk, and what it records."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from sojourn.errors import JournalFailed, PhaseConflict, Temporary
from sojourn.model import Failure, Identity, Member, Phase, Plan, Role
from sojourn.state.entry import Entry
from sojourn.state.journal import Journal
from sojourn.state.lock import lock
from sojourn.state.message import Outcome
from sojourn.system.run import Child, spawn
from tests.conftest import eventually

PLAN = Plan(4242, "alpha", "beta")
ID = "0123abcd-4567"

#: The table of docs/protocol.md, written down a second time on purpose.
PERMITTED = {
    ("open", "freezing"),
    ("freezing", "frozen"),
    ("frozen", "released"),
    ("released", "retired"),
    ("open", "resumed"),
    ("freezing", "resumed"),
    ("frozen", "resumed"),
    ("released", "resumed"),
    ("reserved", "restoring"),
    ("restoring", "accepted"),
    ("accepted", "restored"),
    ("reserved", "refused"),
    ("restoring", "refused"),
    ("accepted", "refused"),
}
PAIRS = list(itertools.product(Phase, Phase))
FINAL = {"retired", "resumed", "restored", "refused"}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Give each test a journal of its own."""
    return Journal(tmp_path / "state" / "journal.db")


@pytest.fixture
def entry(journal: Journal) -> Entry:
    """Open a migration of which this host is the source."""
    return journal.open(ID, Role.SOURCE, PLAN)


def test_a_full_disk(journal: Journal, entry: Entry) -> None:
    """A write that fails is reported in one sentence, and earlier writes stay."""
    journal._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(JournalFailed, match="disk is full"):
        journal.learn(entry, {"dump_command": "x" * 100_000})
    with pytest.raises(JournalFailed, match="disk is full"), journal._db.transaction():
        journal.hold(entry, "mount", "x" * 100_000)
    again = journal.entry(ID, Role.SOURCE)
    assert again == entry


def test_no_journal_at_all(tmp_path: Path) -> None:
    """A journal that cannot be opened is reported in the same way."""
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(JournalFailed, match="unable to open"):
        Journal(tmp_path / "journal.db")


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair in PERMITTED])
def test_permitted(journal: Journal, before: Phase, after: Phase) -> None:
    """Every transition of the table is possible, and visible to the next reader."""
    entry = journal.open(ID, Role.SOURCE, PLAN, before)
    assert journal.advance(entry, after).phase is after
    assert _phase(Journal(journal.path)) is after


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair not in PERMITTED])
def test_forbidden(journal: Journal, before: Phase, after: Phase) -> None:
    """Everything else is a conflict, and changes nothing."""
    entry = journal.open(ID, Role.SOURCE, PLAN, before)
    with pytest.raises(PhaseConflict, match=f"it is {before}"):
        journal.advance(entry, after)
    assert _phase(journal) is before


def test_one_writer_wins(journal: Journal, entry: Entry) -> None:
    """Of two that read the same phase, only the first can write; the error names the new phase."""
    other = Journal(journal.path)
    stale = other.entry(ID, Role.SOURCE)
    assert stale is not None
    journal.advance(entry, Phase.FREEZING)
    with pytest.raises(PhaseConflict, match="cannot become resumed here: it is freezing"):
        other.advance(stale, Phase.RESUMED)


def test_facts_that_come_with_a_phase(journal: Journal, entry: Entry) -> None:
    """They are there with it, and not without."""
    stale = Journal(journal.path).entry(ID, Role.SOURCE)
    assert stale is not None
    now = journal.advance(entry, Phase.FREEZING, {"processes": 1})
    assert (now.phase, now.facts) == (Phase.FREEZING, {"processes": 1})
    with pytest.raises(PhaseConflict):
        journal.advance(stale, Phase.FREEZING, {"processes": 2})
    again = journal.entry(ID, Role.SOURCE)
    assert again is not None
    assert again.facts == {"processes": 1}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    """Return one journal for many walks."""
    return Journal(tmp_path_factory.mktemp("walks") / "journal.db")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(role=some.sampled_from(Role), wishes=some.lists(some.sampled_from(Phase)))
def test_a_final_phase_is_never_left(walked: Journal, role: Role, wishes: list[Phase]) -> None:
    """Whatever phases are requested in whatever order, a final phase stays."""
    entry = walked.open(uuid4().hex, role, PLAN)
    for wish in wishes:
        before = entry.phase
        try:
            entry = walked.advance(entry, wish)
        except PhaseConflict:
            assert (before, wish) not in PERMITTED
        assert before not in FINAL or entry.phase is before


def test_first_phases(journal: Journal) -> None:
    """A source begins open, a destination reserved; both roles of one id are two rows."""
    assert journal.open(ID, Role.SOURCE, PLAN).phase is Phase.OPEN
    assert journal.open(ID, Role.DESTINATION, PLAN).phase is Phase.RESERVED
    assert len(journal.unfinished()) == 2


def test_opening_again_keeps_the_row(journal: Journal, entry: Entry) -> None:
    """A second opening changes neither phase nor plan, not even one in a final phase."""
    journal.advance(entry, Phase.FREEZING)
    again = Journal(journal.path).open(ID, Role.SOURCE, Plan(7, "gamma", "delta"), Phase.RESUMED)
    assert (again.phase, again.plan) == (Phase.FREEZING, PLAN)


def test_unknown(journal: Journal) -> None:
    """A migration that was never opened is None, in either role."""
    journal.open(ID, Role.SOURCE, PLAN)
    assert journal.entry(ID, Role.DESTINATION) is None
    assert journal.entry("ffffffff", Role.SOURCE) is None


def test_a_phase_is_on_the_disk_at_once_and_a_step_with_the_next_phase(journal: Journal) -> None:
    """A phase is synced at once, a step with the next phase; a failed write keeps the setting."""
    entry = journal.open("m-1", Role.SOURCE, PLAN)
    level, synced = "FULL", dict[str, str]()

    def trace(statement: str) -> None:
        nonlocal level
        tokens = statement.split()
        if tokens[0] == "PRAGMA":
            level = tokens[1].partition("=")[2] or level
        elif tokens[0] in {"INSERT", "UPDATE"}:
            synced[" ".join(tokens[:5])] = level

    journal._db.set_trace_callback(trace)
    entry = journal.start_step(entry, "dump", "alpha", {})
    entry = journal.advance(entry, Phase.FREEZING)
    journal.finish_step(entry, "dump", Outcome("done"))
    journal.fail_step(entry, "dump", Failure("X", "it broke"))
    journal.hold(entry, "mount", "/images")
    phase = dict(synced)
    journal.learn(entry, {})
    assert synced["UPDATE migration SET facts ="] == "FULL"
    journal.learn_unsynced(entry, {})
    assert synced == phase
    assert synced == {
        "INSERT OR REPLACE INTO step": "NORMAL",
        "UPDATE migration SET facts =": "NORMAL",
        "UPDATE migration SET phase =": "FULL",
        "INSERT OR IGNORE INTO passed": "FULL",
        "UPDATE step SET ended =": "NORMAL",
        "INSERT OR IGNORE INTO held": "FULL",
    }


def test_unfinished_leaves_out_what_is_final(journal: Journal) -> None:
    """Only rows that can still change are unfinished, the longest idle first."""
    for number, phase in enumerate(Phase):
        journal.open(f"{number:08x}", Role.SOURCE, PLAN, phase)
    found = [entry.phase for entry in journal.unfinished()]
    assert found == [phase for phase in Phase if phase not in FINAL]


def test_learning_merges(journal: Journal, entry: Entry) -> None:
    """New facts are added to the recorded ones, and replace those of the same name."""
    journal.learn(entry, {"processes": 1, "pids": [1, 2]})
    other = Journal(journal.path).learn(entry, {"pids": [3], "dump_command": "ü"})
    assert other.facts == {"processes": 1, "pids": [3], "dump_command": "ü"}


def test_what_is_known_is_read_anew(journal: Journal, entry: Entry) -> None:
    """Also for who has read the row before; a step's own facts are part of it."""
    journal.learn(entry, {"original_gone": True})
    journal.start_step(entry, "dump", "alpha", {"processes": 1})
    journal.finish_step(entry, "dump", Outcome("done", {"pages_bytes": 5}))
    assert journal.known(entry) == {"original_gone": True, "processes": 1, "pages_bytes": 5}


def test_facts_whose_value_is_a_mapping(journal: Journal, entry: Entry) -> None:
    """A second manifest replaces only the files that it names; a file of size 0 stays."""
    assert journal.learn(entry, {"manifest": {"core-1.img": 0}}).facts == {
        "manifest": {"core-1.img": 0}
    }


def test_the_tree_is_remembered(journal: Journal, entry: Entry) -> None:
    """All processes of the tree are read back, with those that were stopped marked."""
    tree = (Member(Identity(5, 100, "boot"), stopped=True), Member(Identity(6, 101, "boot")))
    journal.record_tree(entry, tree)
    again = Journal(journal.path).entry(ID, Role.SOURCE)
    assert again is not None
    assert again.tree == tree


def test_a_tree_is_claimed_once(journal: Journal, entry: Entry) -> None:
    """A process belongs to one migration's tree until it is given back; claiming is idempotent."""
    root, child = (Member(Identity(pid, 100, "boot")) for pid in (5, 6))
    other = journal.open("ffffffff", Role.SOURCE, PLAN)
    assert journal.claim_tree(entry, [root, child]) is None
    assert journal.claim_tree(entry, [root, child]) is None
    assert Journal(journal.path).claim_tree(other, [child]) == ID
    assert journal.held(other, "tree") == []
    assert journal.claim_tree(other, [Member(Identity(6, 101, "boot"))]) is None
    journal.let_go(entry, "tree", "frozen")
    assert journal.claimant([child], but="ffffffff") is None


def test_held_and_let_go(journal: Journal, entry: Entry) -> None:
    """A thing is listed once per role until it is given back; giving back is idempotent."""
    other = journal.open(ID, Role.DESTINATION, PLAN)
    for what in ("/a", "/b", "/a"):
        journal.hold(entry, "mount", what)
    assert journal.held(entry, "mount") == ["/a", "/b"]
    assert journal.held(other, "mount") == journal.held(entry, "process") == []
    journal.let_go(entry, "mount", "/a")
    journal.let_go(entry, "mount", "/a")
    assert Journal(journal.path).held(entry, "mount") == ["/b"]


def test_slots_are_counted_over_all_migrations(journal: Journal) -> None:
    """Incoming and outgoing trees share the slots; a migration that has a slot keeps it."""
    first, second, third = (
        journal.open(f"0000000{n}", role, PLAN) for n, role in enumerate([*Role, Role.SOURCE])
    )
    assert journal.take_slot(first, 2)
    assert journal.take_slot(second, 2)
    assert not Journal(journal.path).take_slot(third, 2)
    assert journal.take_slot(first, 2)
    journal.let_go(first, "slot", "freeze")
    assert journal.take_slot(third, 2)
    assert not journal.take_slot(first, 2)


def test_an_outcome_is_answered_again(journal: Journal, entry: Entry) -> None:
    """A step that is done has an outcome and facts; one that only began or is unknown, none."""
    assert journal.outcome(entry, "dump") is None
    assert journal.start_step(entry, "dump", "alpha", {"page_port": 7}).facts["page_port"] == 7
    assert journal.outcome(entry, "dump") is None
    journal.finish_step(entry, "dump", Outcome("all is well", {"pages_bytes": 7}))
    assert Journal(journal.path).outcome(entry, "dump") == Outcome(
        "all is well", {"pages_bytes": 7}
    )
    assert journal.outcome(entry, "restore") is None


def test_a_failure_is_not_an_outcome(journal: Journal, entry: Entry) -> None:
    """A failed step is recorded as failed, and is not answered as if it were done."""
    journal.start_step(entry, "dump", "alpha", {})
    journal.fail_step(entry, "dump", Failure("CRIU_FAILED", "no"))
    assert journal.outcome(entry, "dump") is None
    (record,) = journal.steps(ID)
    assert (record.name, record.host, record.failed, record.outcome) == (
        "dump",
        "alpha",
        True,
        "no",
    )
    assert record.ended is not None


def test_a_new_attempt_replaces_the_failed_one(journal: Journal, entry: Entry) -> None:
    """A successful attempt after a failed one makes the step done."""
    journal.start_step(entry, "reserve", "alpha", {})
    journal.fail_step(entry, "reserve", Failure("TEMPORARY", "not now"))
    journal.start_step(entry, "reserve", "alpha", {})
    journal.finish_step(entry, "reserve", Outcome("now"))
    assert journal.outcome(entry, "reserve") == Outcome("now")
    assert [step.failed for step in journal.steps(ID)] == [False]


def _holder_of(path: Path) -> Child:
    code = (
        "import sys, time, pathlib; from sojourn.state.lock import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), 5): print('mine', flush=True); time.sleep(60)"
    )
    child = spawn(
        [sys.executable, "-c", code, path], pipe=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert child.stdout.readline() == "mine\n"
    return child


def test_the_lock_keeps_two_processes_apart(tmp_path: Path) -> None:
    """Waiting for a lock ends with Temporary; when the holder is killed, the lock is free."""
    child = _holder_of(tmp_path / "id" / "lock")
    try:
        with (
            pytest.raises(Temporary, match="Another delivery"),
            lock(tmp_path / "id" / "lock", 0.05),
        ):
            pytest.fail("two had the lock")
    finally:
        child.kill()
    with lock(tmp_path / "id" / "lock", 1):
        pass


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    """A failure inside releases the lock too; two migrations have two locks."""
    with pytest.raises(ValueError, match="inside"), lock(tmp_path / "a", 1):
        raise ValueError("inside")
    with lock(tmp_path / "a", 0.05), lock(tmp_path / "b", 0.05):
        pass


def test_a_killed_writer_leaves_complete_rows(tmp_path: Path) -> None:
    """A process killed while it writes leaves a journal that opens, in a permitted phase."""
    code = (
        "import sys, pathlib, itertools\n"
        "from sojourn.state.journal import Journal; from sojourn.model import *\n"
        "journal = Journal(pathlib.Path(sys.argv[1])); print('go', flush=True)\n"
        "for n in itertools.count():\n"
        "    entry = journal.open(f'{n:08x}', Role.SOURCE, Plan(5, 'a', 'b'))\n"
        "    journal.advance(journal.advance(entry, Phase.FREEZING), Phase.RESUMED)"
    )
    path = tmp_path / "journal.db"
    child = spawn(
        [sys.executable, "-c", code, path], pipe=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    child.stdout.readline()
    journal = Journal(path)
    eventually(lambda: journal.entry("00000003", Role.SOURCE))
    child.kill()
    assert {entry.phase for entry in Journal(path).unfinished()} <= {Phase.OPEN, Phase.FREEZING}
    assert Journal(path).open("ffffffff", Role.SOURCE, PLAN).phase is Phase.OPEN


def _phase(journal: Journal) -> Phase:
    entry = journal.entry(ID, Role.SOURCE)
    assert entry is not None
    return entry.phase
