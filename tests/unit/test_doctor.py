"""The doctor's checks one by one, on real files and sockets or on made ones."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sojourn import __version__, settings, units
from sojourn.cluster.refused import Refused, kept
from sojourn.cluster.registry import HostInfo
from sojourn.criu.commands import Criu
from sojourn.doctor import Level, cluster, examine, machine, place, refusals
from sojourn.errors import ChannelFailed, CommandMissing
from sojourn.settings import Settings
from sojourn.system import cpu
from tests.certificates import authority, issue
from workers.refusals import Refusals

KNOWN = len(machine.CAPABILITIES)
ALL = (1 << KNOWN) - 1

OURS = Settings.model_validate({"host": "beta"})
ALPHA = Settings.model_validate({"host": "alpha"})

PEER = HostInfo(
    name="beta",
    address="127.0.0.1",
    sojourn=__version__,
    criu="4.2.1",
    kernel=platform.release(),
    machine=platform.machine(),
    cpus=2,
    memory_bytes=2**34,
    free_bytes=2**33,
    running=0,
    announced=0.0,
    cluster=OURS.cluster,
)

REDIS = {
    "redis_version": "8.0.2",
    "role": "master",
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
}

MOUNTS = """\
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
21 20 0:5 / /run rw,nosuid,noexec shared:2 - tmpfs tmpfs rw,mode=755
22 20 0:9 / /srv/a\\040b rw shared:3 - nfs4 filer:/a rw,vers=4.2
23 20 0:10 / /mnt rw - ext4 /dev/sdb1 rw
24 20 0:11 / /mnt ro - xfs /dev/sdc1 rw
"""


def without(*names: str) -> int:
    """Return the bits of all capabilities but some."""
    return ALL & ~sum(1 << machine.CAPABILITIES.index(name) for name in names)


def proc(place: Path, **files: str) -> Path:
    """Make something like ``/proc``; a name's ``__`` stands for a slash."""
    for name, text in files.items():
        path = place / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def criu_that(place: Path, **answers: str) -> Criu:
    """Make a program that answers like CRIU; ``check`` and ``feature`` are lines of shell."""
    answers = {"version": "4.2.1", "check": "exit 0", "feature": "exit 0", **answers}
    program = place / "criu"
    program.write_text(
        f"#!/bin/sh\ncase $* in --version) echo Version: {answers['version']};; "
        f"*--feature*) {answers['feature']};; *) {answers['check']};; esac\n"
    )
    program.chmod(0o755)
    return Criu(program)


def test_root_with_all_capabilities_is_fit() -> None:
    """Nothing is recommended where nothing is missing."""
    assert machine.privileges(0, ALL, KNOWN).level is Level.OK


def test_a_user_other_than_root_is_a_failure() -> None:
    """Capabilities of a user other than root do not help: the journal is root's."""
    found = machine.privileges(1000, ALL, KNOWN)
    assert (found.level, "user 1000" in found.sentence) == (Level.FAILURE, True)


@pytest.mark.parametrize("name", machine.NEEDED)
def test_a_capability_that_everything_needs(name: str) -> None:
    """Any of them missing is a failure that names it."""
    found = machine.privileges(0, without(name), KNOWN)
    assert found.level is Level.FAILURE
    assert f"CAP_{name.upper()} here" in found.sentence


def test_a_capability_that_only_some_processes_need() -> None:
    """A container seldom has all; the finding names the processes that cannot be migrated."""
    assert (
        "of users other than root" in machine.privileges(0, without("sys_resource"), KNOWN).sentence
    )
    found = machine.privileges(0, without("mknod", "syslog"), KNOWN)
    assert (found.level, "CAP_MKNOD, CAP_SYSLOG here" in found.sentence) == (Level.WARNING, True)


def test_an_older_kernel_knows_fewer_capabilities() -> None:
    """A capability that the kernel does not know is not reported as missing."""
    assert machine.privileges(0, (1 << 38) - 1, 38).level is Level.OK


def test_the_capabilities_of_this_process() -> None:
    """They are read from the real /proc."""
    known = machine.known_capabilities(Path("/proc"))
    assert 0 <= machine.effective_capabilities(Path("/proc")) < 1 << known
    assert known >= 38


def test_a_kernel_without_checkpoint_and_restore(tmp_path: Path) -> None:
    """Without the option the file is not there."""
    assert machine.kernel("6.1.0", tmp_path).level is Level.FAILURE
    assert machine.kernel("6.1.0", proc(tmp_path, sys__kernel__ns_last_pid="7")).level is Level.OK


