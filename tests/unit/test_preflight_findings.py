"""What the checks report: findings, the refusal of a migration, and the estimate."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sojourn.cli.check import Level, _nagios
from sojourn.cluster.registry import Pace, Window
from sojourn.errors import Refused
from sojourn.model import Plan, Role
from sojourn.preflight import inspection
from sojourn.preflight.estimate import Measured, estimates, post_copy, stop_and_copy
from sojourn.preflight.files import Needed
from sojourn.preflight.finding import (
    CHECKS,
    Finding,
    Verdict,
    blocks,
    complete,
    named,
    needs_option,
    ok,
)
from sojourn.preflight.leases import Lease
from sojourn.preflight.limits import Limits
from sojourn.preflight.locks import Lock
from sojourn.preflight.memory_files import MemoryFile
from sojourn.preflight.names import Name
from sojourn.preflight.needs import Needs
from sojourn.preflight.sockets import Bound
from sojourn.preflight.unread import Fifo

PLAN = Plan(4242, "alpha", "beta")


def on(host: str, finding: Finding) -> Finding:
    """Return a finding as that of a host."""
    return Finding(finding.code, finding.verdict, finding.sentence, finding.hint, host)


def test_an_option_that_is_given_permits_the_migration() -> None:
    """The same thing needs an option, or is reported as taken care of."""
    asked = needs_option("FILE_LOCKS", "Files are locked.", "--file-locks", given=False)
    assert (asked.verdict, asked.hint, asked.stops) == (
        Verdict.NEEDS_OPTION,
        "Migrate with --file-locks.",
        True,
    )
    given = needs_option("FILE_LOCKS", "Files are locked.", "--file-locks", given=True)
    assert (given.verdict, given.stops) == (Verdict.OK, False)


@pytest.mark.parametrize("role", list(Role))
def test_every_check_of_a_host_is_reported(role: Role) -> None:
    """Checks that passed are reported too, in order, and no code twice without two findings."""
    codes = [code for code, check in CHECKS.items() if check.on is role]
    findings = complete([blocks(codes[-1], "One."), blocks(codes[-1], "Two.")], role, "alpha")
    assert [finding.code for finding in findings] == [*codes, codes[-1]]
    assert {finding.host for finding in findings} == {"alpha"}
    assert [finding.sentence for finding in findings if finding.stops] == ["One.", "Two."]


def test_a_finding_travels() -> None:
    """It can be written as JSON and read back."""
    finding = on("beta", blocks("PID_TAKEN", "PID 7 is taken.", "Choose another one."))
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


@pytest.mark.parametrize(
    ("things", "listed"),
    [([], ""), (["a"], "a"), ("abc", "a, b, c"), ("abcde", "a, b, c and 2 more")],
)
def test_a_list_of_many_things(things: list[str], listed: str) -> None:
    """A sentence names three and counts the rest."""
    assert named(things) == listed


def test_findings_that_permit_a_migration() -> None:
    """They do not raise Refused."""
    inspection.refuse([ok("NO_ROOM", "memory is free")], PLAN)


def test_findings_of_both_hosts_are_reported() -> None:
    """The first finding is quoted, with code and hint; the others are counted, with their hosts."""
    found = [
        on("alpha", needs_option("FILE_LOCKS", "Files are locked.", "--file-locks", given=False)),
        on("alpha", ok("TRACED", "it is not traced")),
        on("beta", blocks("PID_TAKEN", "PID 7 is taken.")),
        on("beta", blocks("FILE_MISSING", "/x is missing.")),
    ]
    with pytest.raises(Refused) as caught:
        inspection.refuse(found, PLAN)
    assert caught.value.message == (
        "On alpha: Files are locked. And 2 more on beta: "
        "see `sojourn check 4242 --from alpha --to beta`."
    )
    assert (caught.value.code, caught.value.hint) == ("FILE_LOCKS", "Migrate with --file-locks.")
    assert Refused(*caught.value.args).code == "FILE_LOCKS"


def needs(files: int) -> Needs:
    """Return the needs of a tree with this many files."""
    return Needs(
        command="sleep",
        processes=50,
        tasks=50,
        tree_bytes=10**8,
        private_bytes=10**8,
        forked_bytes=10**6,
        pids=tuple(range(50)),
        files=tuple(
            Needed(f"/srv/data/of/some/program/file-{n}", 0o100644, n, "", (0, 0))
            for n in range(files)
        ),
        memory=(MemoryFile("/dev/shm/x", "/dev/shm", 0o100600, (0, 0), 9, marks=("mark",)),),
        bound=(Bound("tcp", "0.0.0.0", 80), Bound("unix", "@name")),
        fifos=(Fifo("/run/fifo", 4, ("mark",)),),
        locks=(Lock("/srv/lock", by_flock=True, exclusive=False),),
        leases=(Lease("/srv/leased", "descriptor 3 of process 7", (7, 3), True, ("nfs:1",)),),
        names=(Name("/run/socket", 99, ("nfs:2",), ("nfs:3",)),),
        criu="4.2.1",
        kernel="6.18",
        machine="x86_64",
        cpu_flags=("avx", "avx2"),
        limits=Limits(1024, 65536, 40),
        never_lazy_bytes=10**7,
    )


def test_needs_travel() -> None:
    """They can be packed and unpacked, and those of two thousand files are some kilobytes."""
    packed = needs(2000).pack()
    assert Needs.unpack(json.loads(json.dumps(packed))) == needs(2000)
    assert len(packed) < 20_000


def test_an_estimate_from_the_last_migration() -> None:
    """Twice the memory takes twice as long, plus a fixed part; without a measurement, a default."""
    last = Pace(pages_bytes=100_000_000, frozen_ms=400)
    expected = stop_and_copy(200_000_000, Measured(last))
    assert (expected.freeze_ms, expected.total_ms, expected.bytes_per_s) == (600, 1000, 500_000_000)
    assert stop_and_copy(400_000_000, Measured()).freeze_ms == 1200
    assert stop_and_copy(0, Measured()).bytes_per_s is None
    assert stop_and_copy(10**9, Measured(Pace(16_000_000, 10))).freeze_ms < 1000


def test_an_estimate_under_a_limit() -> None:
    """The way takes as long as the limit has it, the restore as before; the pace is no other."""
    last = Pace(pages_bytes=100_000_000, frozen_ms=400)
    slow = stop_and_copy(200_000_000, Measured(last, bytes_per_s=12_500_000))
    assert (slow.freeze_ms, slow.bytes_per_s) == (200 + 200 + 16_000, 500_000_000)
    assert stop_and_copy(200_000_000, Measured(bytes_per_s=12_500_000)).freeze_ms == 16_450
    wide = stop_and_copy(200_000_000, Measured(last, bytes_per_s=12_500_000_000))
    assert wide == stop_and_copy(200_000_000, Measured(last))


def test_an_estimate_of_post_copy() -> None:
    """The freeze hardly grows with the memory, the window does; both grow with what is shared."""
    measured = Measured(Pace(100_000_000, 400), Window(100_000_000, 150))
    small, large = (post_copy(size, 0, measured) for size in (100_000_000, 1_000_000_000))
    assert (small.freeze_ms, small.window_ms) == (160, 150)
    assert (large.freeze_ms, large.window_ms, large.bytes_per_s) == (250, 1050, 1e9)
    assert large.total_ms == 250 + 1050 + 700
    mixed = post_copy(1_000_000_000, 500_000_000, measured)
    assert (mixed.freeze_bytes, mixed.window_ms) == (500_000_000, 550)
    assert mixed.freeze_ms == 150 + 50 + 2000
    assert post_copy(10**9, 0, Measured()).bytes_per_s is None
    limited = post_copy(10**9, 0, Measured(bytes_per_s=12_500_000))
    assert limited.freeze_ms == large.freeze_ms, "what the limit delays is the window"
    assert limited.window_ms == 50 + 100_000


def test_the_mode_of_the_plan_is_estimated_first() -> None:
    """And every other one after it; only post-copy has a window."""
    for mode in Plan.MODES:
        found = estimates(replace(PLAN, mode=mode), 10**8, 10**6, Measured())
        assert found[0].mode == mode
        assert {one.mode for one in found} == set(Plan.MODES)
        assert [one.mode for one in found if one.window_ms] == ["post-copy"]


@pytest.mark.parametrize(
    ("findings", "level"),
    [
        ([], Level.OK),
        ([needs_option("FILE_LOCKS", "Locked.", "--file-locks", given=False)], Level.WARNING),
        (
            [blocks("TRACED", "Traced."), needs_option("FILE_LOCKS", "L.", "--x", given=False)],
            Level.CRITICAL,
        ),
    ],
)
def test_one_line_for_nagios(
    findings: list[Finding], level: Level, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line begins with the level and has performance data after its bar; exit code to match."""
    assert (
        _nagios(PLAN, findings, [])
        == level.exit_code
        == ["OK", "WARNING", "CRITICAL", "UNKNOWN"].index(level)
    )
    line = capsys.readouterr().out
    assert line.startswith(f"{level} - pid 4242 from alpha to beta: ")
    assert line.count("\n") == 1
    assert line.split(" | ")[1].startswith(
        f"blocks={sum(finding.verdict is Verdict.BLOCKS for finding in findings)} "
    )


def test_the_window_for_nagios(capsys: pytest.CaptureFixture[str]) -> None:
    """In post-copy its length is among the performance data; of the mode that was asked for."""
    plan = replace(PLAN, mode="post-copy")
    _nagios(plan, [], estimates(plan, 10**8, 10**6, Measured()))
    _nagios(PLAN, [], estimates(PLAN, 10**8, 10**6, Measured()))
    windowed, other = capsys.readouterr().out.splitlines()
    assert " move=100000000B freeze=165ms total=1039ms window=174ms" in windowed
    assert "window" not in other
