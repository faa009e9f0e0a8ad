"""The doctor's checks one by one, on real files and sockets, or on what such files and Redis say elsewhere."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sojourn import __version__, processor, settings
from sojourn.criu import Criu
from sojourn.doctor import Level, cluster, examine, machine, place
from sojourn.errors import ChannelFailed, CommandMissing
from sojourn.registry import HostInfo
from sojourn.settings import Settings
from tests.certificates import authority, issue

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

REDIS = {"redis_version": "8.0.2", "role": "master", "maxmemory": 0, "maxmemory_policy": "noeviction", "aof_enabled": 1}

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
    """Make a program that answers like CRIU: ``version`` is said, ``check`` and ``feature`` are lines of shell."""
    said = {"version": "4.2.1", "check": "exit 0", "feature": "exit 0"} | answers
    program = place / "criu"
    program.write_text(
        f"#!/bin/sh\ncase $* in --version) echo Version: {said['version']};; "
        f"*--feature*) {said['feature']};; *) {said['check']};; esac\n"
    )
    program.chmod(0o755)
    return Criu(program)


def test_root_with_everything_is_well() -> None:
    """Nothing is asked for where nothing lacks."""
    assert machine.privileges(0, ALL, KNOWN).level is Level.OK


def test_who_is_not_root_is_told_so() -> None:
    """Capabilities of a user other than root do not help: the journal is root's."""
    found = machine.privileges(1000, ALL, KNOWN)
    assert (found.level, "user 1000" in found.sentence) == (Level.FAILURE, True)


@pytest.mark.parametrize("name", machine.NEEDED)
def test_a_capability_that_everything_needs(name: str) -> None:
    """Each alone is a failure, by its name."""
    found = machine.privileges(0, without(name), KNOWN)
    assert found.level is Level.FAILURE
    assert f"CAP_{name.upper()} here" in found.sentence


def test_a_capability_that_only_some_processes_need() -> None:
    """A container seldom has all; what does not move because of it is said."""
    assert "of users other than root" in machine.privileges(0, without("sys_resource"), KNOWN).sentence
    found = machine.privileges(0, without("mknod", "syslog"), KNOWN)
    assert (found.level, "CAP_MKNOD, CAP_SYSLOG here" in found.sentence) == (Level.WARNING, True)


def test_an_older_kernel_knows_fewer_capabilities() -> None:
    """What the kernel does not know is not missed."""
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


def test_criu_is_well(tmp_path: Path) -> None:
    """Its version is told."""
    assert "4.2.1" in machine.criu(criu_that(tmp_path), "6.18.1").sentence


def test_criu_that_is_too_old_for_its_kernel(tmp_path: Path) -> None:
    """The kernel decides whether 4.1 will do."""
    old = criu_that(tmp_path, version="4.1.1")
    assert machine.criu(old, "6.16.0-1-amd64").level is Level.FAILURE
    assert machine.criu(old, "6.12.0-1-amd64").level is Level.OK


def test_criu_that_can_not_work_here(tmp_path: Path) -> None:
    """Its last complaint is told."""
    found = machine.criu(criu_that(tmp_path, check="echo 'Error: no vdso' >&2; exit 1"), "6.12.0")
    assert (found.level, "no vdso" in found.sentence) == (Level.FAILURE, True)


def test_criu_without_a_network_lock(tmp_path: Path) -> None:
    """Trees without connections still move."""
    assert machine.criu(criu_that(tmp_path, feature="exit 1"), "6.12.0").level is Level.WARNING


def test_no_criu_at_all(tmp_path: Path) -> None:
    """The error says which program is missing; the doctor tells it as a failure."""
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
    assert (found.level, found.sentence) == (Level.FAILURE, "scp can not be found.")


def test_nobody_may_trace(tmp_path: Path) -> None:
    """Yama's strictest value lasts until the next boot."""
    place = proc(tmp_path, sys__kernel__pid_max="4194304", sys__kernel__yama__ptrace_scope="3")
    assert machine.sysctls(place).level is Level.FAILURE
    assert machine.sysctls(proc(tmp_path, sys__kernel__yama__ptrace_scope="1")).level is Level.OK


def test_few_pids(tmp_path: Path) -> None:
    """A kernel without Yama has no such file."""
    assert machine.sysctls(proc(tmp_path, sys__kernel__pid_max="32768")).level is Level.WARNING


def test_swap_in_the_clear(tmp_path: Path) -> None:
    """Swap in memory is none that a thief could read."""
    head = "Filename Type Size Used Priority\n"
    place = proc(tmp_path, filesystems="nodev\ttmpfs\n\text4\n", swaps=head + "/dev/zram0 partition 1 0 100\n")
    assert machine.room(place).level is Level.OK
    found = machine.room(proc(tmp_path, swaps=head + "/dev/sda2 partition 1 0 -2\n"))
    assert (found.level, "in /dev/sda2" in found.sentence) == (Level.WARNING, True)