def test_criu_that_is_fit(tmp_path: Path) -> None:
    """The finding shows its version."""
    assert "4.2.1" in machine.criu(criu_that(tmp_path), "6.18.1").sentence


def test_criu_that_is_too_old_for_its_kernel(tmp_path: Path) -> None:
    """The kernel decides whether 4.1 will do."""
    old = criu_that(tmp_path, version="4.1.1")
    assert machine.criu(old, "6.16.0-1-amd64").level is Level.FAILURE
    assert machine.criu(old, "6.12.0-1-amd64").level is Level.OK


def test_criu_that_cannot_work_here(tmp_path: Path) -> None:
    """The finding shows its last error."""
    found = machine.criu(criu_that(tmp_path, check="echo 'Error: no vdso' >&2; exit 1"), "6.12.0")
    assert (found.level, "no vdso" in found.sentence) == (Level.FAILURE, True)


def test_criu_without_a_network_lock(tmp_path: Path) -> None:
    """Trees without connections can still be migrated."""
    assert machine.criu(criu_that(tmp_path, feature="exit 1"), "6.12.0").level is Level.WARNING


def test_criu_without_userfaultfd(tmp_path: Path) -> None:
    """Processes can still come, with a longer freeze."""
    lacking = criu_that(tmp_path, feature="case $* in *uffd*) exit 1;; esac")
    found = machine.criu(lacking, "6.12.0")
    assert (found.level, "userfaultfd" in found.sentence) == (Level.WARNING, True)


def test_no_criu_at_all(tmp_path: Path) -> None:
    """The error names the program; the doctor reports it as a failure."""
    with pytest.raises(CommandMissing, match="is not installed"):
        machine.criu(Criu(tmp_path / "criu"), "6.12.0")


def test_programs_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The way in which the images are copied decides whether scp is needed."""
    for name in machine.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(machine, "CLEAN_ENVIRONMENT", {"PATH": str(tmp_path)})
    assert machine.programs("channel").level is Level.OK
    found = machine.programs("scp")
    assert (found.level, found.sentence) == (Level.FAILURE, "scp cannot be found.")


def test_tracing_is_forbidden(tmp_path: Path) -> None:
    """Yama's strictest value lasts until the next boot."""
    place = proc(tmp_path, sys__kernel__pid_max="4194304", sys__kernel__yama__ptrace_scope="3")
    assert machine.sysctls(place).level is Level.FAILURE
    assert machine.sysctls(proc(tmp_path, sys__kernel__yama__ptrace_scope="1")).level is Level.OK


def test_few_pids(tmp_path: Path) -> None:
    """A kernel without Yama has no such file."""
    assert machine.sysctls(proc(tmp_path, sys__kernel__pid_max="32768")).level is Level.WARNING


def test_swap_in_the_clear(tmp_path: Path) -> None:
    """Swap in memory (zram) leaves nothing on a disk."""
    head = "Filename Type Size Used Priority\n"
    place = proc(
        tmp_path,
        filesystems="nodev\ttmpfs\n\text4\n",
        swaps=head + "/dev/zram0 partition 1 0 100\n",
    )
    assert machine.room(place).level is Level.OK
    found = machine.room(proc(tmp_path, swaps=head + "/dev/sda2 partition 1 0 -2\n"))
    assert (found.level, "in /dev/sda2" in found.sentence) == (Level.WARNING, True)


def test_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tmpfs there is nowhere to put images; with little memory, only for small trees."""
    monkeypatch.setattr(machine, "LITTLE_BYTES", 2**60)
    assert (
        machine.room(proc(tmp_path, filesystems="nodev\ttmpfs\n", swaps="Filename\n")).level
        is Level.WARNING
    )
    assert machine.room(proc(tmp_path, filesystems="\text4\n")).level is Level.FAILURE


def test_a_settings_file_that_others_can_read(tmp_path: Path) -> None:
    """Mode 0600 is required; a missing file is only a warning."""
    path = tmp_path / "sojourn.toml"
    assert place.settings_file(path).level is Level.WARNING
    path.touch(mode=0o640)
    found = place.settings_file(path)
    assert (found.level, "mode 0640" in found.sentence) == (Level.FAILURE, True)
    path.chmod(0o600)
    assert place.settings_file(path).level is Level.OK


@pytest.mark.parametrize("secret", ["", "tiny-key", "the same on every host: openssl rand -hex 32"])
def test_a_key_that_is_not_fit(secret: str) -> None:
    """Too short, or the example's; the finding never shows it."""
    found = place.key(secret)
    assert found.level is Level.FAILURE
    assert not secret or secret not in found.sentence


