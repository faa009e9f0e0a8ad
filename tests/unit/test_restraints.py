"""How processes restrain themselves, found in the kernel's records of real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sojourn.preflight import confinement
from sojourn.preflight.finding import Verdict
from sojourn.preflight.scan import scan
from sojourn.system import restraints
from sojourn.system.btf import Types
from sojourn.system.restraints import Restraints, Unavailable

PROGRAM = Path(__file__).parents[1] / "lab/restrain.py"

NOTHING = Restraints(0, 0, denies_executable=False, sealed=(), keyed=())


@pytest.fixture(scope="module", autouse=True)
def _readable() -> None:
    """Skip where the kernel's records cannot be read; fail with CI set, where they must be."""
    try:
        restraints.prepare()
    except Unavailable as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


@contextmanager
def restrained(kind: str) -> Iterator[int]:
    """Run a program that restrains itself; skip if this kernel does not have that."""
    argv = [sys.executable, str(PROGRAM), "-", kind]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            line = program.stdout.readline()
            if line.startswith("cannot"):
                pytest.skip(line)
            yield program.pid
        finally:
            program.kill()


def test_nothing() -> None:
    """A program that does not restrain itself, and one that is gone."""
    with restrained("nothing") as pid:
        assert restraints.of(pid) == NOTHING
    assert restraints.of(pid) == NOTHING


@pytest.mark.parametrize("kind", ["landlock_files", "landlock_network", "landlock_thread"])
def test_landlock(kind: str) -> None:
    """Whatever a domain denies, and if one thread alone is in it."""
    with restrained(kind) as pid:
        assert restraints.of(pid).in_landlock == 1


def test_the_others() -> None:
    """Each is told apart from the rest."""
    with restrained("denies_executable") as pid:
        assert restraints.of(pid) == Restraints(0, 0, denies_executable=True, sealed=(), keyed=())
    with restrained("intercepts") as pid:
        assert restraints.of(pid) == Restraints(0, 1, denies_executable=False, sealed=(), keyed=())
    with restrained("sealed") as pid:
        assert len(restraints.of(pid).sealed) == 1


def test_a_protection_key() -> None:
    """Only processors with protection keys have it."""
    with restrained("keyed") as pid:
        assert len(restraints.of(pid).keyed) == 1


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("landlock_files", "LANDLOCK"),
        ("denies_executable", "RESTRAINT"),
        ("intercepts", "RESTRAINT"),
        ("sealed", "MEMORY_PROTECTION"),
        ("secret", "MEMORY_PROTECTION"),
        ("own_descriptors", "THREAD_APART"),
        ("own_directory", "THREAD_APART"),
        ("own_network", "THREAD_APART"),
    ],
)
def test_findings(kind: str, code: str) -> None:
    """Each is refused, with its process, and is the only thing found."""
    with restrained(kind) as pid:
        found = list(confinement.check(scan(pid)))
    assert [(finding.code, finding.verdict) for finding in found] == [(code, Verdict.BLOCKS)]
    assert str(pid) in found[0].sentence
    assert found[0].hint


def test_what_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the records cannot be read, that is reported, and nothing is refused for it."""

    def unavailable(pid: int) -> Restraints:
        raise Unavailable("This kernel has no types.")

    monkeypatch.setattr(restraints, "of", unavailable)
    found = list(confinement.check(scan(os.getpid())))
    assert [(finding.code, finding.verdict) for finding in found] == [("LANDLOCK", Verdict.OK)]
    assert "cannot be seen on this host. This kernel has no types." in found[0].sentence
    assert confinement.found_in([os.getpid()]) is None


SPECULATION = [
    ({"Speculation_Store_Bypass": "vulnerable", "Seccomp": "0"}, False, False),
    ({"Speculation_Store_Bypass": "thread vulnerable", "Seccomp": "0"}, False, False),
    ({"Speculation_Store_Bypass": "globally mitigated", "Seccomp": "0"}, False, False),
    ({"Speculation_Store_Bypass": "thread mitigated", "Seccomp": "0"}, True, True),
    ({"Speculation_Store_Bypass": "thread force mitigated", "Seccomp": "2"}, True, False),
    ({"SpeculationIndirectBranch": "always enabled", "Seccomp": "0"}, False, False),
    ({"SpeculationIndirectBranch": "conditional force disabled", "Seccomp": "0"}, True, True),
    ({}, False, False),
]


@pytest.mark.parametrize(("status", "alone", "by_filter"), SPECULATION)
def test_speculation(status: dict[str, str], alone: bool, by_filter: bool) -> None:
    """A thread's own wish counts, but not what a filter of seccomp brings along by itself."""
    assert confinement.is_turned_off(status, by_filter=False) is alone
    assert confinement.is_turned_off(status, by_filter=True) is by_filter


def test_types_of_another_kind() -> None:
    """What is not BTF is no description of a kernel."""
    with pytest.raises(ValueError, match="not BTF"):
        Types(bytes(64), {"task_struct"})


def test_types_of_this_kernel() -> None:
    """Members, also of structures without a name, and what there is not."""
    data = Path("/sys/kernel/btf/vmlinux").read_bytes()
    types = Types(data, {"task_struct", "mm_struct", "no_such_struct"})
    assert types.offset("mm_struct", "flags") > 0
    for structure, member in (("task_struct", "no_such_member"), ("no_such_struct", "pid")):
        with pytest.raises(LookupError):
            types.offset(structure, member)
