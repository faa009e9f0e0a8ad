"""The first program in a host's namespaces: makes its root, enters it and becomes its init.

``python -m lab.boot LAB HOST``, as PID 1 of a new PID namespace, with mount, UTS and IPC namespaces
of its own, inside the host's network namespace.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import uuid
from dataclasses import asdict
from pathlib import Path

from lab import plan as plans
from lab import services
from lab.libraries import CHECKOUT
from lab.plan import Plan
from lab.stacked import stack
from sojourn.system.process import identity
from sojourn.system.process import stat as process_stat
from sojourn.system.run import CLEAN_ENVIRONMENT, run

MOUNT_DEADLINE_S = 10

#: tini reaps what CRIU and the workloads leave behind, runsvdir keeps the services running.
INIT = ("/usr/bin/tini", "--", "runsvdir", "-P", "/etc/service")

#: The devices of a host, by their numbers (Documentation/admin-guide/devices.txt of the kernel).
DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
    "net/tun": (10, 200),
}
DEVICE_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}

#: ptys of the host's own; the group is Debian's ``tty``.
DEVPTS_OPTIONS = "newinstance,ptmxmode=0666,mode=0620,gid=5"


def main() -> None:
    """Boot one host; does not return."""
    lab, host = sys.argv[1:]
    plan = plans.load(lab)
    directory = plan.state / "hosts" / host
    _announce(directory)
    boot = _count_boots(directory / "boots")
    os.setsid()
    os.umask(0o022)
    socket.sethostname(host)
    root = _root(plan, host, directory)
    # Before the root is entered: the lab's keys and certificates are in this machine's file system.
    services.furnish(root, plan, host)
    _enter(root)
    # Last: each command that is run takes a PID.
    _start_pids(plan, host, boot)
    os.execve(INIT[0], INIT, CLEAN_ENVIRONMENT)


def _announce(directory: Path) -> None:
    """Record our PIDs as this machine numbers them: its /proc is still mounted here."""
    pid = int((Path("/proc/self")).readlink().name)
    init, waiter = identity(pid), identity(process_stat(pid).parent)
    plans.write_privately(directory / "init.json", json.dumps([asdict(init), asdict(waiter)]))


def _root(plan: Plan, host: str, directory: Path) -> Path:
    root, disk = directory / "root", plans.DISKS / plan.name / host
    stack((directory / "layers").read_text(), disk / "upper", disk / "work", root)
    # A new /proc shows the PID namespace of the process that mounts it (pid_namespaces(7)).
    _mount(root / "proc", "-t", "proc", "proc")
    _mount(root / "sys", "-t", "sysfs", "sysfs")
    _mount(root / "run", "-t", "tmpfs", "-o", "mode=0755,nosuid,nodev", "tmpfs")
    _mount(root / "tmp", "-t", "tmpfs", "-o", "mode=1777,nosuid,nodev", "tmpfs")
    _devices(root / "dev")
    _mount(root / "opt/sojourn/src", "--bind", "-o", "ro", str(CHECKOUT))
    _mount(root / "shared", "--bind", str(plan.shared))
    if plan.state_mb:
        _mount(root / "var/lib/sojourn", "--bind", str(plan.state_disk(host)))
    _new_boot_id(root)
    return root


def _devices(dev: Path) -> None:
    _mount(dev, "-t", "tmpfs", "-o", "mode=0755,nosuid", "tmpfs")
    (dev / "net").mkdir()
    for name, numbers in DEVICES.items():
        os.mknod(dev / name, stat.S_IFCHR, os.makedev(*numbers))
        (dev / name).chmod(0o666)
    for name, target in DEVICE_LINKS.items():
        (dev / name).symlink_to(target)
    _mount(dev / "pts", "-t", "devpts", "-o", DEVPTS_OPTIONS, "devpts")
    _mount(dev / "shm", "-t", "tmpfs", "-o", "mode=1777,nosuid,nodev", "tmpfs")


def _new_boot_id(root: Path) -> None:
    """Give the host a boot id of its own: the kernel's would stay the same over its boots."""
    (root / "run/boot_id").write_text(f"{uuid.uuid4()}\n")
    _mount(root / "proc/sys/kernel/random/boot_id", "--bind", str(root / "run/boot_id"))


def _enter(root: Path) -> None:
    """Make the root ours and detach this machine's. CRIU cannot work in a mere chroot."""
    outside = root / "mnt"
    run(["pivot_root", root, outside], deadline_s=MOUNT_DEADLINE_S)
    os.chdir("/")
    # Lazily: the Python that runs this has files open in there.
    run(["umount", "--lazy", "/mnt"], deadline_s=MOUNT_DEADLINE_S)


def _count_boots(file: Path) -> int:
    """Return the number of earlier boots of the host."""
    before = int(file.read_text()) if file.exists() else 0
    file.write_text(str(before + 1))
    return before


def _start_pids(plan: Plan, host: str, boot: int) -> None:
    kernel = Path("/proc/sys/kernel")
    first = plan.first_pid(host, boot, int((kernel / "pid_max").read_text()))
    (kernel / "ns_last_pid").write_text(str(first))


def _mount(target: Path, *arguments: str) -> None:
    if not target.exists():
        target.mkdir(parents=True)
    run(["mount", *arguments, target], deadline_s=MOUNT_DEADLINE_S)


if __name__ == "__main__":
    main()