def test_a_key_that_is_fit() -> None:
    """The finding does not show it either."""
    assert place.key("0123456789abcdef") == place.key("fedcba9876543210")


def test_addresses() -> None:
    """Loopback is a warning, an address that is not ours a failure."""
    assert place.address(Settings(address="127.0.0.1")).level is Level.WARNING
    with pytest.raises(ChannelFailed):
        place.address(Settings(address="192.0.2.1"))


def _with_certificates(place: Path, name: str, days: int) -> Settings:
    """Return the settings of alpha with certificates of a host."""
    made = issue(authority(place / "pki", days=days + 1), name, days=days)
    return Settings(host="alpha", certificates=made.directory)


@pytest.mark.parametrize(
    ("name", "days", "level", "fragment"),
    [
        ("alpha", 31, Level.OK, "for 30 days"),
        ("alpha", 29, Level.WARNING, "ends in 28 days"),
        ("alpha", 0, Level.FAILURE, "certificate has expired"),
        ("gamma", 31, Level.FAILURE, "cannot prove its name"),
    ],
)
def test_certificates(tmp_path: Path, name: str, days: int, level: Level, fragment: str) -> None:
    """They must be this host's, be valid, and stay so for some time."""
    found = place.certificates(_with_certificates(tmp_path, name, days))
    assert (found.level, fragment in found.sentence) == (level, True)


@pytest.mark.parametrize("file", ["ca.crt", "host.pem"])
def test_a_certificate_that_is_missing(tmp_path: Path, file: str) -> None:
    """The finding names the file and how to get it."""
    ours = _with_certificates(tmp_path, "alpha", 31)
    assert ours.certificates is not None
    (ours.certificates / file).unlink()
    found = place.certificates(ours)
    assert (found.level, file in found.sentence) == (Level.FAILURE, True)
    assert "sojourn pki issue alpha" in found.advice


def test_a_private_key_that_others_can_read(tmp_path: Path) -> None:
    """Its readers could impersonate this host."""
    ours = _with_certificates(tmp_path, "alpha", 31)
    assert ours.certificates is not None
    (ours.certificates / "host.pem").chmod(0o640)
    found = place.certificates(ours)
    assert (found.level, "impersonate this host" in found.sentence) == (Level.FAILURE, True)


@pytest.mark.parametrize(
    ("address", "level"), [("127.0.0.1", Level.OK), ("192.0.2.1", Level.WARNING)]
)
def test_no_certificates(address: str, level: Level) -> None:
    """A warning where memory leaves the machine."""
    assert place.certificates(Settings(address=address)).level is level


