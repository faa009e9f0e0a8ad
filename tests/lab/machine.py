"""A host of the lab as a machine that has just been installed: its own systemd, and nothing of Sojourn.

systemd runs in namespaces inside the host's, as the first process of its own, with a control group of its own on
the machine that the lab runs on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.host import Host, within
from sojourn.run import Completed

SYSTEMD = "/usr/lib/systemd/systemd"

#: Takes the host's name and where its PIDs shall begin. The control group is entered before it is made the root of all.
BOOT = f"""
mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/$1
echo $$ >/sys/fs/cgroup/$1/cgroup.procs
exec unshare --mount --propagation shared --pid --fork --kill-child --cgroup sh -c '
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /tmp
echo $0 >/proc/sys/kernel/ns_last_pid
exec env -i container=lab {SYSTEMD} --system --unit=basic.target --log-target=journal' $2
"""

#: The groups are empty once nothing runs in them any more.
AWAY = "cd /sys/fs/cgroup && { [ ! -d $1 ] || find $1 -depth -type d -exec rmdir {} +; }"

#: What the lab puts into a host's root. Its checkout stays mounted, where nothing finds it.
OF_THE_LAB = ("/usr/local/bin/sojourn", "/etc/sojourn", "/var/lib/sojourn", "/opt/sojourn/lib", "/opt/sojourn/bin")

#: What root of a new machine has in its environment.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


class Machine:
    """One such machine. ``environment`` is what a site has set beside, for example where pip finds packages."""

    def __init__(self, host: Host, environment: Mapping[str, str]) -> None:
        self.host = host
        self._environment = {**ENVIRONMENT, **environment}
        self._group = f"sojourn-lab-{host.plan.name}-{host.name}"

    def boot(self, first_pid: int) -> None:
        """Take the lab's Sojourn away and start systemd, with PIDs behind ``first_pid``."""
        self.host.run(["sv", "-w", "30", "down", "worker"])
        self.host.run(["rm", "-rf", *OF_THE_LAB], check=False)
        # The launcher leaves it to the host's init, in a session of its own.
        self.host.launch(["sh", "-c", BOOT, "boot", self._group, str(first_pid)], log="/shared/boot.log")
        assert within(30, self._is_up), self.host.run(["cat", "/shared/boot.log"]).stdout

    def shut_down(self) -> None:
        """End systemd with all that runs under it, and its control groups."""
        init = self._init()
        if init:
            self.host.run(["kill", "-KILL", init])
        away = ["sh", "-c", AWAY, "away", self._group]
        assert within(20, lambda: self.host.run(away, check=False).returncode == 0), "its control groups are not empty"

    def shell(self, script: str, *, at: str = "/root", deadline_s: float = 120, check: bool = True) -> Completed:
        """Run a script as a person would who is root there; it ends at the first command that fails."""
        enter = ["nsenter", "--target", self._init(), "--mount", "--pid", "--cgroup", f"--wdns={at}", "env", "-i"]
        said = [f"{name}={value}" for name, value in self._environment.items()]
        command = [*enter, *said, "bash", "-euo", "pipefail", "-c", script]
        return self.host.run(command, deadline_s=deadline_s, check=check)

    def json(self, script: str) -> Any:
        """Run a script and return what it says as JSON."""
        return json.loads(self.shell(script, check=False).stdout)

    def copy(self, file: Path, directory: str) -> None:
        """Put a file into a directory there, which is made."""
        name = f"{self.host.name}-{file.name}"  # other machines may be given theirs at the same time
        (self.host.plan.shared / name).write_bytes(file.read_bytes())
        self.shell(f"mkdir -p {directory}; mv /shared/{name} {directory}/{file.name}")

    def _init(self) -> str:
        """Return the PID of systemd as the host numbers it; empty while it does not run."""
        return self.host.run(["pgrep", "--oldest", "-f", f"^{SYSTEMD} --system"], check=False).stdout.strip()

    def _is_up(self) -> bool:
        return bool(self._init()) and self.shell("systemctl is-active basic.target", check=False).returncode == 0
