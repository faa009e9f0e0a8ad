"""What a source puts back on a rollback, on real processes and files of this machine."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.host import within
from sojourn.criu import files_image
from sojourn.errors import CriuFailed, PhaseConflict
from sojourn.migration import freeze, names, signal_masks, source
from sojourn.migration.context import Host, Migration
from sojourn.model import Phase, Plan, Role, Verdict
from sojourn.preflight.names import Name
from sojourn.settings import Settings
from sojourn.state.facts import DumpFacts, Facts
from sojourn.system import process, ptrace, tcp, waits
from tasks.dump import resume
from tasks.retire import retire
from tests.images import image, message

ID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that stands for the original, and stop it."""
    with subprocess.Popen(["sleep", "1000"]) as running:
        running.send_signal(signal.SIGSTOP)
        yield running
        running.kill()


@pytest.fixture
def migration(tmp_path: Path, child: subprocess.Popen[bytes]) -> Migration:
    """Return a migration whose tree is frozen here, the source."""
    settings = {"host": "alpha", "key": "k" * 32, "state_dir": tmp_path}
    host = Host(Settings.model_validate(settings | {"runtime_dir": tmp_path / "run"}))
    entry = host.journal.open(ID, Role.SOURCE, Plan(child.pid, "alpha", "beta"))
    members = process.tree(child.pid)
    host.journal.claim_tree(entry, members)
    made = Migration(host, entry)
    made.refresh()
    made.become(Phase.FREEZING)
    made.record_tree([type(one)(one.identity, stopped=False) for one in members])
    for place in (made.directory.images, made.directory.work):
        place.mkdir(parents=True)
    return made


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return the path of a socket that is bound, with images that say so."""
    return str(tmp_path / "socket")


@pytest.fixture
def server(path: str, migration: Migration) -> Iterator[socket.socket]:
    """Bind a socket, which images have; both hosts see its file."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
        bound.listen()
        unix = message((2, 99), (11, path.encode()))
        (migration.directory.images / "files.img").write_bytes(image(message((1, 5), (16, unix))))
        migration.learn(shared_names=[path], names_seen={path: _inode(path)})
        yield bound


def _inode(path: str) -> int:
    return Path(path).stat().st_ino


def _links(path: str) -> list[str]:
    return [one.name for one in Path(path).parent.glob(".sojourn-*")]


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


@pytest.mark.usefixtures("server")
def test_a_name_is_kept_and_given_back(migration: Migration, path: str) -> None:
    """Whatever was done before the worker died, and however often it is done again."""
    before = _inode(path)
    for _ in range(2):
        (kept,) = [Name.from_json(name) for name in names.keep(migration)]
        assert (kept.path, kept.inode) == (path, before)
    assert len(_links(path)) == 1
    Path(path).unlink()  # as the restore does
    for _ in range(2):
        names.put_back(migration)
        assert (_inode(path), _answers(path), _links(path)) == (before, True, [])
    assert migration.host.journal.held(migration.entry, names.HELD) == []


@pytest.mark.usefixtures("server")
def test_a_name_that_was_not_lost(migration: Migration, path: str) -> None:
    """It stays as it is, and the second link goes."""
    before = _inode(path)
    names.keep(migration)
    names.put_back(migration)
    assert (_inode(path), _answers(path), _links(path)) == (before, True, [])


@pytest.mark.usefixtures("server")
def test_a_link_that_was_not_made(migration: Migration, path: str) -> None:
    """The journal has it first: a death in between leaves nothing to do."""
    names.keep(migration)
    Path(path).with_name(_links(path)[0]).unlink()
    names.put_back(migration)
    assert _answers(path)
    assert migration.host.journal.held(migration.entry, names.HELD) == []


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("dead", [False, True])
def test_a_name_that_is_not_free_any_more(migration: Migration, path: str, dead: bool) -> None:
    """What a dead destination has left is replaced; what somebody has bound, never."""
    before = _inode(path)
    names.keep(migration)
    if dead:
        migration.learn(resolved=Role.DESTINATION)
    Path(path).unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        names.put_back(migration)
        assert (_inode(path) == before, _links(path)) == (False, [])


@pytest.mark.usefixtures("server")
def test_what_a_dead_destination_has_left(migration: Migration, path: str) -> None:
    """Its failed restore had bound the name, and its host went down."""
    before = _inode(path)
    names.keep(migration)
    Path(path).unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
    migration.learn(resolved=Role.DESTINATION)
    names.put_back(migration)
    assert (_inode(path), _answers(path), _links(path)) == (before, True, [])


@pytest.mark.usefixtures("server")
def test_the_second_link_goes_when_the_process_has_arrived(migration: Migration, path: str) -> None:
    """The name belongs to the restored process then."""
    names.keep(migration)
    Path(path).unlink()
    names.let_go(migration)
    assert (Path(path).exists(), _links(path)) == (False, [])


def test_a_socket_that_has_another_name_by_now(
    migration: Migration, path: str, tmp_path: Path
) -> None:
    """Its image has the first one, to which CRIU would bind it."""
    other = str(tmp_path / "other")
    program = f"import socket; s = socket.socket(1); s.bind({path!r}); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as running:
        assert within(10, lambda: Path(path).exists())
        migration.record_tree(process.tree(running.pid))
        unix = message((2, 99), (11, path.encode()))
        (migration.directory.images / "files.img").write_bytes(image(message((1, 5), (16, unix))))
        Path(path).rename(other)
        (found,) = [Name.from_json(one) for one in names.keep(migration)]
        running.kill()
    assert (found.path, found.inode) == (other, _inode(other))
    assert files_image.unix_paths(migration.directory.images) == {other: True}


