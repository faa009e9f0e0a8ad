"""Leases and FIFOs on storage that both hosts see: what a migration would break or double."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.preflight import leases, unread
from sojourn.preflight.leases import Lease
from sojourn.preflight.scan import scan
from sojourn.preflight.unread import Fifo

HERE = os.getpid()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Open a FIFO in this process; return its path and descriptor."""
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    yield path, descriptor
    os.close(descriptor)


def _fifo(path: str) -> Fifo:
    return next(one for one in unread.of_tree(scan(HERE)) if one.path == path)


def test_data_in_a_fifo_of_one_kernel(fifo: tuple[str, int]) -> None:
    """Both hosts have one pipe then, as here; the data are found before the freeze and in it."""
    path, descriptor = fifo
    assert (_fifo(path).unread, list(unread.doubled([_fifo(path)]))) == (0, [])
    assert list(unread.in_frozen([HERE], [path])) == []
    os.write(descriptor, b"once")
    assert _fifo(path).unread == 4
    for (found,) in (unread.doubled([_fifo(path)]), unread.in_frozen([HERE], [path])):
        assert found.code == "FIFO_IN_USE"
        assert f"Unread data are in the FIFO {path}," in found.sentence
    assert unread.shared([_fifo(path)]) == [path]
    assert Fifo.from_json(_fifo(path).to_json()) == _fifo(path)


def test_data_in_a_fifo_of_two_kernels(fifo: tuple[str, int]) -> None:
    """Each has a pipe of its own, and the data move along."""
    path, descriptor = fifo
    os.write(descriptor, b"once")
    elsewhere = Fifo(path, 4, ("another-boot:1:2",))
    assert (unread.shared([elsewhere]), list(unread.doubled([elsewhere]))) == ([], [])


@pytest.mark.parametrize(
    ("flags", "kind", "count"),
    [(os.O_RDWR, fcntl.F_WRLCK, 1), (os.O_RDONLY, fcntl.F_WRLCK, 1), (os.O_RDONLY, 0, 0)],
    ids=["written", "only read", "for reading"],
)
def test_a_lease_on_the_same_file(tmp_path: Path, flags: int, kind: int, count: int) -> None:
    """One for writing would be broken by the restore, whatever the program does with the file."""
    file = tmp_path / "leased"
    file.touch()
    descriptor = os.open(file, flags)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, kind)
        found = leases.held(scan(HERE))
        findings = list(leases.in_the_way(found))
        assert [lease.holder for lease in found] == [(HERE, descriptor)][:count]
    finally:
        os.close(descriptor)
    assert [finding.code for finding in findings] == ["LEASE"] * count
    assert [Lease.from_json(lease.to_json()) for lease in found] == found


@pytest.mark.parametrize("compared", [True, False])
def test_a_lease_on_another_file(tmp_path: Path, *, compared: bool) -> None:
    """It is broken only if the original's content is read to be compared."""
    lease = Lease(str(tmp_path / "gone"), "descriptor 3 of process 7", (7, 3), compared, ("a",))
    sentences = [finding.sentence for finding in leases.in_the_way([lease])]
    assert ["it is written" in sentence for sentence in sentences] == [True] * compared
