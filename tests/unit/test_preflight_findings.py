"""What checks say: findings, the refusal of a migration, and the estimate."""

from __future__ import annotations

import json

import pytest

from sojourn.cli.check import Level, _nagios
from sojourn.errors import Refused
from sojourn.model import Plan, Role
from sojourn.preflight import inspection
from sojourn.preflight.estimate import estimate
from sojourn.preflight.files import Needed
from sojourn.preflight.finding import CHECKS, Finding, Verdict, blocks, complete, named, needs_option, ok
from sojourn.preflight.limits import Limits
from sojourn.preflight.locks import Lock
from sojourn.preflight.needs import Needs
from sojourn.preflight.sockets import Bound
from sojourn.registry import Pace

PLAN = Plan(4242, "alpha", "beta")


def on(host: str, finding: Finding) -> Finding:
    """Return a finding as that of a host."""
    return Finding(finding.code, finding.verdict, finding.sentence, finding.hint, host)


def test_an_option_that_was_given_makes_it_well() -> None:
    """The same thing needs an option, or is told as taken along."""
    asked = needs_option("FILE_LOCKS", "Files are locked.", "--file-locks", given=False)
    assert (asked.verdict, asked.hint, asked.stops) == (Verdict.NEEDS_OPTION, "Migrate with --file-locks.", True)
    given = needs_option("FILE_LOCKS", "Files are locked.", "--file-locks", given=True)
    assert (given.verdict, given.stops) == (Verdict.OK, False)


@pytest.mark.parametrize("role", list(Role))
def test_every_check_of_a_host_is_told(role: Role) -> None:
    """Also those that found nothing, in the order of the codes, and no code twice unless it found two things."""
    codes = [code for code, check in CHECKS.items() if check.on is role]
    told = complete([blocks(codes[-1], "One."), blocks(codes[-1], "Two.")], role, "alpha")
    assert [each.code for each in told] == [*codes, codes[-1]]
    assert {each.host for each in told} == {"alpha"}
    assert [each.sentence for each in told if each.stops] == ["One.", "Two."]


def test_a_finding_travels() -> None:
    """It survives JSON."""
    finding = on("beta", blocks("PID_TAKEN", "PID 7 is taken.", "Choose another one."))
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


@pytest.mark.parametrize(
    ("things", "words"), [([], ""), (["a"], "a"), ("abc", "a, b, c"), ("abcde", "a, b, c and 2 more")]
)
def test_many_things_in_few_words(things: list[str], words: str) -> None:
    """A sentence names three and counts the rest."""
    assert named(things) == words


def test_nothing_stops_a_migration_that_is_well() -> None:
    """Findings that are well refuse nothing."""
    inspection.refuse([ok("NO_ROOM", "memory is free")], PLAN)


def test_both_hosts_are_told() -> None:
    """The first finding is told whole, with its code and hint; the others are counted, with their hosts."""
    found = [
        on("alpha", needs_option("FILE_LOCKS", "Files are locked.", "--file-locks", given=False)),
        on("alpha", ok("TRACED", "nobody traces it")),
        on("beta", blocks("PID_TAKEN", "PID 7 is taken.")),
        on("beta", blocks("FILE_MISSING", "/x is missing.")),
    ]
    with pytest.raises(Refused) as caught:
        inspection.refuse(found, PLAN)
    assert caught.value.message == (
        "On alpha: Files are locked. And 2 more on beta: see `sojourn check 4242 --from alpha --to beta`."
    )
    assert (caught.value.code, caught.value.hint) == ("FILE_LOCKS", "Migrate with --file-locks.")
    assert Refused(*caught.value.args).code == "FILE_LOCKS"


def needs(files: int) -> Needs:
    """Return the needs of a tree with so many files."""
    return Needs(
        command="sleep",
        processes=50,
        tasks=50,
        tree_bytes=10**8,
        private_bytes=10**8,
        pids=tuple(range(50)),
        files=tuple(Needed(f"/srv/data/of/some/program/file-{n}", 0o100644, n, "", None) for n in range(files)),
        bound=(Bound("tcp", "0.0.0.0", 80), Bound("unix", "@name")),
        locks=(Lock("/srv/lock", by_flock=True, exclusive=False),),
        criu="4.2.1",
        kernel="6.18",
        machine="x86_64",
        cpu_flags=("avx", "avx2"),
        limits=Limits(1024, 65536, 40),
    )


def test_needs_travel() -> None:
    """They survive packing, and those of two thousand files are some kilobytes."""
    packed = needs(2000).pack()
    assert Needs.unpack(json.loads(json.dumps(packed))) == needs(2000)
    assert len(packed) < 20_000


def test_an_estimate_from_the_last_one() -> None:
    """Twice the memory takes twice as long, beside what does not grow; without a last one there is a default."""
    last = Pace(pages_bytes=100_000_000, frozen_ms=400)
    expected = estimate("stop-and-copy", 200_000_000, last)
    assert (expected.freeze_ms, expected.total_ms, expected.bytes_per_s) == (600, 1000, 500_000_000)
    assert estimate("stop-and-copy", 400_000_000, None).freeze_ms == 1200
    assert estimate("stop-and-copy", 0, None).bytes_per_s is None
    assert estimate("stop-and-copy", 10**9, Pace(16_000_000, 10)).freeze_ms < 1000


@pytest.mark.parametrize(
    ("findings", "level"),
    [
        ([], Level.OK),
        ([needs_option("FILE_LOCKS", "Locked.", "--file-locks", given=False)], Level.WARNING),
        ([blocks("TRACED", "Traced."), needs_option("FILE_LOCKS", "L.", "--x", given=False)], Level.CRITICAL),
    ],
)
def test_one_line_for_nagios(findings: list[Finding], level: Level, capsys: pytest.CaptureFixture[str]) -> None:
    """The line begins with the level, has performance data behind its only bar, and the exit code is the level's."""
    assert _nagios(PLAN, findings, None) == level.exit_code == ["OK", "WARNING", "CRITICAL", "UNKNOWN"].index(level)
    line = capsys.readouterr().out
    assert line.startswith(f"{level} - pid 4242 from alpha to beta: ")
    assert line.count("\n") == 1
    assert line.split(" | ")[1].startswith(f"blocks={sum(each.verdict is Verdict.BLOCKS for each in findings)} ")
