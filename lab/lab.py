"""A lab: the hub with Redis and Flower, hosts with a worker each, and the network between them.

Files it writes: ``/run/sojourn-lab/NAME/`` (plan, consoles, this machine's ``sojourn.toml``) and
``/var/lib/sojourn-lab/NAME/`` (the hosts' disks and ``/shared``). ``down`` removes both.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lab import authority, libraries, network, outside, plan, readiness, services
from lab.errors import LabFailed
from lab.host import Host, end
from lab.layer import CACHE, Layer, Report, locked
from lab.network import Network
from lab.plan import DISKS, FLOWER_USER, HOSTS, HUB, OUTSIDE, STATE, Plan, Setting
from sojourn.errors import ProcessGone, UsageError
from sojourn.model import Identity
from sojourn.system.process import identity
from sojourn.system.run import run

DEFAULT_NAME = "lab"
DEFAULT_HOSTS = 3
REDIS_S = 20
WORKERS_S = 40
UMOUNT_S = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostStatus:
    """One host as ``lab status`` shows it.

    ``state`` is up, cut or down; ``mounts`` are those of image directories.
    """

    host: str
    address: str
    state: str
    init_pid: int | None
    services: dict[str, str]
    mounts: list[str]


class Lab:
    """One lab by its name. All of its state is on disk; several objects may stand for one lab."""

    def __init__(
        self, name: str = DEFAULT_NAME, report: Report = log.info, more: Sequence[Layer] = ()
    ) -> None:
        """``more`` are layers that the hosts' roots have on top of the usual ones."""
        self.name = plan.check_name(name)
        self._report = report
        self._more = more

    @property
    def exists(self) -> bool:
        """Whether the lab was started and not taken down."""
        return plan.exists(self.name)

    @property
    def plan(self) -> Plan:
        """The lab's hosts, addresses and keys. Raises LabFailed if there is none."""
        outside.check_root()
        return plan.load(self.name)

    @property
    def config(self) -> Path:
        """The settings with which this machine's ``sojourn`` talks to this lab."""
        return STATE / self.name / "sojourn.toml"

    @property
    def flower_login(self) -> str:
        """User and password of the hub's Flower, as a phrase."""
        return f"user {FLOWER_USER}, password {self.plan.flower_password}"

    def host(self, name: str) -> Host:
        """Return one host, or the hub. Raises UsageError if the lab has none of that name."""
        planned = self.plan
        if name not in planned.machines:
            raise UsageError(
                f"The lab has no host {name!r}.", f"Its hosts are {', '.join(planned.machines)}."
            )
        return Host(planned, name)

    def hosts(self) -> list[Host]:
        """Return the hosts, without the hub."""
        planned = self.plan
        return [Host(planned, name) for name in planned.hosts]

    def up(
        self,
        hosts: int = DEFAULT_HOSTS,
        *,
        settings: Mapping[str, Setting] | None = None,
        state_mb: int | None = None,
        encrypted: bool = False,
        wait: bool = True,
    ) -> list[str]:
        """Bring the lab to at least this number of running hosts; return the machines booted.

        ``settings`` go to the configuration of the hosts that are booted. With ``state_mb``, a new
        lab's hosts have their journals on a file system of their own; with ``encrypted``, they
        speak TLS to each other and to Redis. With ``wait``, return when all workers have announced
        themselves. Raises LabUnsuitable, LabFailed or UsageError.
        """
        if not 1 <= hosts <= len(HOSTS):
            raise UsageError(f"A lab has 1 to {len(HOSTS)} hosts, not {hosts}.")
        outside.check()
        layers = self._layers()
        with _lab_lock():
            planned = self._plan_for(hosts, settings or {}, state_mb, encrypted=encrypted)
            booted = self._boot_missing(planned, layers)
        if wait:
            self._wait_for_workers(planned)
        return booted

    def down(self) -> bool:
        """Remove everything of this lab, also of a half-made one; False if there was nothing."""
        outside.check_root()
        with _lab_lock():
            return self._remove()

    def boot(self, name: str) -> None:
        """Start a crashed host again, with the disk it had; do nothing if it is up."""
        host = self.host(name)
        if not host.is_up:
            Network(host.plan).unplug(name)
            host.start(self._layers())
            host.wait_until_up()

    def crash(self, name: str) -> None:
        """Cut a host's power; its disk is kept."""
        self.host(name).crash()

    def cut(self, name: str) -> None:
        """Pull a host's network cable."""
        Network(self.host(name).plan).cut(name)

    def heal(self, name: str) -> None:
        """Plug a host's network cable in again."""
        Network(self.host(name).plan).heal(name)

    def status(self) -> list[HostStatus]:
        """Return what runs and what does not. Raises LabFailed if there is no such lab."""
        planned = self.plan
        cut = Network(planned).cut_hosts()
        return [_status(Host(planned, name), cut) for name in planned.machines]

    def _layers(self) -> list[Path]:
        usual = libraries.layers(self._report)
        return [*(layer.ready(self._report) for layer in self._more), *usual]

    def _plan_for(
        self, hosts: int, settings: Mapping[str, Setting], state_mb: int | None, *, encrypted: bool
    ) -> Plan:
        if self.exists:
            planned = self.plan.with_hosts(hosts)
            planned = replace(planned, settings={**planned.settings, **settings})
        else:
            # What an interrupted start, or a lab before this machine's last boot, has left.
            self._remove()
            planned = Plan(
                self.name,
                network.free_subnet(),
                HOSTS[:hosts],
                key=secrets.token_hex(32),
                password=secrets.token_hex(16),
                flower_password=secrets.token_hex(8),
                settings=dict(settings),
                state_mb=state_mb,
                encrypted=encrypted,
            )
            if encrypted:
                authority.create(planned)
        # Before anything is made, so that ``down`` finds what an interrupted start has left.
        planned.save()
        return planned

    def _boot_missing(self, planned: Plan, layers: list[Path]) -> list[str]:
        Network(planned).lay()
        planned.shared.mkdir(mode=0o755, parents=True, exist_ok=True)
        plan.write_privately(
            self.config, services.settings(planned, OUTSIDE, planned.outside_address)
        )
        if planned.encrypted:
            authority.issue(planned, OUTSIDE, planned.outside_address)
        missing = [host for name in planned.machines if not (host := Host(planned, name)).is_up]
        # All boot at the same time; the hub first, since the workers look for its Redis.
        for host in missing:
            self._report(f"{host.name}: booting")
            Network(planned).unplug(host.name)
            host.start(layers)
        for host in missing:
            host.wait_until_up()
        if not readiness.redis_answers(planned, REDIS_S):
            raise LabFailed(
                "The hub's Redis does not answer.",
                f"Read {Host(planned, HUB).log_path('redis')}.",
            )
        return [host.name for host in missing]

    def _wait_for_workers(self, planned: Plan) -> None:
        self._report("waiting for the workers")
        cut = Network(planned).cut_hosts()
        silent = readiness.announced(
            planned, [name for name in planned.hosts if name not in cut], WORKERS_S
        )
        if silent:
            path = Host(planned, silent[0]).log_path("worker")
            raise LabFailed(
                f"The worker of {', '.join(silent)} has not announced itself within {WORKERS_S} s.",
                f"Read {path}.",
            )

    def _remove(self) -> bool:
        directories = [path for path in (STATE / self.name, DISKS / self.name) if path.exists()]
        leftovers = network.namespaces(self.name)
        # The processes first: while they run, the hosts' file systems cannot be unmounted.
        end(processes(self.name))
        network.remove(self.name)
        for disk in (DISKS / self.name).glob("*/state"):
            run(["umount", disk], deadline_s=UMOUNT_S, check=False)
        for directory in directories:
            shutil.rmtree(directory)
            with contextlib.suppress(OSError):  # not empty: other labs are still in there
                directory.parent.rmdir()
        return bool(directories or leftovers)


def all_names() -> list[str]:
    """Return the names of all labs that have left anything on this machine."""
    names = {path.name for directory in (STATE, DISKS) for path in directory.glob("*")}
    return sorted(names | network.labs())


def _lab_lock() -> contextlib.AbstractContextManager[None]:
    """Let one command at a time make or remove labs; not in a lab's directory, which goes too."""
    return locked(CACHE / "lab.lock")


def processes(lab: str) -> list[Identity]:
    """Return all processes in a lab's network namespaces; nothing else runs there."""
    found = []
    for host in network.namespaces(lab):
        for pid in network.pids(lab, host):
            with contextlib.suppress(ProcessGone):
                found.append(identity(pid))
    return found


def _status(host: Host, cut: set[str]) -> HostStatus:
    init = host.init
    if init is None:
        return HostStatus(host.name, host.address, "down", None, {}, [])
    state = "cut" if host.name in cut else "up"
    return HostStatus(
        host.name, host.address, state, init.pid, host.services(), _image_mounts(init.pid)
    )


def _image_mounts(pid: int) -> list[str]:
    """Return the mount points below the host's /run, where Sojourn keeps its image directories."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if point.startswith("/run/")]