def test_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tmpfs there is nowhere to put images; with little memory, only for small trees."""
    monkeypatch.setattr(machine, "LITTLE_BYTES", 2**60)
    assert machine.room(proc(tmp_path, filesystems="nodev\ttmpfs\n", swaps="Filename\n")).level is Level.WARNING
    assert machine.room(proc(tmp_path, filesystems="\text4\n")).level is Level.FAILURE


def test_a_settings_file_that_others_can_read(tmp_path: Path) -> None:
    """Mode 0600 is asked for; no file at all is only unusual."""
    path = tmp_path / "sojourn.toml"
    assert place.settings_file(path).level is Level.WARNING
    path.touch(mode=0o640)
    found = place.settings_file(path)
    assert (found.level, "mode 0640" in found.sentence) == (Level.FAILURE, True)
    path.chmod(0o600)
    assert place.settings_file(path).level is Level.OK


@pytest.mark.parametrize("secret", ["", "tiny-key", "the same on every host: openssl rand -hex 32"])
def test_a_key_that_is_none(secret: str) -> None:
    """Too short, or the example's; it is never repeated."""
    found = place.key(secret)
    assert found.level is Level.FAILURE
    assert not secret or secret not in found.sentence


def test_a_key() -> None:
    """A good one is not repeated either."""
    assert place.key("0123456789abcdef") == place.key("fedcba9876543210")


def test_addresses() -> None:
    """Loopback is told, and so is an address that is not ours."""
    assert place.address(Settings(address="127.0.0.1")).level is Level.WARNING
    with pytest.raises(ChannelFailed):
        place.address(Settings(address="192.0.2.1"))


def _with_certificates(place: Path, name: str, days: int) -> Settings:
    """Return the settings of alpha with certificates of a host."""
    made = issue(authority(place / "pki", days=days + 1), name, days=days)
    return Settings(host="alpha", certificates=made.directory)


@pytest.mark.parametrize(
    ("name", "days", "level", "word"),
    [
        ("alpha", 31, Level.OK, "for 30 days"),
        ("alpha", 29, Level.WARNING, "ends in 28 days"),
        ("alpha", 0, Level.FAILURE, "certificate has expired"),
        ("gamma", 31, Level.FAILURE, "can not prove its name"),
    ],
)
def test_certificates(tmp_path: Path, name: str, days: int, level: Level, word: str) -> None:
    """They must be this host's, be good, and be good for some time to come."""
    found = place.certificates(_with_certificates(tmp_path, name, days))
    assert (found.level, word in found.sentence) == (level, True)


@pytest.mark.parametrize("file", ["ca.crt", "host.pem"])
def test_a_certificate_that_is_missing(tmp_path: Path, file: str) -> None:
    """It is named, and how to get it."""
    ours = _with_certificates(tmp_path, "alpha", 31)
    assert ours.certificates is not None
    (ours.certificates / file).unlink()
    found = place.certificates(ours)
    assert (found.level, file in found.sentence) == (Level.FAILURE, True)
    assert "sojourn pki issue alpha" in found.advice


def test_a_private_key_that_others_can_read(tmp_path: Path) -> None:
    """They could pass for this host."""
    ours = _with_certificates(tmp_path, "alpha", 31)
    assert ours.certificates is not None
    (ours.certificates / "host.pem").chmod(0o640)
    found = place.certificates(ours)
    assert (found.level, "pass for this host" in found.sentence) == (Level.FAILURE, True)


@pytest.mark.parametrize(("address", "level"), [("127.0.0.1", Level.OK), ("192.0.2.1", Level.WARNING)])
def test_no_certificates(address: str, level: Level) -> None:
    """That is said where memory leaves the machine."""
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
    """The innermost mount counts, and of two on one point the later."""
    found, options = place.mount_of(Path(path), MOUNTS)
    assert (found, option in options) == (kind, True)


def test_a_journal_in_memory() -> None:
    """A reboot would take it."""
    found = place.state(Path("/dev/shm/sojourn/not/there/yet"))
    assert (found.level, "in memory" in found.sentence) == (Level.FAILURE, True)


def test_a_journal_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that others can look into, one with fail points, and one whose disk is nearly full are told."""
    monkeypatch.setattr(place, "mount_of", lambda *_: ("ext4", {"rw"}))
    directory = tmp_path / "state"
    directory.mkdir(mode=0o755)
    assert "look into" in place.state(directory).sentence
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
        ("ext4", {"rw", "noexec"}, Level.FAILURE),
        ("overlay", {"rw"}, Level.WARNING),
    ],
)
def test_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: set[str], level: Level
) -> None:
    """Where the journal, or the action script beside it, would not work."""
    monkeypatch.setattr(place, "mount_of", lambda *_: (kind, options))
    assert place.state(tmp_path).level is level


@pytest.mark.parametrize(
    ("said", "level", "word"),
    [
        ({}, Level.OK, "8.0.2"),
        ({"role": "slave"}, Level.FAILURE, "replica"),
        ({"maxmemory": 2**30, "maxmemory_policy": "allkeys-lru"}, Level.FAILURE, "allkeys-lru"),
        ({"maxmemory_policy": "allkeys-lru"}, Level.OK, "answers"),
        ({"redis_version": "6.2.7"}, Level.WARNING, "older"),
        ({"aof_enabled": 0}, Level.WARNING, "forgets"),
    ],
)
def test_what_redis_says(said: dict[str, object], level: Level, word: str) -> None:
    """Keys must not vanish; that they outlive Redis itself is wished for."""
    found = cluster.judged(REDIS | said)
    assert (found.level, word in found.sentence) == (level, True)


class Clock:
    """Redis's clock, so many seconds away from ours."""

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s

    def time(self) -> float:
        """Tell the time there."""
        return time.time() + self.ahead_s