@pytest.mark.usefixtures("server")
def test_a_name_of_this_host_alone(migration: Migration, path: str) -> None:
    """Nothing of it can be lost by a restore elsewhere: nothing is done."""
    migration.learn(shared_names=[])
    names.keep(migration)
    assert _links(path) == []


@pytest.mark.usefixtures("server")
def test_a_name_that_cannot_be_kept(
    migration: Migration, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step fails, before the images leave."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(CriuFailed, match=f"no second link to {path}"):
        names.keep(migration)


def test_a_process_that_ends_when_it_is_woken(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """It is known how it ended, and nobody says that it runs on."""
    child.send_signal(signal.SIGTERM)
    sentence = source.resume_original(migration)
    assert f"process {child.pid} was woken on alpha, and ended" in sentence
    found = source.fate(migration)
    assert found["gone"]
    assert found["ended_after_ms"] < 1000
    assert source.resume_original(migration).startswith(f"process {child.pid} has ended on alpha")


def test_a_process_that_lives_on(migration: Migration, child: subprocess.Popen[bytes]) -> None:
    """It is let go before it is watched."""
    assert "runs on alpha as before (1 process woken)" in source.resume_original(migration)
    assert source.fate(migration) == {"gone": False}
    assert process.stat(child.pid).state == "S"


def test_blocked_signals_are_given_back(
    migration: Migration, child: subprocess.Popen[bytes]
) -> None:
    """CRIU was killed in the middle of its work in the process, which runs on."""
    signal_masks.remember(migration)
    before = waits.status(child.pid).blocked
    child.send_signal(signal.SIGCONT)
    with ptrace.seized(child.pid, interrupt=True):
        ptrace.set_signal_mask(child.pid, signal_masks.OF_CRIU)
    assert waits.status(child.pid).blocked == signal_masks.OF_CRIU
    assert signal_masks.put_back(migration, migration.entry.tree) == 1
    assert signal_masks.put_back(migration, migration.entry.tree) == 0
    assert waits.status(child.pid).blocked == before
    time.sleep(0.05)
    assert process.stat(child.pid).state == "S"


def test_other_masks_are_left_alone(migration: Migration, child: subprocess.Popen[bytes]) -> None:
    """The program may have changed its own; and a dump that ended has put all of them back."""
    signal_masks.remember(migration)
    with ptrace.seized(child.pid, interrupt=True):
        ptrace.set_signal_mask(child.pid, 0x4000)
    assert signal_masks.put_back(migration, migration.entry.tree) == 0
    migration.learn(dump_exit=0)
    with ptrace.seized(child.pid, interrupt=True):
        ptrace.set_signal_mask(child.pid, signal_masks.OF_CRIU)
    assert signal_masks.put_back(migration, migration.entry.tree) == 0


def test_sockets_leave_repair_mode(migration: Migration) -> None:
    """Also those whose connection has ended; SO_REUSEADDR is as it was."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = socket.create_connection(listener.getsockname()), listener.accept()[0]
    ours = process.tree(os.getpid())[:1]
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, tcp.TCP_REPAIR, 1)
    reused = {os.fstat(ends[1].fileno()).st_ino: True}
    assert tcp.leave_repair_mode(ours, reused) == 2
    found = [end.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) for end in ends]
    assert found == [0, 1]
    assert tcp.leave_repair_mode(ours, reused) == 0
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    ("mode", "told", "keeps"),
    [
        ("post-copy", Facts(), True),
        ("post-copy", Facts(unsettled=True), True),
        ("post-copy", Facts(unsettled=False), False),
        ("stop-and-copy", Facts(), False),
    ],
)
def test_an_original_that_is_needed_still(
    migration: Migration, child: subprocess.Popen[bytes], mode: str, told: Facts, keeps: bool
) -> None:
    """Though the process runs elsewhere: both ways to its end leave it alone until it may go."""
    for phase in (Phase.FROZEN, Phase.RELEASED):
        migration.become(phase)
    migration.learn(**(told | Facts(verdict=Verdict.RESTORED)))
    # What was asked for is in the journal, and never changes there.
    migration.entry = replace(migration.entry, plan=replace(migration.plan, mode=mode))
    if keeps:
        assert "stays frozen" in resume.work(migration).sentence
        with pytest.raises(PhaseConflict, match="does not have all of its memory yet"):
            retire.work(migration)
    else:
        assert "is gone (1 process)" in resume.work(migration).sentence
    assert (child.poll() is None) is keeps


@pytest.mark.parametrize(
    ("mode", "stopped", "seen", "began"),
    [
        ("stop-and-copy", False, 99.79, 99.79),
        ("stop-and-copy", False, 99.81, 99.80),
        ("stop-and-copy", False, None, 99.80),
        ("stop-and-copy", True, 99.00, 99.80),
        ("post-copy", False, 99.81, 99.81),
    ],
    ids=["seen first", "seen late", "not seen", "stopped before", "CRIU's clock is wrong"],
)
def test_when_the_freeze_began(
    migration: Migration, mode: str, stopped: bool, seen: float | None, began: float
) -> None:
    """Whatever is late is not counted: CRIU takes time to end, and is looked at now and then."""
    frozen_us = 190_000 if mode == "stop-and-copy" else 2**32 - 1
    measured = message((1, message((1, 10_000), (2, frozen_us))))
    (migration.directory.work / "stats-dump").write_bytes(image(measured))
    migration.entry = replace(
        migration.entry,
        plan=replace(migration.plan, mode=mode),
        tree=tuple(replace(member, stopped=stopped) for member in migration.entry.tree),
    )
    found = freeze.instants(migration, DumpFacts(dump_ended=100.0, seen_stopped=seen))
    assert found == pytest.approx((began, began + 0.01))
