"""What a lab consists of: its hosts, their addresses and its keys, in one file.

Written by this module: ``/run/sojourn-lab/NAME/lab.json`` (0600, since it holds the lab's keys).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path

from lab.errors import LabFailed
from sojourn.errors import UsageError

STATE = Path("/run/sojourn-lab")
DISKS = Path("/var/lib/sojourn-lab")

#: The names that hosts get, in this order; the hub, where Redis and Flower run, is always there.
HOSTS = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta"),
    *("eta", "theta", "iota", "kappa", "lambda", "mu"),
)
HUB = "hub"

#: This machine, as the lab's hosts call it: everything outside of the lab.
OUTSIDE = "outside"

#: Short enough for the name of a network interface, and without the dash that separates the parts
#: of a namespace's name.
NAME = re.compile(r"[a-z][a-z0-9]{0,11}")

FLOWER_PORT = 5555
FLOWER_USER = "sojourn"

OUTSIDE_NUMBER = 1
HUB_NUMBER = 2
FIRST_HOST_NUMBER = 11

#: How far apart the PIDs of two hosts start where the kernel has room for it.
PID_STEP = 200_000

#: Into how many parts that is divided, one for each boot; after the last comes the first again.
BOOTS = 10

Setting = str | int | float | bool


@dataclass(frozen=True)
class Plan:
    """One lab on paper. ``subnet`` is the third number of its addresses, 10.213.SUBNET.0/24.

    With ``state_mb``, /var/lib/sojourn of each host is a file system of its own of that size, so
    that it can be full. With ``encrypted``, all that passes between its machines does so inside
    TLS, by an authority of the lab's own.
    """

    name: str
    subnet: int
    hosts: tuple[str, ...]
    key: str
    password: str
    settings: dict[str, Setting] = field(default_factory=dict)
    state_mb: int | None = None
    flower_password: str = ""
    encrypted: bool = False

    @property
    def state(self) -> Path:
        """The lab's run-time directory."""
        return STATE / self.name

    @property
    def shared(self) -> Path:
        """The directory that all hosts see as ``/shared``."""
        return DISKS / self.name / "shared"

    def state_disk(self, host: str) -> Path:
        """Return the mount point, on this machine, of a host's file system for its journal."""
        return DISKS / self.name / host / "state"

    @property
    def machines(self) -> tuple[str, ...]:
        """The hub and the hosts."""
        return (HUB, *self.hosts)

    @property
    def outside_address(self) -> str:
        """The address of this machine in the lab's network."""
        return self._address(OUTSIDE_NUMBER)

    @property
    def redis_url(self) -> str:
        """The hub's Redis, with the password."""
        return f"redis{'s' if self.encrypted else ''}://:{self.password}@{self.address(HUB)}:6379/0"

    @property
    def authority(self) -> Path:
        """Where the lab's authority is, with the certificates that it has issued."""
        return self.state / "pki"

    @property
    def flower_url(self) -> str:
        """The hub's Flower, as this machine's browser reaches it."""
        return f"http://{self.address(HUB)}:{FLOWER_PORT}"

    def number(self, host: str) -> int:
        """Return the last number of a host's address."""
        return HUB_NUMBER if host == HUB else FIRST_HOST_NUMBER + HOSTS.index(host)

    def address(self, host: str) -> str:
        """Return a host's address."""
        return self._address(self.number(host))

    def first_pid(self, host: str, boot: int, pid_max: int) -> int:
        """Return where a host's PIDs start at a boot: apart from those of the other hosts.

        So a process finds its PID free elsewhere. Each boot starts further on: a process that left
        the host before a crash may come back.
        """
        step = min(PID_STEP, pid_max // (len(HOSTS) + 1))
        return (
            0
            if host == HUB
            else step * (1 + self.hosts.index(host)) + step // BOOTS * (boot % BOOTS)
        )

    def with_hosts(self, count: int) -> Plan:
        """Return the same lab with at least this number of hosts."""
        return replace(self, hosts=HOSTS[: max(count, len(self.hosts))])

    def save(self) -> None:
        """Write the plan atomically."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_privately(self.state / "lab.json", json.dumps(asdict(self), indent=2))

    def _address(self, number: int) -> str:
        return f"10.213.{self.subnet}.{number}"


def exists(name: str) -> bool:
    """Whether a lab of that name was planned and not taken down."""
    return (STATE / name / "lab.json").is_file()


def load(name: str) -> Plan:
    """Read a lab's plan. Raises LabFailed if there is no such lab."""
    try:
        fields = json.loads((STATE / name / "lab.json").read_text())
    except FileNotFoundError:
        raise LabFailed(
            f"There is no lab named {name!r}.", f"Start it: sojourn lab up --name {name}."
        ) from None
    # A lab that another version of Sojourn has started may have more fields.
    known = {field.name for field in dataclass_fields(Plan)}
    return Plan(
        **{name: value for name, value in fields.items() if name in known}
        | {"hosts": tuple(fields["hosts"])}
    )


def check_name(name: str) -> str:
    """Return the name if it can be a lab's; raise UsageError otherwise."""
    if NAME.fullmatch(name):
        return name
    raise UsageError(
        f"{name!r} cannot be the name of a lab.",
        "Use up to twelve lower-case letters and digits, beginning with a letter.",
    )


def write_privately(path: Path, text: str) -> None:
    """Write a file that only root can read, atomically."""
    draft = path.with_suffix(".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
