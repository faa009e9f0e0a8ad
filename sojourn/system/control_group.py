"""What a control group does to its members, its parents' doing included (cgroups(7), version 2)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from sojourn.system import bpf
from sojourn.system.mounts import mounted
from sojourn.system.process import PROC

#: ``BPF_PROG_QUERY`` and ``BPF_F_QUERY_EFFECTIVE`` of include/uapi/linux/bpf.h, ``union bpf_attr``
#: of that command, and where in it the kernel writes how many there are.
QUERY, EFFECTIVE = 16, 1
ATTRIBUTES, COUNT_AT = struct.Struct("=IIIIQII"), 24

#: Where programs can be attached that deny something: packets, sockets, devices, addresses,
#: sysctls, socket options (``enum bpf_attach_type``).
DENYING = (0, 1, 2, 6, *range(8, 16), *range(18, 23))

#: More than a group has programs of one kind.
MOST_PROGRAMS = 64

#: Files with limits; all of them hold nothing, or ``max``, where there is none.
LIMITS = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max", "io.max")
CHOICES = ("cpuset.cpus", "cpuset.mems")


def of(pid: int | str) -> Path | None:
    """Return the directory of a process's group; None if it is not to be seen here."""
    with contextlib.suppress(OSError):
        lines = (PROC / str(pid) / "cgroup").read_text(errors="replace").splitlines()
        # The line of version 2 begins so, and names no controller.
        group = next((line[3:] for line in lines if line.startswith("0::")), None)
        top = _top()
        if group and top and not group.startswith("/.."):
            place = top / group.lstrip("/")
            return place if place.is_dir() else None
    return None


def filters(group: Path) -> set[int]:
    """Return the ids of the programs that may deny something to the members of a group.

    Empty where the kernel does not permit to ask.
    """
    found: set[int] = set()
    descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for kind in DENYING:
            with contextlib.suppress(bpf.Unavailable):
                found.update(_programs(descriptor, kind))
    finally:
        os.close(descriptor)
    return found


def limits(group: Path) -> dict[str, str]:
    """Return the limits of a group by the names of their files, the nearest one of each."""
    top = _top()
    found: dict[str, str] = {}
    for place in (group, *group.parents):
        if top is None or place == top or top not in place.parents:
            break
        for name, value in _limits_in(place):
            found.setdefault(name, value)
    return found


def _limits_in(place: Path) -> Iterator[tuple[str, str]]:
    for name in (*LIMITS, *CHOICES):
        with contextlib.suppress(OSError):
            value = (place / name).read_text().strip()
            if value and not value.startswith("max"):
                yield name, value


def _programs(descriptor: int, kind: int) -> list[int]:
    ids = (ctypes.c_uint32 * MOST_PROGRAMS)()
    asked = ATTRIBUTES.pack(descriptor, kind, EFFECTIVE, 0, ctypes.addressof(ids), MOST_PROGRAMS, 0)
    _, answer = bpf.call(QUERY, asked)
    (count,) = struct.unpack_from("=I", answer, COUNT_AT)
    return list(ids[:count])


def _top() -> Path | None:
    """Return where the hierarchy of version 2 is mounted."""
    return next((Path(mount.place) for mount in mounted() if mount.kind == "cgroup2"), None)
