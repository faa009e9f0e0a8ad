"""The machine: who we are on it, its kernel and CRIU, the programs that steps call, its limits and its memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from sojourn import memory
from sojourn.criu import Criu
from sojourn.doctor.finding import Finding, failure, ok, warning
from sojourn.errors import CommandFailed
from sojourn.preflight.finding import named
from sojourn.preflight.machine import too_old
from sojourn.run import CLEAN_ENVIRONMENT

#: capabilities(7), in the order of their numbers.
CAPABILITIES = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"),
    "checkpoint_restore",
)

#: Without any one of these no process with a socket moves, whoever owns it: tried one by one with CRIU 4.2.
NEEDED = ("net_admin", "setpcap", "sys_admin", "sys_chroot", "sys_ptrace", "sys_time")

#: Programs that steps call, besides CRIU.
PROGRAMS = ("mount", "umount", "nft")

#: What Linux chooses where nobody raises it. On such hosts two trees soon want the same PID.
SMALL_PID_MAX = 32_768

#: With this value nobody may trace anything, not even root (Documentation/admin-guide/LSM/Yama.rst of the kernel).
NO_TRACING = 3

#: A host with less free memory can take small trees only.
LITTLE_BYTES = 256 * 2**20


def privileges(user: int, effective: int, known: int) -> Finding:
    """Look who we are; ``effective`` are the bits of our capabilities, ``known`` is how many the kernel knows."""
    if user != 0:
        return failure("root", f"This is user {user}; a worker must be root.", "Run it as root: sudo sojourn doctor")
    missing = [name for bit, name in enumerate(CAPABILITIES[:known]) if not effective & 1 << bit]
    lacking = [name for name in NEEDED if name in missing]
    if lacking:
        return failure("root", f"root lacks {_caps(lacking)} here.", "Give the container or unit these capabilities.")
    if missing:
        others = ", and processes of users other than root can not be dumped" if "sys_resource" in missing else ""
        return warning(
            "root",
            f"root lacks {_caps(missing)} here: processes that have more can not be restored{others}.",
            "Give the container or unit all capabilities, if you can.",
        )
    return ok("root", "root, with all capabilities")


def kernel(release: str, proc: Path) -> Finding:
    """Look whether the kernel can checkpoint and restore; ``proc`` is ``/proc``."""
    if not (proc / "sys/kernel/ns_last_pid").exists():  # there exactly with CONFIG_CHECKPOINT_RESTORE
        return failure(
            "kernel",
            f"Linux {release} was built without CONFIG_CHECKPOINT_RESTORE.",
            "Boot a distribution's stock kernel; those of Debian, Ubuntu and Fedora have it.",
        )
    return ok("kernel", f"Linux {release}, with CONFIG_CHECKPOINT_RESTORE")


def criu(here: Criu, release: str) -> Finding:
    """Look at CRIU, and ask it whether it can work on this kernel. Raises CommandMissing, CommandFailed."""
    version = here.version()
    if too_old(version, release):
        return failure(
            "criu",
            f"CRIU {version} can not dump network sockets on Linux {release}.",
            "Install CRIU 4.2 or later, the same on all hosts.",
        )
    try:
        here.check()
    except CommandFailed as error:
        return failure("criu", f"CRIU {version} can not work here: {error.message}", "See what `criu check` says.")
    if not here.has("network_lock_nftables"):
        return warning(
            "criu",
            f"CRIU {version} has no network lock by nftables: connections can not move along (--tcp-established).",
            "Load the kernel's module nf_tables; install a CRIU that was built with nftables.",
        )
    return ok("criu", f"CRIU {version}, which says that it can work on this kernel")


def programs(copy_images_with: str) -> Finding:
    """Look for the programs that steps call."""
    wanted = [*PROGRAMS, *(["scp"] if copy_images_with == "scp" else [])]
    missing = [name for name in wanted if not shutil.which(name, path=CLEAN_ENVIRONMENT["PATH"])]
    if missing:
        return failure("programs", f"{named(missing)} can not be found.", "Debian: apt install mount nftables")
    return ok("programs", f"{', '.join(wanted)} are there")


def sysctls(proc: Path) -> Finding:
    """Look at limits of the kernel under which migrations fail; ``proc`` is ``/proc``."""
    if _number(proc / "sys/kernel/yama/ptrace_scope") == NO_TRACING:
        return failure(
            "sysctl",
            "kernel.yama.ptrace_scope is 3: nobody may trace a process, so CRIU can dump none.",
            "Set it to 2 or less in /etc/sysctl.d and reboot; it can not be lowered before.",
        )
    most = _number(proc / "sys/kernel/pid_max")
    if most is not None and most <= SMALL_PID_MAX:
        return warning(
            "sysctl",
            f"kernel.pid_max is {most}: a PID is soon taken on the host to which a process moves.",
            "sysctl kernel.pid_max=4194304, the same on all hosts",
        )
    return ok("sysctl", f"kernel.pid_max is {most}; processes may be traced")


def room(proc: Path) -> Finding:
    """Look whether memory is free for the images of a migration, and whether it could come to lie on a disk."""
    if "\ttmpfs" not in (proc / "filesystems").read_text():
        return failure("memory", "The kernel has no tmpfs for the images.", "Boot a distribution's stock kernel.")
    free = memory.free_bytes()
    if free < LITTLE_BYTES:
        return warning("memory", f"Only {free // 2**20} MB are free.", "Free memory, or drain the host.")
    swaps = list(_plain_swaps((proc / "swaps").read_text().splitlines()[1:]))
    if swaps:
        return warning(
            "memory",
            f"{free // 2**20} MB are free; images in memory can come to lie unencrypted in {named(swaps)}.",
            "Encrypt the swap, or have none.",
        )
    return ok("memory", f"{free // 2**20} MB are free, and none of it is swapped in the clear")


def effective_capabilities(proc: Path) -> int:
    """Return the bits of the capabilities that we have."""
    lines = (proc / "self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def known_capabilities(proc: Path) -> int:
    """Return how many capabilities the kernel knows."""
    return int((proc / "sys/kernel/cap_last_cap").read_text()) + 1


def _plain_swaps(lines: Iterable[str]) -> Iterator[str]:
    """Yield swap areas that lie on a disk as they are: neither in memory (zram) nor on what dm-crypt made."""
    for line in lines:
        path = line.split()[0]
        device = Path(os.path.realpath(path)).name
        kind = Path(f"/sys/block/{device}/dm/uuid")
        if not device.startswith("zram") and not (kind.exists() and kind.read_text().startswith("CRYPT-")):
            yield path


def _caps(names: Iterable[str]) -> str:
    return named([f"CAP_{name.upper()}" for name in names], 8)


def _number(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None
