"""What a lab requires of the machine that carries it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab import base
from lab.errors import LabUnsuitable

#: Programs the lab runs, with the Debian package of each.
PROGRAMS = {
    "ip": "iproute2",
    "mount": "mount",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "unshare": "util-linux",
}

#: The kernel has this file exactly if it was built with CONFIG_CHECKPOINT_RESTORE
#: (kernel/pid_namespace.c).
CHECKPOINT_RESTORE = Path("/proc/sys/kernel/ns_last_pid")


def check() -> None:
    """Raise LabUnsuitable with the first reason why there can be no lab on this machine."""
    check_root()
    if not CHECKPOINT_RESTORE.exists():
        raise LabUnsuitable(
            "This kernel was built without CONFIG_CHECKPOINT_RESTORE, which CRIU needs.",
            "Use a distribution's stock kernel; those of Debian, Ubuntu and Fedora have it.",
        )
    needed = PROGRAMS if base.layer().path.is_dir() else {**PROGRAMS, "mmdebstrap": "mmdebstrap"}
    for program, package in needed.items():
        if shutil.which(program, path=os.defpath + ":/usr/local/sbin:/usr/sbin:/sbin") is None:
            raise LabUnsuitable(
                f"The lab needs {program}, which is not installed.",
                f"Run: apt-get install {package}.",
            )


def check_root() -> None:
    """Raise LabUnsuitable unless we are root."""
    if os.geteuid() != 0:
        raise LabUnsuitable(
            "The lab needs root: it makes namespaces and mounts.", "Run it with sudo."
        )
