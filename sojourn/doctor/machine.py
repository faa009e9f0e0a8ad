"""The machine: our privileges, kernel, CRIU, the programs that steps call, limits and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from sojourn import units
from sojourn.criu.commands import Criu
from sojourn.doctor.finding import Finding, failure, ok, warning
from sojourn.errors import CommandFailed
from sojourn.preflight import lazy_restore
from sojourn.preflight.finding import named
from sojourn.preflight.machine import too_old
from sojourn.system import memory
from sojourn.system.run import CLEAN_ENVIRONMENT

#: capabilities(7), in the order of their numbers.
CAPABILITIES = (
    *(
        "chown",
        "dac_override",
        "dac_read_search",
        "fowner",
        "fsetid",
        "kill",
        "setgid",
        "setuid",
        "setpcap",
    ),
    *(
        "linux_immutable",
        "net_bind_service",
        "net_broadcast",
        "net_admin",
        "net_raw",
        "ipc_lock",
        "ipc_owner",
    ),
    *(
        "sys_module",
        "sys_rawio",
        "sys_chroot",
        "sys_ptrace",
        "sys_pacct",
        "sys_admin",
        "sys_boot",
        "sys_nice",
    ),
    *(
        "sys_resource",
        "sys_time",
        "sys_tty_config",
        "mknod",
        "lease",
        "audit_write",
        "audit_control",
        "setfcap",
    ),
    *(
        "mac_override",
        "mac_admin",
        "syslog",
        "wake_alarm",
        "block_suspend",
        "audit_read",
        "perfmon",
        "bpf",
    ),
    "checkpoint_restore",
)

#: Without any one of these no process with a socket can be migrated, whoever owns it: tried one by
#: one with CRIU 4.2.
NEEDED = ("net_admin", "setpcap", "sys_admin", "sys_chroot", "sys_ptrace", "sys_time")

#: Programs that steps call, besides CRIU.
PROGRAMS = ("mount", "umount", "nft")

#: The default of Linux. On such hosts two trees soon need the same PID.
SMALL_PID_MAX = 32_768

#: With this value not even root may trace a process (Documentation/admin-guide/LSM/Yama.rst of the
#: kernel).
NO_TRACING = 3

#: A host with less free memory has room for small trees only.
LITTLE_BYTES = 256 * 2**20


def privileges(user: int, effective: int, known: int) -> Finding:
    """Check our privileges: the ``effective`` capabilities out of those ``known`` to the kernel."""
    if user != 0:
        return failure(
            "root",
            f"This is user {user}; a worker must be root.",
            "Run it as root: sudo sojourn doctor",
        )
    missing = [name for bit, name in enumerate(CAPABILITIES[:known]) if not effective & 1 << bit]
    lacking = [name for name in NEEDED if name in missing]
    if lacking:
        return failure(
            "root",
            f"root lacks {_caps(lacking)} here.",
            "Give the container or unit these capabilities.",
        )
    if missing:
        others = (
            ", and processes of users other than root cannot be dumped"
            if "sys_resource" in missing
            else ""
        )
        return warning(
            "root",
            f"root lacks {_caps(missing)} here: "
            f"processes that have more cannot be restored{others}.",
            "Give the container or unit all capabilities, if you can.",
        )
    return ok("root", "root, with all capabilities")


def kernel(release: str, proc: Path) -> Finding:
    """Check whether the kernel can checkpoint and restore; ``proc`` is ``/proc``."""
    # The file exists exactly with CONFIG_CHECKPOINT_RESTORE.
    if not (proc / "sys/kernel/ns_last_pid").exists():
        return failure(
            "kernel",
            f"Linux {release} was built without CONFIG_CHECKPOINT_RESTORE.",
            "Boot a distribution's stock kernel; those of Debian, Ubuntu and Fedora have it.",
        )
    return ok("kernel", f"Linux {release}, with CONFIG_CHECKPOINT_RESTORE")


def criu(here: Criu, release: str) -> Finding:
    """Check CRIU, also by its own check of the kernel. Raises CommandMissing, CommandFailed."""
    version = here.version()
    if too_old(version, release):
        return failure(
            "criu",
            f"CRIU {version} cannot dump network sockets on Linux {release}.",
            "Install CRIU 4.2 or later, the same on all hosts.",
        )
    try:
        here.check()
    except CommandFailed as error:
        return failure(
            "criu",
            f"CRIU {version} cannot work here: {error.message}",
            "See the output of `criu check`.",
        )
    # A dump with established connections asks for this kind of lock and no other.
    if not here.has("network_lock_nftables"):
        return warning(
            "criu",
            f"CRIU {version} has no network lock by nftables: "
            "connections cannot be migrated (--tcp-established).",
            "Load the kernel's module nf_tables; install a CRIU that was built with nftables.",
        )
    if not here.has(lazy_restore.FEATURE):
        return warning(
            "criu",
            f"CRIU {version} and Linux {release} have no userfaultfd(2) with messages: processes "
            "that come here wait, frozen, until all of their memory is in place.",
            "Boot a distribution's stock kernel; those of Debian, Ubuntu and Fedora have it.",
        )
    return ok("criu", f"CRIU {version}, whose own check of this kernel succeeds")


def programs(copy_images_with: str) -> Finding:
    """Check whether the programs that steps call are installed."""
    wanted = [*PROGRAMS, *(["scp"] if copy_images_with == "scp" else [])]
    # Searched where steps search: their commands do not get the caller's PATH.
    missing = [name for name in wanted if not shutil.which(name, path=CLEAN_ENVIRONMENT["PATH"])]
    if missing:
        return failure(
            "programs", f"{named(missing)} cannot be found.", "Debian: apt install mount nftables"
        )
    return ok("programs", f"{', '.join(wanted)} are there")


def sysctls(proc: Path) -> Finding:
    """Check limits of the kernel under which migrations fail; ``proc`` is ``/proc``."""
    if _number(proc / "sys/kernel/yama/ptrace_scope") == NO_TRACING:
        return failure(
            "sysctl",
            "kernel.yama.ptrace_scope is 3: no process may be traced, so CRIU cannot dump any.",
            "Set it to 2 or less in /etc/sysctl.d and reboot; it cannot be lowered before.",
        )
    most = _number(proc / "sys/kernel/pid_max")
    if most is not None and most <= SMALL_PID_MAX:
        return warning(
            "sysctl",
            f"kernel.pid_max is {most}: a PID is soon taken on the destination of a process.",
            "sysctl kernel.pid_max=4194304, the same on all hosts",
        )
    return ok("sysctl", f"kernel.pid_max is {most}; processes may be traced")


def room(proc: Path) -> Finding:
    """Check for free memory for the images, and whether they could end up on a disk."""
    # The tab keeps ``devtmpfs`` out.
    if "\ttmpfs" not in (proc / "filesystems").read_text():
        return failure(
            "memory",
            "The kernel has no tmpfs for the images.",
            "Boot a distribution's stock kernel.",
        )
    free = memory.free_bytes()
    if free < LITTLE_BYTES:
        return warning(
            "memory",
            f"Only {units.size(free)} of memory are free.",
            "Free memory, or drain the host.",
        )
    swaps = list(_plain_swaps((proc / "swaps").read_text().splitlines()[1:]))
    if swaps:
        return warning(
            "memory",
            f"{units.size(free)} are free; images can end up unencrypted in {named(swaps)}.",
            "Encrypt the swap, or turn it off.",
        )
    return ok("memory", f"{units.size(free)} are free, and nothing is swapped unencrypted")


def effective_capabilities(proc: Path) -> int:
    """Return our effective capabilities as bits."""
    lines = (proc / "self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def known_capabilities(proc: Path) -> int:
    """Return how many capabilities the kernel knows."""
    return int((proc / "sys/kernel/cap_last_cap").read_text()) + 1


def _plain_swaps(lines: Iterable[str]) -> Iterator[str]:
    """Yield swap areas that are unencrypted on a disk: neither in memory (zram) nor on dm-crypt."""
    for line in lines:
        path = line.split()[0]
        # ``/dev/mapper/NAME`` is a link to ``/dev/dm-N``, and ``/sys/block`` knows the latter name
        # only.
        device = Path(os.path.realpath(path)).name
        kind = Path(f"/sys/block/{device}/dm/uuid")
        if not device.startswith("zram") and not (
            kind.exists() and kind.read_text().startswith("CRYPT-")
        ):
            yield path


def _caps(names: Iterable[str]) -> str:
    return named([f"CAP_{name.upper()}" for name in names], 8)


def _number(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None
