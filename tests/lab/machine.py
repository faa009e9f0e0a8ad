"""A host of the lab as a freshly installed machine: its own systemd, and no Sojourn.

systemd is the first process of namespaces inside the host's. It has its own control group on the
machine that the lab runs on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.host import Host, within
from sojourn.system.run import Completed

SYSTEMD = "/usr/lib/systemd/systemd"

#: Takes the name of the control group and where PIDs shall begin. The shell enters the control
#: group before unshare(1) makes that the root which systemd sees.
BOOT = f"""
mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/$1
echo $$ >/sys/fs/cgroup/$1/cgroup.procs
exec unshare --mount --propagation shared --pid --fork --kill-child --cgroup sh -c '
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /tmp
echo $0 >/proc/sys/kernel/ns_last_pid
exec env -i container=lab {SYSTEMD} --system --unit=basic.target --log-target=journal' $2
"""

#: Removes the control groups, which the kernel permits once no process is left in them.
AWAY = "cd /sys/fs/cgroup && { [ ! -d $1 ] || find $1 -depth -type d -exec rmdir {} +; }"

#: What the lab puts into a host's root. The checkout stays mounted; without these it is not used.
OF_THE_LAB = (
    "/usr/local/bin/sojourn",
    "/etc/sojourn",
    "/var/lib/sojourn",
    "/opt/sojourn/lib",
    "/opt/sojourn/bin",
)

#: The environment of root on a new machine.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}


class Machine:
    """One such machine; ``environment`` is what a site adds, such as where pip finds packages."""

    def __init__(self, host: Host, environment: Mapping[str, str]) -> None:
        self.host = host
        self._environment = {**ENVIRONMENT, **environment}
        self._group = f"sojourn-lab-{host.plan.name}-{host.name}"

    def boot(self, first_pid: int, *, keep: bool = False) -> None:
        """Start systemd, with PIDs above ``first_pid``; remove the lab's Sojourn, unless ``keep``.

        The lab's own worker is stopped, for it sees other processes than systemd has.
        """
        self.host.run(["sv", "-w", "30", "down", "worker"])
        if not keep:
            self.host.run(["rm", "-rf", *OF_THE_LAB], check=False)
        # The launcher makes it a child of the host's init, in a session of its own.
        self.host.launch(
            ["sh", "-c", BOOT, "boot", self._group, str(first_pid)], log="/shared/boot.log"
        )
        assert within(30, self._is_up), self.host.run(["cat", "/shared/boot.log"]).stdout

    def shut_down(self) -> None:
        """End systemd with everything that runs under it, and remove its control groups."""
        init = self._init()
        if init:
            self.host.run(["kill", "-KILL", init])
        away = ["sh", "-c", AWAY, "away", self._group]
        assert within(20, lambda: self.host.run(away, check=False).returncode == 0), (
            "its control groups are not empty"
        )

    def shell(
        self, script: str, *, at: str = "/root", deadline_s: float = 120, check: bool = True
    ) -> Completed:
        """Run a script as root there would; it stops at the first command that fails."""
        enter = [
            "nsenter",
            "--target",
            self._init(),
            "--mount",
            "--pid",
            "--cgroup",
            f"--wdns={at}",
            "env",
            "-i",
        ]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        command = [*enter, *variables, "bash", "-euo", "pipefail", "-c", script]
        return self.host.run(command, deadline_s=deadline_s, check=check)

    def json(self, script: str) -> Any:
        """Run a script and return its output, parsed as JSON."""
        return json.loads(self.shell(script, check=False).stdout)

    def copy(self, file: Path, directory: str) -> None:
        """Copy a file into a directory there; create the directory."""
        # All hosts share one directory, and other machines may get their files at the same time.
        name = f"{self.host.name}-{file.name}"
        (self.host.plan.shared / name).write_bytes(file.read_bytes())
        self.shell(f"mkdir -p {directory}; mv /shared/{name} {directory}/{file.name}")

    def _init(self) -> str:
        """Return the PID of systemd as the host numbers it; empty while it does not run."""
        return self.host.run(
            ["pgrep", "--oldest", "-f", f"^{SYSTEMD} --system"], check=False
        ).stdout.strip()

    def _is_up(self) -> bool:
        return (
            bool(self._init())
            and self.shell("systemctl is-active basic.target", check=False).returncode == 0
        )