@pytest.mark.parametrize(("ahead_s", "level", "word"), [(0, Level.OK, "within"), (9, Level.WARNING, "9.0 s behind")])
def test_the_clock(ahead_s: float, level: Level, word: str) -> None:
    """Which way it is wrong is said."""
    found = cluster.clock(Clock(ahead_s))  # type: ignore[arg-type]
    assert (found.level, word in found.sentence) == (level, True)


@pytest.mark.parametrize(
    ("told", "pid", "level", "word"),
    [
        (PEER, os.getpid(), Level.OK, "announces beta"),
        (None, None, Level.FAILURE, "does not run"),
        (None, os.getpid(), Level.FAILURE, "does not announce itself"),
        (PEER, None, Level.FAILURE, "does not run here"),
        (replace(PEER, sojourn="0.0.1"), os.getpid(), Level.WARNING, "Sojourn 0.0.1 instead of"),
        (replace(PEER, cluster="beef"), os.getpid(), Level.WARNING, "key beef"),
        (replace(PEER, address="192.0.2.9"), os.getpid(), Level.WARNING, "address 192.0.2.9"),
    ],
)
def test_the_worker(told: HostInfo | None, pid: int | None, level: Level, word: str) -> None:
    """It must run here, and say what the settings say now."""
    found = cluster.worker(OURS, told, pid)
    assert (found.level, word in found.sentence) == (level, True)


@pytest.mark.parametrize(
    ("info", "level", "word"),
    [
        (PEER, Level.OK, "can come"),
        (None, Level.WARNING, "does not announce"),
        (replace(PEER, cluster="beef"), Level.FAILURE, "another key"),
        (replace(PEER, certified_until=9e9), Level.FAILURE, "beta has certificates, and this host has none"),
        (replace(PEER, criu="4.1.1"), Level.FAILURE, "CRIU 4.1.1"),
        (replace(PEER, machine="pdp11"), Level.WARNING, "pdp11"),
        (replace(PEER, sojourn="0.0.1"), Level.WARNING, "Sojourn 0.0.1"),
        (replace(PEER, cpu_flags=(*processor.flags(), "warp")), Level.WARNING, "lacks warp"),
    ],
)
def test_peers(info: HostInfo | None, level: Level, word: str) -> None:
    """Each is compared with this host."""
    (found,) = cluster.peers(ALPHA, "4.2.0", {"alpha": PEER, "beta": info})
    assert (found.level, word in found.sentence) == (level, True)


@pytest.mark.parametrize(
    ("until", "level", "word"),
    [(9e9, Level.OK, "can come"), (None, Level.FAILURE, "beta has no certificates, as this host has")],
)
def test_peers_of_a_host_with_certificates(tmp_path: Path, until: float | None, level: Level, word: str) -> None:
    """The others must have some too."""
    ours = Settings(host="alpha", certificates=tmp_path)
    (found,) = cluster.peers(ours, "4.2.0", {"beta": replace(PEER, certified_until=until)})
    assert (found.level, word in found.sentence) == (level, True)


def test_nobody_else() -> None:
    """A cluster of one host is told to be one."""
    assert [each.level for each in cluster.peers(ALPHA, "4.2", {"alpha": PEER})] == [Level.WARNING]


@pytest.fixture
def listening() -> Iterator[int]:
    """Return a port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ports_that_can_be_reached(listening: int) -> None:
    """Whether somebody listens makes no difference: a page channel only will."""
    assert cluster.why_not("127.0.0.1", listening) == ""
    assert cluster.why_not("127.0.0.1", 1) == ""
    assert [each.level for each in cluster.reachable("alpha", {"alpha": PEER, "beta": PEER})] == [Level.OK]


def test_ports_that_can_not_be_reached() -> None:
    """This address is nobody's on the loopback's network."""
    assert cluster.why_not("255.255.255.255", 1)


def test_settings_that_are_wrong_end_the_examination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What depends on them is not looked at."""
    path = tmp_path / "sojourn.toml"
    path.write_text("host = 5\n")
    path.chmod(0o600)
    monkeypatch.setenv("SOJOURN_CONFIG", str(path))
    settings.load.cache_clear()
    found = list(examine())
    settings.load.cache_clear()
    assert (found[-1].check, found[-1].level) == ("settings", Level.FAILURE)
    assert "redis" not in {each.check for each in found}