@pytest.mark.parametrize(
    ("path", "kind", "option"),
    [
        ("/var/lib/sojourn", "ext4", "rw"),
        ("/run/sojourn", "tmpfs", "noexec"),
        ("/running", "ext4", "rw"),
        ("/srv/a b/sojourn", "nfs4", "vers=4.2"),
        ("/mnt/sojourn", "xfs", "ro"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str, option: str) -> None:
    """The innermost mount counts, and of two at the same place the later one."""
    found, options = place.mount_of(Path(path), MOUNTS)
    assert (found, option in options) == (kind, True)


def test_a_journal_in_memory() -> None:
    """A reboot would lose it."""
    found = place.state(Path("/dev/shm/sojourn/not/there/yet"))
    assert (found.level, "in memory" in found.sentence) == (Level.FAILURE, True)


def test_a_journal_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that others can read, one with fail points, and one on a full disk are reported."""
    monkeypatch.setattr(place, "mount_of", lambda *_: ("ext4", {"rw"}))
    directory = tmp_path / "state"
    directory.mkdir(mode=0o755)
    assert "can read" in place.state(directory).sentence
    directory.chmod(0o700)
    assert place.state(directory).level is Level.OK
    (directory / "failpoints").mkdir()
    (directory / "failpoints/accepted.before").touch()
    assert "accepted.before" in place.state(directory).sentence
    monkeypatch.setattr(place, "LITTLE_BYTES", 2**60)
    assert "nearly full" in place.state(directory).sentence


@pytest.mark.parametrize(
    ("kind", "options", "level"),
    [
        ("nfs4", {"rw"}, Level.FAILURE),
        ("ext4", {"ro"}, Level.FAILURE),
        ("ext4", {"rw", "noexec"}, Level.OK),
        ("overlay", {"rw"}, Level.WARNING),
    ],
)
def test_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: set[str], level: Level
) -> None:
    """Where the journal would not work."""
    monkeypatch.setattr(place, "mount_of", lambda *_: (kind, options))
    assert place.state(tmp_path).level is level


@pytest.mark.parametrize(
    ("info", "level", "fragment"),
    [
        ({}, Level.OK, "8.0.2"),
        ({"role": "slave"}, Level.FAILURE, "replica"),
        ({"maxmemory": 2**30, "maxmemory_policy": "allkeys-lru"}, Level.FAILURE, "allkeys-lru"),
        ({"maxmemory_policy": "allkeys-lru"}, Level.OK, "answers"),
        ({"redis_version": "6.2.7"}, Level.WARNING, "older"),
        ({"aof_enabled": 0}, Level.WARNING, "forgets"),
    ],
)
def test_what_redis_reports(info: dict[str, object], level: Level, fragment: str) -> None:
    """Keys must not be evicted, and should survive a restart of Redis."""
    found = cluster.judged(REDIS | info)
    assert (found.level, fragment in found.sentence) == (level, True)


class Clock:
    """Redis's clock, ``ahead_s`` seconds ahead of ours."""

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s

    def time(self) -> float:
        """Return the time of that clock."""
        return time.time() + self.ahead_s


@pytest.mark.parametrize(
    ("ahead_s", "level", "fragment"), [(0, Level.OK, "within"), (9, Level.WARNING, "9.0 s behind")]
)
def test_the_clock(ahead_s: float, level: Level, fragment: str) -> None:
    """The finding shows in which direction it is wrong."""
    found = cluster.clock(Clock(ahead_s))  # type: ignore[arg-type]
    assert (found.level, fragment in found.sentence) == (level, True)


@pytest.mark.parametrize(
    ("announced", "runs", "level", "fragment"),
    [
        (PEER, True, Level.OK, "announces beta"),
        (None, False, Level.FAILURE, "does not run"),
        (None, True, Level.FAILURE, "does not announce itself"),
        (PEER, False, Level.FAILURE, "does not run here"),
        (replace(PEER, sojourn="0.0.1"), True, Level.WARNING, "Sojourn 0.0.1 instead of"),
        (replace(PEER, cluster="beef"), True, Level.WARNING, "key beef"),
        (replace(PEER, address="192.0.2.9"), True, Level.WARNING, "address 192.0.2.9"),
    ],
)
def test_the_worker(announced: HostInfo | None, runs: bool, level: Level, fragment: str) -> None:
    """It must run here, and announce the settings of now."""
    found = cluster.worker(OURS, announced, os.getpid() if runs else None)
    assert (found.level, fragment in found.sentence) == (level, True)


@pytest.mark.parametrize(
    ("info", "level", "fragment"),
    [
        (PEER, Level.OK, "can come"),
        (None, Level.WARNING, "does not announce"),
        (replace(PEER, cluster="beef"), Level.FAILURE, "another key"),
        (
            replace(PEER, certified_until=9e9),
            Level.FAILURE,
            "beta has certificates and alpha has none",
        ),
        (replace(PEER, criu="4.1.1"), Level.FAILURE, "beta has 4.1.1"),
        (replace(PEER, machine="pdp11"), Level.WARNING, "pdp11"),
        (replace(PEER, sojourn="0.0.1"), Level.WARNING, "Sojourn 0.0.1"),
        (replace(PEER, cpu_flags=(*cpu.flags(), "warp")), Level.WARNING, "lacks warp"),
    ],
)
def test_peers(info: HostInfo | None, level: Level, fragment: str) -> None:
    """Every other host is compared with this one."""
    (found,) = cluster.peers(ALPHA, "4.2.0", {"alpha": PEER, "beta": info})
    assert (found.level, fragment in found.sentence) == (level, True)


@pytest.mark.parametrize(
    ("until", "level", "fragment"),
    [
        (9e9, Level.OK, "can come"),
        (None, Level.FAILURE, "alpha has certificates and beta has none"),
    ],
)
def test_peers_of_a_host_with_certificates(
    tmp_path: Path, until: float | None, level: Level, fragment: str
) -> None:
    """The others must have some too."""
    ours = Settings(host="alpha", certificates=tmp_path)
    (found,) = cluster.peers(ours, "4.2.0", {"beta": replace(PEER, certified_until=until)})
    assert (found.level, fragment in found.sentence) == (level, True)


def test_a_cluster_of_one_host() -> None:
    """It is a warning: there is nowhere to migrate to."""
    assert [finding.level for finding in cluster.peers(ALPHA, "4.2", {"alpha": PEER})] == [
        Level.WARNING
    ]


@pytest.fixture
def listening() -> Iterator[int]:
    """Return a port on which a server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ports_that_can_be_reached(listening: int) -> None:
    """Whether something listens makes no difference: a page channel does so only later."""
    assert cluster.why_not("127.0.0.1", listening) == ""
    assert cluster.why_not("127.0.0.1", 1) == ""
    assert [
        finding.level for finding in cluster.reachable("alpha", {"alpha": PEER, "beta": PEER})
    ] == [Level.OK]


def test_ports_that_cannot_be_reached() -> None:
    """No host has the broadcast address."""
    assert cluster.why_not("255.255.255.255", 1)


NOW = time.time()

#: What the lanes of a host have refused, how well that is, and what the doctor says of it.
LANES = [
    (None, Level.OK, "no lane has run here"),
    (Refused(NOW), Level.OK, "none was refused since"),
    (Refused(NOW, NOW, {"late": 2, "unsigned": 1}), Level.WARNING, ": 2 late, 1 unsigned; the"),
    (Refused(0, NOW - 90_000, {"late": 2}), Level.OK, ": 2 late; the last at"),
]


@pytest.mark.parametrize(("refused", "level", "fragment"), LANES)
def test_messages_that_were_refused(refused: Refused | None, level: Level, fragment: str) -> None:
    """By kind, since when, and a warning for a day."""
    found = refusals.of_messages(refused)
    assert (found.level, fragment in found.sentence) == (level, True), found


#: What Redis has of refused records, how well that is, and what the doctor says of it.
COUNTED: list[tuple[dict[tuple[str, ...], float], Level, str]] = [
    ({}, Level.OK, "nothing in Redis was without its seal"),
    (
        {
            ("refused", "cordon"): 2.0,
            ("refused_first", "cordon"): NOW - 60,
            ("refused_last", "cordon"): NOW,
            ("migrations", "completed", "a", "b", "c"): 7.0,
        },
        Level.WARNING,
        f"since {units.moment(NOW - 60)}: 2 cordon; the last at {units.moment(NOW)}.",
    ),
    ({("refused", "part"): 1.0, ("refused_last", "part"): NOW - 90_000}, Level.OK, "1 part;"),
    (
        {
            ("refused", "x" * 10**6): float("inf"),
            ("refused", "\x1b["): 1,
            ("refused_last", "a"): 1e18,
        },
        Level.OK,
        ": 1 \\x1b[; the last at",
    ),
]


@pytest.mark.parametrize(("counted", "level", "fragment"), COUNTED)
def test_records_that_were_refused(
    counted: dict[tuple[str, ...], float], level: Level, fragment: str
) -> None:
    """The same of what all hosts have refused; what is odd in the counters does not count."""
    found = refusals.of_records(counted)
    assert (found.level, fragment in found.sentence) == (level, True), found
    assert len(found.sentence) < 500


def test_refusals_of_two_workers(tmp_path: Path) -> None:
    """A worker that is started again goes on with the count; it writes nothing that is known."""
    counts: dict[tuple[str, ...], int] = {("main", "late"): 0, ("frozen", "late"): 0}
    Refusals(tmp_path, counts).keep()
    begun = kept(tmp_path)
    assert begun is not None
    assert not begun.counts
    first = Refusals(tmp_path, counts)
    counts |= {("main", "late"): 2, ("frozen", "late"): 1}
    first.keep()
    second = Refusals(tmp_path, {("main", "late"): 4})
    second.keep()
    now = kept(tmp_path)
    assert now is not None
    assert (now.since, now.counts) == (begun.since, {"late": 7})
    second.keep()
    assert kept(tmp_path) == now


def test_settings_that_are_wrong_end_the_examination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks that depend on them are left out."""
    path = tmp_path / "sojourn.toml"
    path.write_text("host = 5\n")
    path.chmod(0o600)
    monkeypatch.setenv("SOJOURN_CONFIG", str(path))
    settings.load.cache_clear()
    found = list(examine())
    settings.load.cache_clear()
    assert (found[-1].check, found[-1].level) == ("settings", Level.FAILURE)
    assert "redis" not in {finding.check for finding in found}
